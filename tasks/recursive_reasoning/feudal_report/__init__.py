"""Report on HRM's manager: runs with and without it, and whether its goals are followed and useful."""
