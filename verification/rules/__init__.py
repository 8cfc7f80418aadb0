"""The rules, in the guide's order. Importing this package fills the table."""

from __future__ import annotations

from verification.rules import job, script, config, arch, data, stored  # isort: skip  # noqa: F401
