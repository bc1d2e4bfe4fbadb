"""Pure numerics, tensors in, tensors out: `divergences` in torch, `stats` in numpy alone."""
