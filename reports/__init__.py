"""Reads runs, compares them over seeds, and shows the result as tables, pictures and an HTML page."""
