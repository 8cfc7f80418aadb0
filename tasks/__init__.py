"""What one training step means for each family: model + loss + data -> micro-batches, loss, carried state."""
