"""The engine: one round loop, the site that answers it, and what is kept of a run."""
