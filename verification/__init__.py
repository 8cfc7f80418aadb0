"""Follows a command to the code that it will run and says which link of that chain is wrong (docs/verification.md)."""
