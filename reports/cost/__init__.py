"""Estimates the cost of a run before it is started: memory, time, FLOPs, disk, and the batch size that fits."""
