"""Training steps on a GPU, in each of our modes, beside those of public code, eager and compiled (scripts/bench.py)."""
