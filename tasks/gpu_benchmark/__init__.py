"""Time training steps on a GPU, in each of our modes, against public code, eager and compiled (scripts/bench.py)."""
