"""Evaluation: predictions at native size, scores per case, and their summary over sites."""
