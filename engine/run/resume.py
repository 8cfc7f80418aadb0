"""A run's name, its identity, and the config it goes on with.

`resume=true` takes the stored config, interpolations and all, as the base and puts the command line's values on top, so
that `resume=true run_name=x` needs nothing else and a changed value reaches everything that was derived from it.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from engine.cli.keys import keys_of
from engine.config import ConfigSource, RunConfig, merge_for_resume, resolved_container, source_of, stored_origin
from engine.errors import UsageError
from engine.fields import value_at
from engine.io import print_rank0, sha256_json, user_path
from engine.run import rundir
from engine.run.before import as_written, has_key, value_before
from engine.run.environment import data_change
from engine.run.files import expand_pattern, read_json, read_yaml
from engine.run.identity import completed, identity_of, same_run, with_deleted
from engine.run.parent import REPORT, SUFFIX, is_sweep_job, report_run_dir
from engine.run.stored import stored_text
from engine.schema import structure, with_defaults

C = TypeVar("C", bound=RunConfig)
NAME_LENGTH = 8  # hex digits of the identity in a default run name: enough to tell the runs of one project apart


def identity(config: RunConfig) -> dict[str, Any]:
    """The resolved config without device, logging, budget and launch keys."""
    source = source_of(config)
    return identity_of(with_deleted(source.resolved, source.overrides), without=config.NOT_IDENTITY)


def from_source(config: C, source: ConfigSource) -> C:
    """`config` read again from `source` (itself, if that is where it came from)."""
    if source is source_of(config):
        return config
    source = replace(source, resolved=with_defaults(type(config), source.resolved))
    fresh: Any = structure(type(config), source.resolved)
    vars(fresh)["_source"] = source
    return fresh


def with_run_name(config: C) -> C:
    """`config` with a run name: a null one becomes `<config name>-<identity>`, the same for the same experiment."""
    source = source_of(config)
    if config.run_name is not None:
        return config
    stem = (source.config_name or "run").removeprefix("cfg_")
    full, usual = identity(config), {field.name: field.default for field in fields(config)}
    # Keys that came later stay out at their defaults, so that their coming renamed no run.
    told = {key: value for key, value in full.items() if key not in config.BEFORE or value != usual[key]}

    digest, suffix = sha256_json(told)[:NAME_LENGTH], os.environ.get(SUFFIX, "")

    today = from_source(config, _edited(source, {"run_name": f"{stem}-{digest}{suffix}"}))
    older = {} if run_dir(today).exists() else _named_otherwise(today, stem, suffix)
    return from_source(config, _edited(source, older)) if older else today


def _named_otherwise(config: RunConfig, stem: str, suffix: str) -> dict[str, str]:
    """run_name (and run_dir, where that is not enough) of a run of this identity from before its keys, defaults or
    names changed; empty without one.

    A job's number of then is looked for beside its suffix of today.
    """
    report = os.environ.get(REPORT)
    endings = dict.fromkeys([suffix, *([f"_{Path(report).stem}", ""] if report and suffix else [])])
    usual, name = str(run_dir(config)), str(config.run_name)
    places = [usual] if config.run_dir or config.project_name else [usual, f"checkpoints/None/{name}"]
    asked = claim(config, "")
    for place, ending in itertools.product(places, endings):
        tail = "[0-9a-f]" * NAME_LENGTH + glob.escape(ending)
        pattern = glob.escape(place).replace(glob.escape(name), f"{glob.escape(stem)}-{tail}")
        for folder in sorted(glob.glob(pattern)):
            known = read_json(Path(folder, "identity.json")).get("config")
            if not isinstance(known, dict) or (ending != suffix and known.keys() & config.BEFORE.keys()):
                continue
            found = re.search(f"{re.escape(stem)}-[0-9a-f]{{{NAME_LENGTH}}}{re.escape(ending)}", folder)
            if found and same_run(known, asked["identity"], later=asked["later"], complete=asked["complete"]):
                return {"run_name": found[0], **({} if place == usual else {"run_dir": folder})}
    return {}


def run_dir(config: RunConfig) -> Path:
    """Where the run writes: `run_dir`, else checkpoints/<project>/<run name>."""
    path = user_path(config.run_dir or f"checkpoints/{config.project_name or 'runs'}/{config.run_name}")
    return path.resolve() if ".." in path.parts else path  # `a/../a` ends to exist when `a` is set aside


def decide(config: RunConfig, entry: str) -> ConfigSource:
    """The config that this launch trains with: under resume=true the stored one is the base. Only reads."""
    config = with_run_name(config)
    if config.resume != "true":
        found = unfinished(config, entry)
        return source_of(config if found is None else _as_it_began(config, found))
    path = rundir.find_resumable(run_dir(config), **claim(config, entry))
    return source_of(stored_config(path, config, run_dir=path))


def open_directory(config: RunConfig, entry: str) -> rundir.RunDirectory:
    """Rank 0: pick, lock and prepare the run directory."""
    branch = None if config.resume_from == "latest" else config.resume_from
    opened = rundir.open_run(run_dir(config), **claim(config, entry), resume=config.resume, resume_from=branch)
    report_run_dir(opened.path)
    return opened


def find_branch(config: RunConfig, entry: str) -> Path | None:
    """The checkpoint of another run that this launch begins a new run with. Only reads."""
    if config.resume_from == "latest":
        return None
    asked = claim(config, entry)
    return rundir.find_branch(run_dir(config), **asked, resume=config.resume, resume_from=config.resume_from)


def check_data(run: Path, extra: Mapping[str, Any], cards: Iterable[Mapping[str, Any]]) -> None:
    """A run goes on with the data that it began with, wherever they lie now. `extra` is its checkpoint's.

    Raises: UsageError that names what is new, changed or missing.
    """
    environment = read_json(run / "environment.json")
    began = extra.get("data") or environment.get("data_cards")
    then = {str(card.get("path")): card.get("content_hash") for card in began or [] if isinstance(card, Mapping)}
    now = {str(card.get("path")): card.get("content_hash") for card in cards}
    for card in cards:
        if (change := data_change(extra, environment, card)) is not None:
            raise UsageError(
                f"{card['path']} is not what this run began with ({change}): "
                "put the old data back, or start a new run (resume=false)"
            )
    others = "a new run takes other data (resume=false, or another run_dir)"
    new = [path for path, found in now.items() if then and path not in then and found not in then.values()]
    if new:
        raise UsageError(f"{new[0]} is not among the data that this run began with ({', '.join(then)}): {others}")
    gone = [path for path, found in then.items() if path not in now and found not in now.values()]
    if gone:
        raise UsageError(f"this run began with {', '.join(gone)} too, which this command leaves out: {others}")


def begins(config: RunConfig, entry: str) -> bool:
    """Whether this launch starts a run, rather than going on with one that has a checkpoint. Only reads."""
    if config.resume == "true" or config.resume_from != "latest":
        return False
    return unfinished(config, entry) is None


def unfinished(config: RunConfig, entry: str) -> Path | None:
    """The run that resume=auto goes on with. Only reads."""
    if config.resume != "auto" or config.resume_from != "latest":
        return None
    return rundir.find_unfinished(run_dir(config), **claim(config, entry))


def _as_it_began(config: C, folder: Path) -> C:
    """`config` with what the run in `folder` does where it is older than a key: it goes on as it began."""
    known = read_json(folder / "identity.json").get("config")
    ours = source_of(config).resolved
    later = [key for key in config.before if has_key(ours, key) and isinstance(known, dict) and not has_key(known, key)]
    if not later:
        return config
    stored = OmegaConf.to_container(OmegaConf.create(stored_text(folder)), resolve=False)
    text = OmegaConf.to_container(OmegaConf.create(source_of(config).yaml), resolve=False)
    kept = {key: as_written(value_at(stored, key, config.before[key]), text, ours) for key in later}
    return from_source(config, _edited(source_of(config), kept))


def finished_before(config: RunConfig, entry: str) -> dict[str, float | None] | None:
    """The results of the finished run that this launch would repeat, if it is to be skipped. Says so.

    In a sweep that is the default: the same command goes on where a stopped sweep was. `max_steps` is no part of the
    identity, so another value is another wish.
    """
    skip = is_sweep_job() if config.skip_finished is None else config.skip_finished
    if not skip or config.resume != "auto" or config.resume_from != "latest":
        return None
    found = rundir.find_finished(run_dir(config), **claim(config, entry))
    if found is None or read_yaml(found / "config.resolved.yaml").get("max_steps", ...) != config.max_steps:
        return None
    summary = read_json(found / "summary.json")
    if not isinstance(summary.get("results"), dict) or "step" not in summary:
        return None  # its results cannot be told: it is run again
    report_run_dir(found)
    print_rank0(f"{found}: done already (step {summary['step']}); skip_finished=false runs it again")
    return summary["results"]


def claim(config: RunConfig, entry: str) -> dict[str, Any]:
    """What finds the runs that this launch may go on with."""
    source = source_of(config)
    said = {word.lstrip("+").partition("=")[0] for word in source.overrides}
    # What the command itself says counts, unless it says what was done before there was the key.
    later = [
        key
        for key, value in config.before.items()
        if key not in said or value_at(source.resolved, key) == value_before(value, source.resolved)
    ]
    pattern = os.path.expanduser(expand_pattern(source.yaml))
    return {
        "identity": identity(config), "entry": entry, "pattern": pattern, "later": later,
        "complete": partial(completed, schema=type(config)),
    }  # fmt: skip


def stored_config(folder: Path, config: C, groups: Iterable[str] = (), *, run_dir: Path | None = None) -> C:
    """The config of the run in `folder` with this command's value overrides on top; it goes on in `run_dir`.

    Raises:
        UsageError: a group change, a `~` deletion, an unknown key, or no readable config.yaml in `folder`.
    """
    asked = source_of(config)
    text = stored_text(folder)
    schema: Any = type(config)
    merged = merge_for_resume(
        text, asked.overrides, groups=[*asked.choices, *groups], before=config.before, declared=keys_of(schema)
    )
    merged.resume_from = config.resume_from  # this launch's, never where the run once began
    header = text.partition("\n")[0] + "\n"
    resolved = resolved_container(merged)
    if run_dir is not None:  # a time-stamped name would resolve to a new time
        resolved["run_dir"] = str(run_dir)
    source = replace(
        asked, yaml=header + OmegaConf.to_yaml(merged, resolve=False), resolved=resolved, **stored_origin(text)
    )  # fmt: skip
    return from_source(config, source)


def _edited(source: ConfigSource, values: Mapping[str, Any]) -> ConfigSource:
    header, _, _ = source.yaml.partition("\n")
    config = OmegaConf.create(source.yaml)
    assert isinstance(config, DictConfig)
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    return replace(
        source, yaml=f"{header}\n{OmegaConf.to_yaml(config, resolve=False)}", resolved=resolved_container(config)
    )
