"""Experiment: reads a configuration, checks it as a whole, and builds objects from it; no other layer does this."""
