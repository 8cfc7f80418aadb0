"""Follows a command to the code that it will run and reports where the chain is wrong (docs/verification.md)."""
