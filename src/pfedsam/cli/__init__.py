"""Command line: one file per group of commands; the only layer that prints."""
