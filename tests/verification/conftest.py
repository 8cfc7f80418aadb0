"""Fixtures of this folder."""

from tests.verification.job_cases import place, start

__all__ = ["place", "start"]
