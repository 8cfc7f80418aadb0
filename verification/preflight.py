"""The static part of verification for a run that is about to start: no composition, no torch, well below a second."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from engine.config import source_of
from engine.errors import UsageError
from engine.io import print_rank0 as print_line
from engine.registry import ROOT, Family
from verification.chain import Chain, follow_classes
from verification.checks.registry import run_checks
from verification.command import parse
from verification.finding import Finding, Report
from verification.script import read_script
from verification.signature import compare_signatures, make_signature
from verification.source import SLOTS, Repo
from verification.stored import trace

__all__ = ["check_launch", "compare_signatures", "preflight", "review"]


def review(config: Any, entry: str, root: Path) -> tuple[Chain, Report]:
    """Judge a checked config as `engine.config.load_synced_config` returns it; `entry` is the script without .py."""
    from verification.static import facts, links

    source = source_of(config)
    repo = Repo(Path(root), _loaded_from_elsewhere(Path(root)))
    command = parse(["python", f"{entry}.py", *source.overrides])
    chain = Chain(repo, "launch", command, job=entry)
    try:
        chain.script = read_script(repo, f"{entry}.py")
    except (LookupError, SyntaxError) as error:
        chain.problems["script"] = str(error)
        return chain, Report(entry)
    chain.folders, chain.cwd = _search_path() or [repo.root / chain.script.config_path], Path.cwd()
    chain.config_dir = chain.folders[0]
    chain.config_name = source.config_name or chain.script.config_name
    chain.overrides = list(source.overrides)
    chain.choices = {key: value for key, value in source.choices.items() if not key.startswith("hydra/")}
    chain.resolved, chain.config, chain.schema = source.resolved, config, type(config)
    chain.composed = trace(chain)
    follow_classes(chain)
    # Hydra has composed and the strict schema has accepted: only names and code are left to be judged. A config from
    # --config-dir or a resumed one need not lie in config/.
    findings = [
        f for f in run_checks(chain) if f.code not in ("JOB020", "JOB030", "CFG211") and not f.code.startswith("CKP")
    ]
    return chain, Report(entry, links(chain), findings, make_signature(chain), facts(chain))


def check_launch(family: Family, config: Any) -> dict[str, Any]:
    """Everything that can be wrong before data are read: names and keys, then the path from command to model.

    Raises: UsageError.
    """
    family.check(config)
    return preflight(config, family.entry, ROOT)


def preflight(config: Any, entry: str, root: Path) -> dict[str, Any]:
    """Check the chain of a run and give its path signature.

    `config.verify` (strict where the schema has no such key): strict stops at a FAIL, warn prints it, off skips all.
    Warnings are printed, one line each.

    Raises: UsageError with code, message and fix of the first FAIL, under strict.
    """
    level = getattr(config, "verify", "strict")
    if level == "off":
        return {}
    _, report = review(config, entry, root)
    for finding in report.of("WARN"):
        print_line(f"warning: {line_of(finding)}")
    wrong = report.of("FAIL")
    if wrong and level == "strict":
        more = (
            f" (and {len(wrong) - 1} more: python scripts/verify_path.py -- python {entry}.py ...)"
            if len(wrong) > 1
            else ""
        )
        raise UsageError(f"{line_of(wrong[0])}{more}; verify=warn runs it all the same")
    for finding in wrong:
        print_line(f"warning: {line_of(finding)}")
    return report.signature


def line_of(finding: Finding) -> str:
    """A finding in one line: code, place, message, fix."""
    place = f" {finding.place}:" if finding.place else ""
    return f"{finding.code}{place} {finding.message}" + (f": {finding.fix}" if finding.fix else "")


def _loaded_from_elsewhere(root: Path) -> dict[str, str]:
    """Text of the loaded modules of our packages that `root` does not have: the path of a package may be longer."""
    found = {}
    for name, module in list(sys.modules.items()):
        place, file = f"{name.replace('.', '/')}.py", getattr(module, "__file__", None)
        if (
            file
            and name.partition(".")[0] in SLOTS
            and Path(file).name != "__init__.py"
            and not (root / place).exists()
        ):
            found[place] = Path(file).read_text(encoding="utf-8")
    return found


def _search_path() -> list[Path]:
    """The folders that Hydra composed this process's config from; empty where it composed none."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file"]
