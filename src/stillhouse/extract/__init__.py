"""What it costs to copy a model through its API: victims, queries, thieves, the audit."""
