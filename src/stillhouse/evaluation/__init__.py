"""How good a model is, how sure we are, and what it costs to run."""
