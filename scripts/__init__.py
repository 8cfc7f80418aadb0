"""Commands for users: each runs as `python scripts/NAME.py` and only parses arguments and calls one function."""
