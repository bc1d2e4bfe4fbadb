"""Lottery tickets: sparse subnetworks found, moved to other tasks, removed for speed."""
