"""Probes: observe a tiny instance of the config, built on the CPU through the script's own code."""
