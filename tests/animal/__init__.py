"""Tests of train_animal.py."""
