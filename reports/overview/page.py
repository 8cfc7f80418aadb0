"""The report as one static HTML page that loads nothing; pictures are embedded."""

from __future__ import annotations

import base64
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from engine.io import sha256_json
from reports.overview.charts import (
    DASHES,
    LINES,
    chosen_metrics,
    draw_chart,
    draw_histogram,
    draw_strip,
    histograms,
    line_colours,
    lines_of,
)
from reports.overview.collect import Overview, RunView
from reports.overview.tables import comparison_table, difference_table, places_in_common, result_table, run_table
from reports.page import html_page
from reports.plots import Axis
from reports.tables import Table

MARK = "Loopforge report"
"""Mark in the first bytes of every report."""
SAMPLE, PICTURES, LARGEST_PICTURE = 2_000, 2, 4_000_000
"""Most characters of a text sample, most pictures of a run, most bytes of a picture."""
Drawings = Mapping[Path, Sequence[tuple[str, bytes]]]
"""Folder of a run -> (caption, PNG) of pictures drawn for this page."""
Verdicts = Mapping[Path, tuple[str, Sequence[str]]]
"""Folder of a run -> (PASS, WARN or FAIL; a line for each fault)."""


def report_page(
    overview: Overview,
    *,
    metrics: Sequence[str] = (),
    smoothing: float = 0.6,
    verdicts: Verdicts | None = None,
    pictures: bool = True,
    drawings: Drawings | None = None,
    notes: Sequence[str] = (),
    place: Path | None = None,
) -> str:
    """The whole page.

    Args:
        metrics: patterns of the curves to draw.
        smoothing: weight of the past, in [0, 1).
        pictures: whether to show pictures in the run folders; `drawings` are always shown.
        notes: further notes, after those of the overview.
        place: the folder of the page, from which pages in the runs are linked.
    """
    drawn, left_out = chosen_metrics(overview, metrics)
    times = [name for name in ("time/step_ms", "time/tokens_per_s", "time/examples_per_s") if _has(overview, name)]
    charts = [(name, *draw_chart(name, lines_of(overview, name), smoothing)) for name in (*drawn, *times)]
    curves = "".join(html for name, html, _ in charts if name in drawn)
    speeds = "".join(html for name, html, _ in charts if name in times)
    halting = "".join(draw_histogram(name, lines) for name, lines in histograms(overview).items())
    more = f'<p class="note">Not drawn: {escape(", ".join(left_out))} (--curves PATTERN draws them).</p>'
    notes = [*overview.notes, *notes]
    sections = [
        ("Runs", table_html(run_table(overview)) + _commands(overview)),
        ("Comparison", _comparison(overview)),
        ("Settings that differ", _differences(overview)),
        (
            "Curves",
            _legend(overview) + _slider(smoothing) + f'<div class="charts">{curves}</div>{more * bool(left_out)}',
        ),
        ("Throughput", f'<div class="charts">{speeds}</div>' if speeds else ""),
        # after the charts that the script smooths, which it counts from the top of the page
        ("Halting", f'<div class="charts">{halting}</div>' if halting else ""),
        ("Samples and thinking", "".join(_samples(overview, pictures, drawings or {}, place))),
        ("Data", "".join(_cards(overview))),
        ("Verification", _verification(overview, verdicts)),
        ("Final figures", table_html(result_table(overview)) if overview.cells else ""),
        ("Notes", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in notes)}</ul>" * bool(notes)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{html}</section>" for title, html in sections if html)
    here = Path(__file__).parent
    return html_page(
        title=title_of(overview),
        generator=MARK,
        facts=_facts(overview),
        body=f"<main>{body}</main>",
        colours=line_colours(),
        style=_line_styles() + (here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
        data={"charts": [data for _, _, data in charts]},
    )


def title_of(overview: Overview) -> str:
    """`24 runs in 8 cells`, or the name of a single run."""
    runs, cells = len(overview.runs), len(overview.names)
    return overview.runs[0].name if runs == 1 else f"{runs} runs in {cells} cell{'s' * (cells > 1)}"


def _facts(overview: Overview) -> list[tuple[str, str]]:
    finished = sum(run.finished is not None for run in overview.runs)
    facts = [("Finished", f"{finished} of {len(overview.runs)}")]
    if overview.metric:
        facts.append(("Compared by", f"{overview.metric} ({overview.better} is better)"))
    return [*facts, *((name.capitalize(), value) for name, value in places_in_common(overview).items())]


def table_html(table: Table, strips: Sequence[str] = ()) -> str:
    """A table that scrolls sideways if needed; `strips`: HTML of an additional last column."""
    head = "".join(f"<th>{escape(column.heading)}</th>" for column in table.columns) + "<th></th>" * bool(strips)
    rows = ""
    for number, row in enumerate(table.rows):
        cells = "".join(
            f'<td class="{"t" if column.kind == "text" else "n"}">{escape(column.show(value))}</td>'
            for column, value in zip(table.columns, row, strict=True)
        )
        rows += f"<tr>{cells}{f'<td>{strips[number]}</td>' if strips else ''}</tr>"
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _commands(overview: Overview) -> str:
    """The command of each run, for copying."""
    items = ""
    for run in overview.runs:
        words = run.environment.get("command")
        if isinstance(words, list) and words:
            shown = [
                Path(str(words[0])).name,
                *(str(word) for word in words[1:] if not str(word).startswith("++hydra")),
            ]
            items += f"<li>{escape(run.name)}: <code>python {escape(shlex.join(shown))}</code></li>"
    return f"<details><summary>Commands</summary><ul>{items}</ul></details>" if items else ""


def _comparison(overview: Overview) -> str:
    if not overview.cells:
        return ""
    shown = [value for each in overview.compared.values() for value in each["score"]["values"]]
    axis = Axis(shown, 6.0, 168.0)
    strips = [
        draw_strip(each["score"]["values"], each["score"]["t"], axis, overview.names.index(name))
        for name, each in overview.compared.items()
    ]
    text = (
        f"{overview.metric}, {overview.better} is better, of the final evaluations. Intervals are Student's t over "
        f"seeds; differences are from {overview.reference}, paired by seed. Dots are seeds, the stroke is their mean; "
        "a bar that reaches an edge continues beyond it."
    )
    return f'<p class="note">{escape(text)}</p>{table_html(comparison_table(overview), strips)}'


def _differences(overview: Overview) -> str:
    table = difference_table(overview)
    if not table.rows or len(table.columns) == 1:
        return '<p class="note">None but the seed.</p>' if len(overview.runs) > 1 else ""
    return table_html(table)


def _legend(overview: Overview) -> str:
    items = "".join(
        f'<li><svg class="c{number % len(LINES)}" viewBox="0 0 26 8" aria-hidden="true"><path d="M0 4H26" '
        f'stroke-dasharray="{DASHES[number // len(LINES) % len(DASHES)]}"/></svg>{escape(name)}</li>'
        for number, name in enumerate(overview.names)
    )
    return f'<ul class="legend">{items}</ul>'


def _slider(smoothing: float) -> str:
    return (
        '<label class="slide" hidden>Smoothing <input id="smoothing" type="range" min="0" max="0.98" step="0.02" '
        f'value="{smoothing}"><output id="smoothed">{smoothing:.2f}</output></label>'
    )


def _samples(overview: Overview, pictures: bool, drawings: Drawings, place: Path | None) -> Iterator[str]:
    """The newest text sample of each run, its pictures, and links to its pages."""
    for run in overview.runs:
        shown = [(path.stem.replace("_", " "), path.read_bytes()) for path in pictures_of(run)] if pictures else []
        shots = "".join(_picture(name, png) for name, png in (*shown, *drawings.get(run.path, ())))
        text = _newest_sample(run) + ("" if place is None else _links(run, place))
        if shots or text:
            yield f'<h3>{escape(run.name)}</h3>{text}<div class="shots">{shots}</div>'


def pictures_of(run: RunView) -> list[Path]:
    """Pictures in the run folder (of visualize.py and train_animal.py), the newest first."""
    pictures = [path for path in run.path.glob("*.png") if path.is_file() and path.stat().st_size <= LARGEST_PICTURE]
    return sorted(pictures, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)[:PICTURES]


def _picture(name: str, png: bytes) -> str:
    encoded, name = base64.b64encode(png).decode(), escape(name)
    image = f'<img src="data:image/png;base64,{encoded}" alt="{name}">'
    return f'<figure><figcaption>{name}</figcaption><div class="pan" tabindex="0">{image}</div></figure>'


def _links(run: RunView, place: Path) -> str:
    """Links to the pages of visualize.py and train_animal.py in the run, relative to this page."""
    files = sorted([*run.path.glob("*.html"), *run.path.glob("evaluations/*.html")])
    links = [
        f'<a href="{escape(quote(os.path.relpath(file.absolute(), place)))}">{escape(file.name)}</a>' for file in files
    ]
    return f'<p class="note">Pages in the run: {", ".join(links)}</p>' if links else ""


def _newest_sample(run: RunView) -> str:
    files = sorted(run.path.glob("samples/*.txt"), key=lambda path: (path.stat().st_mtime, path.name))
    if not files:
        return ""
    text = files[-1].read_text(encoding="utf-8", errors="replace")
    cut = f"\n[{len(text) - SAMPLE:,} characters more]" if len(text) > SAMPLE else ""
    return f'<p class="note">{escape(files[-1].name)}</p><pre>{escape(text[:SAMPLE] + cut)}</pre>'


def _cards(overview: Overview) -> Iterator[str]:
    """Each data set once, with the runs that used it."""
    users: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for run in overview.runs:
        for card in run.data:
            users.setdefault(sha256_json(card), (card, []))[1].append(run.name)
    for card, names in users.values():
        title = f"{card.get('path')} ({str(card.get('content_hash'))[:12]})"
        facts = [str(card["source"])] if "source" in card else []
        facts += ["STAND-IN DATA"] if card.get("stand_in") else []
        facts += ["changed since it was built"] if card.get("modified") else []
        used = "all runs" if len(names) == len(overview.runs) else ", ".join(names)
        content = json.dumps(card, indent=1, ensure_ascii=False)
        yield (
            f'<h3>{escape(title)}</h3><p class="note">{escape("; ".join([*facts, f"used by {used}"]))}</p>'
            f"<details><summary>Card</summary><pre>{escape(content)}</pre></details>"
        )


def _verification(overview: Overview, verdicts: Verdicts | None) -> str:
    if verdicts is None:
        return ""
    items = ""
    for run in overview.runs:
        verdict, lines = verdicts.get(run.path, ("SKIP", ("not checked",)))
        below = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
        items += f"<li>{escape(run.name)}: {escape(verdict)}{below}</li>"
    return f'<p class="note">The stored config of each run against the code of today.</p><ul>{items}</ul>'


def _line_styles() -> str:
    return "".join(
        f".c{number} path,path.c{number}{{stroke:var(--line-{number})}}"
        f".c{number} circle,circle.c{number}{{fill:var(--line-{number})}}\n"
        for number in range(len(LINES))
    )


def _has(overview: Overview, metric: str) -> bool:
    return any(metric in run.curves for run in overview.runs)
