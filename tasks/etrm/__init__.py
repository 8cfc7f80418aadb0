"""Recursive reasoning over demonstrations: `pretrain_etrm.py`."""
