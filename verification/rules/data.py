"""Data: modes and names. With --data, families judge the contents of existing data sets (`Verification.rules`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from verification.data import DataPath
from verification.finding import Finding
from verification.rule import NotApplicable, finding, need_config, rule
from verification.subject import Subject


def stated_mode(subject: Subject) -> str | None:
    """The data mode that the script's family reads, or requires, or else the model's."""
    need_config(subject)
    reads = subject.family.reads if subject.family else ""
    return reads or subject.requires.get("DATA_MODE") or subject.declares("DATA_MODE")


@rule("DAT510")
def data_mode(subject: Subject) -> Iterator[Finding]:
    stated = stated_mode(subject)
    if not subject.data:
        raise NotApplicable("the config has no data_paths")
    unknown = []
    for entry in subject.data:
        fix = f"point {entry.key} to {stated} data"
        if entry.problem:
            usable = f"name a usable data set in {entry.key}"
            yield finding("DAT510", "FAIL", entry.problem, *subject.trace.key_line(entry.key), usable)
        elif entry.mode is None:
            unknown.append(entry.path)
        elif entry.mode != stated:
            text = f"{entry.path} is {entry.mode} data ({entry.origin}), the script trains in {stated} mode"
            yield finding("DAT510", "FAIL", text, *subject.trace.key_line(entry.key), fix)
        else:
            yield finding("DAT510", "PASS", f"{entry.path}: {entry.mode} ({entry.state})", entry.origin)
    if unknown:
        raise NotApplicable(f"missing and not in the catalog: {', '.join(unknown)}")


@rule("DAT511")
def data_name(subject: Subject) -> Iterator[Finding]:
    stated = stated_mode(subject)
    if not subject.data or stated is None:
        raise NotApplicable("the config has no data_paths, or no data mode is known")
    for entry in subject.data:
        named = "encoder" in Path(entry.path).name.lower()
        if named != (stated == "encoder") and (named or entry.mode != stated):
            text = f"the name {entry.path} does not fit {stated} mode"
            yield finding("DAT511", "WARN", text, *subject.trace.key_line(entry.key))


# --- contents ---------------------------------------------------------------------------------------------------------


def there(subject: Subject) -> list[DataPath]:
    """The usable data sets on this machine. Raises NotApplicable without --data, or if there are none."""
    need_config(subject)
    if not subject.with_data:
        raise NotApplicable("contents are read with --data only")
    sets = [entry for entry in subject.data if entry.state == "there" and not entry.problem]
    if not sets:
        raise NotApplicable("the data set does not exist")
    return sets


# --- judged by families -----------------------------------------------------------------------------------------------


@rule("CFG252", "CFG253", "DAT520", "DAT521", "DAT522", "DAT523", "DAT530", "DAT540", "DAT541", "DAT542")
def of_families(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    mode = subject.declares("DATA_MODE")
    raise NotApplicable(f"families with such data or pretrained parts judge this; the model's data mode is {mode}")
    yield
