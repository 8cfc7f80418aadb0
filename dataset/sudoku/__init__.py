"""Sudoku puzzles of 4x4, 6x6 and 9x9: geometry, exact solver, generator, augmentation, the public CSV."""
