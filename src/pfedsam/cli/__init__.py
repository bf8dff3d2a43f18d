"""Command line: one file per group of commands. No other layer prints."""
