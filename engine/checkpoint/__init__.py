"""Checkpoints on disk: tensors, manifest, what fits and what does not."""
