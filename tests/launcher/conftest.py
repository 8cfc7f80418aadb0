"""Fixtures of this folder."""

from tests.launcher.job_cases import place, start

__all__ = ["place", "start"]
