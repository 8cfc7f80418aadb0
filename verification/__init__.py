"""Traces a command to the code that it will run and reports what is wrong on the way (docs/verification.md)."""
