"""Models: loading them safely, building students, running encoders fast."""
