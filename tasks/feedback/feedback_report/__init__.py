"""Compare hypernetworks with their baselines: the runs of a small comparison, and a report on any such runs."""
