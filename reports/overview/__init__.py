"""Any runs side by side: a page (`scripts/report.py`), or tables on the terminal (`scripts/compare_runs.py`)."""
