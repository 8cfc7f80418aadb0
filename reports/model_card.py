"""The model card of an exported run: README.md with the YAML header that the Hugging Face Hub reads.

It is read from the run: recipe and changed keys, data cards, the evaluation of the exported step, and the runs in the
same folder that differ only in their seed. The exporter passes what only it knows (its classes, how to load them).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from engine.errors import UsageError
from engine.run.files import is_finished, read_json
from evaluators.intervals import wilson
from reports.machine.installation import home_shortened
from reports.naming import as_text
from reports.runs import data_cards, read_metrics
from reports.statistics import summarize
from reports.study import leaves
from reports.tables import Column, Table

if TYPE_CHECKING:
    from engine.checkpoint.manifest import Checkpoint  # needs torch, and a command line is read before that

Verify = Callable[[Path], tuple[str, Sequence[str]]]
"""Run -> (PASS, WARN, FAIL or SKIP; a line for each fault)."""
CARD = "README.md"
LONGEST = 2_000
"""Most characters of an entry of a data card; longer ones are lists of names, which are left out."""
UNSTATED = "unknown"
"""The Hub's identifier for weights without a stated licence."""
HEADER = "composed from "


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for facts that no run records."""
    parser.add_argument(
        "--license",
        type=_identifier,
        default=UNSTATED,
        metavar="ID",
        help=f"of the weights, for the model card; default: {UNSTATED}",
    )


def _identifier(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected an identifier of the Hub, such as mit")
    return text


def model_card(
    checkpoint: Checkpoint,
    *,
    name: str,
    weights: str,
    model: Mapping[str, Any],
    loading: str,
    library: str = "loopforge",
    tags: Sequence[str] = (),
    license: str = UNSTATED,
    verify: Verify | None = None,
) -> str:
    """The text of README.md.

    Args:
        checkpoint: the exported checkpoint; the other files of its run are read, too.
        name: name of the exported folder.
        weights: `ema` or `raw`.
        model: rows about the model, including `parameters`.
        loading: Python code that loads the folder.
        license: identifier of the Hub (mit, apache-2.0, cc-by-4.0, ...).
        verify: the path verification of a run (verification.static.run_verdict).
    """
    run = checkpoint.path.parent.parent
    environment, summary = read_json(run / "environment.json"), read_json(run / "summary.json")
    cards = data_cards(environment)
    results = results_at(run, checkpoint.step)
    settings = {key: as_text(value) for key, value in leaves(checkpoint.config.get("arch") or {})}
    parts = [
        f"---\n{_header(name, library, tags, license, results, cards, _part(checkpoint.config))}---",
        f"# {name}",
        _rows(
            {
                **model,
                "weights": f"{'averaged over training (EMA)' if weights == 'ema' else 'raw'}, step {checkpoint.step:,}",
            }
        ),
        "## Loading",
        f"```python\n{loading.strip()}\n```",
        "## Training",
        _rows(_training(checkpoint, environment, summary)),
        _changed(run),
        _folded("Architecture: all keys", _rows(settings)),
        "## Data",
        *[_data(card) for card in cards],
        *([] if cards else ["The run keeps no data card."]),
        "## Results",
        _results(checkpoint, run, results, cards, summary, weights),
        "## Seeds",
        _seeds(checkpoint, run, summary),
        "## Verification",
        _verification(verify, run),
        "## Licence",
        _licence(license, cards),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return home_shortened(text.replace(str(run.absolute()), run.name))


def results_at(run: Path, step: int) -> dict[str, float]:
    """The evaluation of `step`: from summary.json if the run ended there, else from metrics.jsonl."""
    figures: dict[str, Any] = {}
    try:
        for line in read_metrics(run):
            if line.get("step") == step:
                figures |= line
    except UsageError:
        pass  # a checkpoint copied without its run
    summary = read_json(run / "summary.json")
    if summary.get("step") == step and isinstance(summary.get("results"), dict):
        figures |= summary["results"]
    return {
        key: float(value)
        for key, value in figures.items()
        if key.startswith(("val/", "eval/")) and type(value) in (int, float)
    }


def _header(
    name: str,
    library: str,
    tags: Sequence[str],
    license: str,
    results: Mapping[str, float],
    cards: Sequence[Mapping[str, Any]],
    part: str,
) -> str:
    """The YAML header, with the figures as the Hub's model-index; `part`: the part of the split they cover."""
    reported = {key: value for key, value in results.items() if key.startswith("eval/")} or results
    header: dict[str, Any] = {"license": license, "library_name": library, "tags": ["loopforge", *tags]}
    data = ", ".join(_title(card) for card in cards)
    if reported and data:
        data += f" ({part})" if part and reported is not results else ""
        metrics = [{"type": key.partition("/")[2], "value": round(value, 6)} for key, value in reported.items()]
        task, dataset = {"type": tags[0] if tags else "other"}, {"name": data, "type": "local"}
        header["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return str(yaml.safe_dump(header, sort_keys=False, allow_unicode=True))


def _training(checkpoint: Checkpoint, environment: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    config, git = checkpoint.config, environment.get("git")
    recipe = _composed(checkpoint.path.parent.parent).get("config_name")
    seconds = summary.get("seconds")
    facts = {
        "script": f"{checkpoint.entry}.py",
        "recipe": recipe,
        "seed": config.get("seed"),
        "steps": f"{checkpoint.step:,}" + (f" of {summary['step']:,}" if type(summary.get("step")) is int else ""),
        "batch": config.get("global_batch_size", config.get("batch_size")),
        "learning rate": config.get("lr", config.get("learning_rate")),
        "hardware": ", ".join(environment.get("accelerators") or []) or f"CPU, {environment.get('cpu_count')} cores",
        "time": f"{seconds:,.0f} s" if type(seconds) in (int, float) else None,
        "torch": environment.get("torch"),
        "commit": f"{git['commit'][:12]}{' with changes' if git.get('diff') else ''}" if git else None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _composed(run: Path) -> dict[str, Any]:
    """The recipe and group choices in the first line of config.yaml; {} if it is unreadable."""
    try:
        with open(run / "config.yaml", encoding="utf-8", errors="replace") as stream:
            first = stream.readline(10_000)
        origin = json.loads(first.partition(HEADER)[2])
    except (OSError, ValueError, RecursionError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _changed(run: Path) -> str:
    """The keys that the command set to values other than the recipe's."""
    try:
        words = (run / "overrides.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        words = []
    shown = [word for word in words if word and not word.lstrip("+").startswith("hydra")]
    if not shown:
        return "All keys have the values of the recipe."
    return "Keys that differ from the recipe:\n\n" + "\n".join(f"- `{word.replace('`', '')}`" for word in shown)


def _title(card: Mapping[str, Any]) -> str:
    return str(card.get("name") or Path(str(card.get("path"))).name)


def _licence_of(card: Mapping[str, Any]) -> str:
    return str(card.get("licence") or ("none: generated" if card.get("source") == "generated" else "not stated"))


def _data(card: Mapping[str, Any]) -> str:
    """The section of one data set: its origin and its card."""
    counts = card.get("counts")
    sizes = (
        {
            f"{split} examples": f"{count['examples']:,}"
            for split, count in counts.items()
            if isinstance(count, dict) and type(count.get("examples")) is int
        }
        if isinstance(counts, dict)
        else {}
    )
    facts = {
        "source": card.get("source"),
        "builder": card.get("builder"),
        "licence": _licence_of(card),
        **sizes,
        "split": card.get("split"),
        "content hash": str(card.get("content_hash"))[:12],
        "stand-in": "YES: it stands in for the data of that name" if card.get("stand_in") else None,
    }
    own = {**card, "path": _title(card)} if Path(str(card.get("path"))).is_absolute() else dict(card)
    short = {
        key: value if len(json.dumps(value)) <= LONGEST else f"(left out: {len(json.dumps(value)):,} characters)"
        for key, value in own.items()
    }
    text = json.dumps(short, indent=1, ensure_ascii=False)
    rows = _rows({key: value for key, value in facts.items() if value is not None})
    return f"### {_title(card)}\n\n{rows}\n\n" + _folded("Data card", f"```json\n{text}\n```")


def _results(
    checkpoint: Checkpoint,
    run: Path,
    results: Mapping[str, float],
    cards: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    weights: str,
) -> str:
    """The table of figures with intervals, then what they cover."""
    if not results:
        return f"No evaluation of step {checkpoint.step:,} is stored with the run."
    table = Table([Column("metric"), Column("value", "number", digits=4), Column("95 % interval")])
    for key, value in results.items():
        if not key.endswith(("_low", "_high")):
            table.add(key, value, _shown(_interval(key, results, checkpoint.config, cards)))
    lines = [table.markdown()]
    splits = summary.get("splits")
    for split, words in splits.items() if isinstance(splits, dict) else ():
        part = _part(checkpoint.config) if split == "eval" and words.startswith("of the test split") else ""
        lines.append(f"`{split}/`: {words}{part and f', {part}'}.")
    lines += [f"Protocol: {meaning}." for meaning in dict.fromkeys(_protocols(run, checkpoint.step))]
    if checkpoint.has_ema and weights == "raw":
        lines.append("These are figures of the averaged weights, and the exported ones are raw.")
    return "\n\n".join(lines)


def _interval(
    key: str, results: Mapping[str, float], config: Mapping[str, Any], cards: Sequence[Mapping[str, Any]]
) -> tuple[float, float] | None:
    """The evaluator's interval; else Wilson's if the figure is a share of independent test examples; else None."""
    if f"{key}_low" in results and f"{key}_high" in results:
        return results[f"{key}_low"], results[f"{key}_high"]
    counts = [(card.get("counts") or {}).get("test") for card in cards]
    if key != "eval/exact_accuracy" or config.get("data_paths_test") or _part(config) or not counts:
        return None
    sizes = [count.get("examples") for count in counts if count and count.get("examples") == count.get("groups")]
    if len(sizes) < len(counts) or not all(type(size) is int for size in sizes) or not 0 <= results[key] <= 1:
        return None
    return wilson(results[key] * sum(sizes), sum(sizes))


def _part(config: Mapping[str, Any]) -> str:
    """Description of the part of its split to which the last evaluation was limited; "" for all of it."""
    limits = {
        name.removeprefix("final_eval_max_"): value
        for name, value in config.items()
        if name.startswith("final_eval_max_") and value is not None
    }
    return " and ".join(f"at most {value} {name}" for name, value in limits.items())


def _shown(interval: tuple[float, float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _protocols(run: Path, step: int) -> Iterator[str]:
    """The meaning stated in every record of this step's evaluation."""
    for file in sorted(run.glob(f"evaluations/step_{step}_*.json")):
        if isinstance(meaning := read_json(file).get("meaning"), str):
            yield meaning


def _seeds(checkpoint: Checkpoint, run: Path, summary: Mapping[str, Any]) -> str:
    """The mean over this run and those in its folder that differ only in their seed."""
    stored = read_json(run / "identity.json")
    own: Any = stored.get("config")
    values: dict[Any, Any] = {}
    name = "eval/" + str(summary.get("name")).partition("/")[2]
    if isinstance(own, dict):
        for folder in sorted(run.absolute().parent.iterdir()):
            other, results = read_json(folder / "identity.json"), read_json(folder / "summary.json").get("results")
            config: Any = other.get("config")
            if not isinstance(config, dict) or not isinstance(results, dict) or not is_finished(folder):
                continue
            if other.get("entry") == stored.get("entry") and {**config, "seed": 0} == {**own, "seed": 0}:
                values[config.get("seed")] = results.get(name)
    figures = [value for value in values.values() if type(value) in (int, float)]
    if len(figures) < 2:
        return f"One run, seed {checkpoint.config.get('seed')}: no figure over seeds can be given."
    stats = summarize(figures)
    low, high = stats["t"] or (stats["mean"], stats["mean"])
    return (
        f"{name} over seeds {', '.join(map(str, sorted(values)))}: mean {stats['mean']:.4f}, 95 % interval "
        f"{low:.4f} to {high:.4f} (Student's t). This is seed {checkpoint.config.get('seed')}."
    )


def _verification(verify: Verify | None, run: Path) -> str:
    if verify is None:
        return "Not asked for."
    verdict, problems = verify(run)
    lines = "".join(f"\n- {' '.join(line.split())}" for line in problems)
    return f"Stored config against the code at export: **{verdict}**" + (f"\n{lines}" if lines else "")


def _licence(license: str, cards: Sequence[Mapping[str, Any]]) -> str:
    weights = "not stated (`--license` of the export states it)" if license == UNSTATED else f"`{license}`"
    data = "; ".join(f"{_title(card)}: {_licence_of(card)}" for card in cards)
    return f"Weights: {weights}. Code: MIT." + (f" Data: {data}." if data else "")


def _rows(facts: Mapping[str, Any]) -> str:
    table = Table([Column(""), Column("")])
    for key, value in facts.items():
        table.add(key, value)
    return table.markdown()


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"
