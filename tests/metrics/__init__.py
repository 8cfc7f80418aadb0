"""How large the house is: `python -m tests.metrics` measures this checkout, or another one with --tree."""
