"""Commands for people: each runs as `python scripts/NAME.py` and is its arguments and one call."""
