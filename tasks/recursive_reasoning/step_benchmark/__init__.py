"""Time training steps, evaluations and batches of pretrain.py against their published form (scripts/bench.py)."""
