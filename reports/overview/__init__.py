"""Compares any runs on a page (`scripts/report.py`), or in tables on the terminal (`scripts/compare_runs.py`)."""
