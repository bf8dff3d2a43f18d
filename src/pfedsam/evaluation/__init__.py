"""Evaluation: class maps at native size, scores per case, and summaries that always show the worst site."""
