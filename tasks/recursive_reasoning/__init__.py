"""Recursive reasoning with puzzle embeddings: arguments, build, task."""
