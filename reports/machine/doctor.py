"""Collects all facts for a bug report, formats them, and lists problems."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from reports.machine.installation import extras, home_shortened, packages, python_facts
from reports.machine.places import counts_in_words, data_sets, disks, missing_data, readable_size

SMALLEST_FREE = 2_000_000_000
"""Bytes that a disk should have free: checkpoints of 7 M parameters take 0.1 GB each, torch's caches 1 GB."""

INSTALL = "pip install -c constraints.txt -e ."


def examine(*, compiler: bool = True) -> dict[str, Any]:
    """All facts as JSON values, and `problems`, one line each; `compiler` tries torch.compile, which takes seconds."""
    facts: dict[str, Any] = {**python_facts(), "packages": packages(), "extras": extras(), "disks": disks()}
    try:
        from reports.machine.device import device_facts

        facts["torch"] = device_facts(compiler=compiler)
    except (ImportError, OSError, RuntimeError) as error:  # no torch, one for another system, a failing driver
        facts["torch"] = {"fault": f"{type(error).__name__}: {error}"}
    try:
        data = data_sets()
        facts["data"] = {"found": data, "missing": missing_data(data)}
    except ImportError as error:
        facts["data"] = {"fault": str(error)}
    facts["problems"] = list(_problems(facts))
    return facts


def _problems(facts: dict[str, Any]) -> Iterator[str]:
    unusable = {name: package for name, package in facts["packages"].items() if not package["usable"]}
    if missing := [name for name, package in unusable.items() if package["version"] is None]:
        yield f"{', '.join(missing)}: not installed; {INSTALL}"
    for name, package in unusable.items():
        if package["version"] is not None:
            yield f"{name} {package['version']} is not {package['required']}; {INSTALL}"
    if "fault" in facts["torch"] and facts["packages"].get("torch", {}).get("version"):
        yield f"torch cannot be used here ({facts['torch']['fault']})"
    for folders, disk in facts["disks"].items():
        for what in disk["refuses"]:
            yield f"the disk of {folders} refuses {what}"
        if disk["free"] < SMALLEST_FREE:
            yield f"the disk of {folders} has {readable_size(disk['free'])} left"
    for one in facts["data"].get("found", []):
        if "fault" in one:
            yield f"{one['path']} cannot be used: {one['fault']}"


def as_text(facts: dict[str, Any]) -> str:
    """The output of the command: `label  value` lines that can be pasted into a bug report."""
    lines = [f"{label:<12}{value}" for label, value in _lines(facts)]
    return home_shortened("\n".join(lines))


def as_json(facts: dict[str, Any]) -> str:
    return home_shortened(json.dumps(facts, indent=2, ensure_ascii=False))


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    changed = f", {facts['changed_files']} changed files" if facts["changed_files"] else ""
    commit = f", commit {facts['commit']}{changed}" if facts["commit"] else ", no git checkout"
    yield "loopforge", f"{facts['project'] or 'of unknown version'}{commit}"
    yield "python", f"{facts['python']} ({facts['executable']})"
    memory = f", {readable_size(facts['memory'])} of memory" if facts["memory"] else ""
    yield "system", f"{facts['platform']}; {facts['cpu']}, {facts['cores']} core(s){memory}"
    if facts["variables"]:
        yield "variables", " ".join(f"{name}={value}" for name, value in facts["variables"].items())
    yield "packages", ", ".join(f"{name} {each['version'] or 'MISSING'}" for name, each in facts["packages"].items())
    yield from _torch_lines(facts["torch"])
    for folders, disk in facts["disks"].items():
        refused = f"; refuses {', '.join(disk['refuses'])}" if disk["refuses"] else ""
        yield "disk", f"{readable_size(disk['free'])} free for {folders}{refused}"
    yield from _data_lines(facts["data"])
    for name, extra in facts["extras"].items():
        has = ", ".join(f"{package} {version}" for package, version in extra["installed"].items())
        lacks = f"{extra['install']} adds {', '.join(extra['missing'])}" if extra["missing"] else ""
        yield "extra", f"{name} ({extra['adds']}): {'; '.join(filter(None, (has, lacks)))}"
    for problem in facts["problems"]:
        yield "PROBLEM", problem
    if not facts["problems"]:
        yield "verdict", "nothing is missing that a run needs"


def _torch_lines(torch: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "fault" in torch:
        yield "torch", f"cannot be used: {torch['fault']}"
        return
    yield "torch", f"built for {torch['built_for']}, {torch['threads']} CPU thread(s)"
    for gpu in torch["gpus"]:
        yield "gpu", f"{gpu['name']}, {readable_size(gpu['memory'])}, compute capability {gpu['capability']}"
    yield "device", f"{torch['device']} ({torch['reason']})"
    kernels, flash = torch["attention"]["sdpa"], torch["attention"]["flash"]
    yield "attention", f"{', '.join(kernels) or 'no kernel'} of torch; {flash or 'attention=flash can be used'}"
    if torch["compiler"] is None:
        yield "compiler", "not tried"
    elif torch["compiler"]["fault"]:
        yield "compiler", f"compile=block and full cannot be used: {torch['compiler']['fault']}"
    else:
        yield "compiler", "works (compile=block, compile=full)"


def _data_lines(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "fault" in data:
        yield "data", f"cannot be read: {data['fault']}"
        return
    for one in data["found"]:
        kind = "STAND-IN, " if one.get("stand_in") else "changed since it was built, " if one.get("modified") else ""
        about = one.get("fault") or f"{kind}{counts_in_words(one.get('counts'))} ({one['content_hash'][:12]})"
        yield "data", f"{one['path']}: {about}"
    if not data["found"]:
        yield "data", "none yet below data/; generated data sets are built at the first launch that names them"
    for command in data["missing"].values():
        yield "to build", command
