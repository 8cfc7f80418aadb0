"""Start runs as child processes: the jobs of a sweep (`-m`) and the lines of a job file (scripts/run_jobs.py)."""
