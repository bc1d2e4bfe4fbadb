"""One file a task. Nothing else in the package asks which task it is."""
