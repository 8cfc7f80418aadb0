"""The checks, in the guide's order. Importing this registers them; families add theirs with `register_family`."""

from __future__ import annotations

from verification.checks.registry import Family, NotApplicable, check, family_of, register_family, run_checks, say

from verification.checks import arch, carry, config, data, job, language, model, outcome, script, slips  # isort: skip  # noqa: F401

__all__ = ["Family", "NotApplicable", "check", "family_of", "register_family", "run_checks", "say"]
