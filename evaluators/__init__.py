"""Evaluators: `name: module@Class` in a config's `evaluators` list; begin, update with every batch, result."""
