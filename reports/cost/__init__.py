"""What a run will cost before it is started: memory, time, operations, disk, and the batch size that fits."""
