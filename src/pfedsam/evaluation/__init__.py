"""Evaluation: class maps at native size, scores per case, and summaries that always give the worst site beside the mean."""
