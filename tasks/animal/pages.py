"""Report files on the model before and after: metrics and samples as JSON, a table, a plot, and one HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape

from reports.canvas import as_png
from reports.page import html_page
from reports.tables import Column, Table
from tasks.animal.evaluation import MEANINGS, Evaluation, Figures
from tasks.animal.picture import draw
from tasks.animal.samples import Sample

SHOWN = 20
"""Samples before and after on the page; the JSON files have all."""
PARTS = {
    "concept_kl": "concept_kl_of",
    "options_seen": "option_share",
    "cluster_entropy": "cluster_entropy",
    "cluster_kl": "cluster_kl",
}
"""Metric -> prefix of the same metric for single options, which are listed below it."""
WARNING = (
    "Vendi scores, v_eff and distinct-n also grow when texts turn into nonsense: read them together with "
    "valid_fraction, plausible_fraction, ref_kl and base_perplexity."
)
STYLE = """
table{border-collapse:collapse;width:100%;margin:0 0 8px;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--hair)}
td{overflow-wrap:anywhere}
th{font-size:13px;font-weight:600;color:var(--muted)}
td.n{text-align:right;white-space:nowrap}
td.m{color:var(--muted);font-size:13px}
section{margin:0 0 24px;padding:16px;background:var(--card);border:1px solid var(--hair);border-radius:10px}
section h2{margin:0 0 10px}
img{display:block;max-width:100%;height:auto;border-radius:6px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:0 28px}
.bad{color:var(--muted)}
"""


def reports(
    evaluation: Evaluation,
    before: Sequence[Sample],
    after: Sequence[Sample] | None,
    *,
    facts: Mapping[str, str],
) -> dict[str, str | bytes]:
    """File name -> content. Without `after` (before training) only the files of `before`.

    Args:
        evaluation: fitted to `before`.
        facts: name -> value, for the head of table and page: model, prompt, loss.
    """
    first = evaluation.measure(before)
    files: dict[str, str | bytes] = {
        "eval_before.json": _as_json(first, before),
        "eval_samples_before.jsonl": _as_lines(before),
    }
    if after is None:
        return files
    last = evaluation.measure(after)
    facts = {**facts, "samples": f"{len(before)} before, {len(after)} after, temperature 1"}
    picture = as_png(draw(evaluation, before, after, first, last, title="Before and after", subtitle=_line(facts)))
    return files | {
        "eval_after.json": _as_json(last, after),
        "eval_samples_after.jsonl": _as_lines(after),
        "report.md": _markdown(first, last, before, after, facts),
        "before_after.png": picture,
        "report.html": _page(first, last, before, after, facts, picture),
    }


def _as_json(figures: Figures, samples: Sequence[Sample]) -> str:
    return json.dumps({"samples": len(samples), **figures}, indent=2) + "\n"


def _as_lines(samples: Sequence[Sample]) -> str:
    return "".join(json.dumps(sample.as_dict(), ensure_ascii=False) + "\n" for sample in samples)


def _line(facts: Mapping[str, str]) -> str:
    return "   ".join(f"{name}: {value}" for name, value in facts.items() if name in ("loss", "steps", "samples"))


def rows(first: Figures, last: Figures) -> list[tuple[str, str, str, str]]:
    """(metric, before, after, meaning) in the order of MEANINGS, each followed by those of single options."""
    names = [name for name in MEANINGS if name in first or name in last]
    rows = []
    for name in names:
        rows.append((name, show(first, name), show(last, name), MEANINGS[name]))
        parts = [key for key in first | last if name in PARTS and key.startswith(f"{PARTS[name]}_")]
        rows += [(key, show(first, key), show(last, key), "") for key in parts]
    return rows


def show(figures: Figures, name: str) -> str:
    """A metric as text, with its interval if it has one."""
    value, low, high = (figures.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return "-"
    text = f"{value:.3f}"
    return text if low is None or high is None else f"{text} ({low:.3f} .. {high:.3f})"


def _markdown(
    first: Figures, last: Figures, before: Sequence[Sample], after: Sequence[Sample], facts: Mapping[str, str]
) -> str:
    table = Table([Column("figure"), Column("before"), Column("after"), Column("what it is")])
    for row in rows(first, last):
        table.add(*row)
    parts = ["# Before and after", "", *(f"- {name}: {value}" for name, value in facts.items()), "", table.markdown()]
    parts += ["", WARNING, "", "![option shares and clusters](before_after.png)", ""]
    for title, samples in (("before", before), ("after", after)):
        shown = Table([Column("sample"), Column("option"), Column("nats"), Column("under the base")])
        for sample in samples[: SHOWN // 2]:
            shown.add(sample.text, sample.option or sample.reason, f"{-sample.logp:.1f}", f"{-sample.ref_logp:.1f}")
        parts += [f"## Samples {title}", "", shown.markdown(), ""]
    return "\n".join(parts)


def _page(
    first: Figures,
    last: Figures,
    before: Sequence[Sample],
    after: Sequence[Sample],
    facts: Mapping[str, str],
    picture: bytes,
) -> str:
    image = base64.b64encode(picture).decode()
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{escape(old)}</td><td class="n">{escape(new)}</td>'
        f'<td class="m">{escape(meaning)}</td></tr>'
        for name, old, new, meaning in rows(first, last)
    )
    head = "<tr><th>figure</th><th>before</th><th>after</th><th>what it is</th></tr>"
    body = (
        f'<section><h2>Options and clusters</h2><img alt="Shares of options and clusters before and after" '
        f'src="data:image/png;base64,{image}"></section>\n'
        f'<section><h2>Figures</h2><table>{head}{cells}</table><p class="note">{escape(WARNING)}</p></section>\n'
        f'<section class="pair">{_samples("Samples before", before)}{_samples("Samples after", after)}</section>'
    )
    return html_page(
        title="Diversity before and after",
        generator="train_animal.py",
        facts=list(facts.items()),
        body=body,
        style=STYLE,
    )


def _samples(title: str, samples: Sequence[Sample]) -> str:
    lines = "".join(
        f"<tr{'' if sample.valid else ' class=bad'}><td>{escape(sample.text)}</td>"
        f"<td>{escape(sample.option or sample.reason)}</td>"
        f'<td class="n">{sample.logp - sample.ref_logp:+.1f}</td></tr>'
        for sample in samples[:SHOWN]
    )
    head = "<tr><th>sample</th><th>option</th><th>nats over the base</th></tr>"
    return f"<div><h2>{escape(title)}</h2><table>{head}{lines}</table></div>"
