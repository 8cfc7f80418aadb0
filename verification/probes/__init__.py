"""A tiny instance of the very config, built on the CPU through the script's own code, and what it is seen to do."""
