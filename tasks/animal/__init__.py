"""Diversity fine-tuning of a language model with LoRA: train_animal.py."""
