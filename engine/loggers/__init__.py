"""Where metrics go: the run's own files and trackers."""
