"""Draws a model's answer after every ACT step, as text, picture, animation or page."""
