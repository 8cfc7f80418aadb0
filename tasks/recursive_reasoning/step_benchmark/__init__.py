"""Training steps, evaluations and batches of pretrain.py timed beside the published form of each (scripts/bench.py)."""
