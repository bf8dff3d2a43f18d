"""The frozen backbones: the interface (`base.py`), one file for each backbone, and the reading of their weights."""
