"""A model served behind a guard: answers metered, logged, a few of them marked; and the proof."""
