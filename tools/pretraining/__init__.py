"""How `sam-tiny` was made: pretraining of a compact SAM on generated scenes.

Not installed with the package; from a checkout: `PYTHONPATH=tools python -m pretraining --out FOLDER`.
"""
