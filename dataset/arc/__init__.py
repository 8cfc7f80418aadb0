"""ARC-AGI tasks and grids like them: reading, augmentation, data sets in two forms, and a generated corpus."""
