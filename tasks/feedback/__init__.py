"""Feedback models: a masked language model as base, and hypernetworks that adapt it to the text they read."""
