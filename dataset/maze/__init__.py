"""Mazes: shortest paths in a grid of walls."""
