"""Rows from files, split without leaks, encoded on disk, cut into batches."""
