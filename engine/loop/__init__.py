"""The training loop and what it calls on the way."""
