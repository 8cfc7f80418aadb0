"""What this machine and this installation have for training: `scripts/doctor.py`."""
