"""Checkpoints of the public TRM and HRM repositories: read, converted to runs of ours, and written back."""
