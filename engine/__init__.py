"""What the entry scripts share: command line, strict config, run directory, checkpoints, the training loop."""
