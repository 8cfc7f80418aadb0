"""Describes this machine and installation for `scripts/doctor.py`."""
