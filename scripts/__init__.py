"""Commands for people: each runs as `python scripts/NAME.py`; modules with a leading underscore are their parts."""
