"""ARC-AGI tasks and similar grid tasks: reading, augmentation, data sets in two forms, and a generated corpus."""
