"""The frozen backbones: one protocol (`base.py`), one file a backbone, and how their weights are read."""
