"""Data sets: builders (`python -m dataset.build_…`), the on-disk format, samplers without hidden state."""
