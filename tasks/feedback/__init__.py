"""Feedback models: a base language model for masked text, and hypernetworks that read and adapt it."""
