"""Checkpoints of the public TRM and HRM repositories: reading, conversion to and from our runs, writing."""
