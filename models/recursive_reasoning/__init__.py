"""Models that answer by refining a latent state: HRM (arXiv 2506.21734), TRM (arXiv 2510.04871) and their
variants."""
