"""Speedruns: a fixed track, a fixed budget, one record (scripts/speedrun.py)."""
