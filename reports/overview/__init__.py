"""Any runs beside each other: a page (`scripts/report.py`), or tables on the terminal (`scripts/compare_runs.py`)."""
