"""Experiment: a configuration read, checked as a whole, and built into objects (the only place where that happens)."""
