"""Core: what every layer stands on (errors, options, randomness, named tensors, atomic files, log)."""
