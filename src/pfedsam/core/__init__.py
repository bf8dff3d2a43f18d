"""Core: the basis of all other layers (errors, options, randomness, named tensors, atomic files, locks, log)."""
