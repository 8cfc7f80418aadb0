"""The plot of a run: shares of options and of their clusters, before and after."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from reports.canvas import HAIR, INK, MUTED, PAPER, Canvas
from tasks.animal.evaluation import Evaluation, Figures
from tasks.animal.samples import Sample

BEFORE, AFTER = "#b9c1cc", "#2f62c9"
MARGIN, LABEL, BARS, VALUE, ROW, HEAD = 28.0, 330.0, 360.0, 150.0, 36.0, 104.0
HEADLINE_FIGURES = ("valid_fraction", "in_grammar", "ref_kl", "concept_kl", "v_eff", "utility_10")
WIDTH = 2 * MARGIN + LABEL + 16 + BARS + VALUE


def draw(
    evaluation: Evaluation,
    before: Sequence[Sample],
    after: Sequence[Sample],
    first: Figures,
    last: Figures,
    *,
    title: str,
    subtitle: str,
) -> Image.Image:
    """Draw two bars for each option and each of its clusters, labelled with its most typical text, above the main
    metrics."""
    lines = _lines(evaluation, before, after)
    most = max([share for _, _, shares in lines for share in shares], default=0.0) or 1.0
    shown = [name for name in HEADLINE_FIGURES if first.get(name) is not None or last.get(name) is not None]
    bottom = HEAD + len(lines) * ROW + 20
    canvas = Canvas(WIDTH, bottom + 58, 2.0, PAPER)
    canvas.text(MARGIN, 28, title, size=20, colour=INK)
    canvas.text(MARGIN, 52, _cut(canvas, subtitle, 12, WIDTH - 2 * MARGIN), size=12, colour=MUTED)
    for place, (name, colour) in enumerate((("before", BEFORE), ("after", AFTER))):
        canvas.box(MARGIN + 90 * place, 72, 12, 12, fill=colour)
        canvas.text(MARGIN + 18 + 90 * place, 78, name, size=12, colour=MUTED)
    left = MARGIN + LABEL + 16
    for number, (label, bold, shares) in enumerate(lines):
        y = HEAD + (number + 0.5) * ROW
        if bold and number:
            canvas.rule(MARGIN, y - ROW / 2, WIDTH - 2 * MARGIN, down=False, line=0.6, colour=HAIR)
        text = _cut(canvas, label, 13, LABEL - 8 * (not bold))
        canvas.text(left - 16, y, text, size=13, colour=INK if bold else MUTED, bold=bold, anchor="rm")
        for share, colour, top in zip(shares, (BEFORE, AFTER), (y - 12, y + 1), strict=True):
            canvas.box(left, top, max(BARS * share / most, 1.0), 11, fill=colour)
        canvas.text(
            WIDTH - MARGIN,
            y,
            f"{shares[0]:.1%} -> {shares[1]:.1%}",
            size=12,
            colour=INK if bold else MUTED,
            anchor="rm",
        )
    width = (WIDTH - 2 * MARGIN) / max(len(shown), 1)
    for place, name in enumerate(shown):
        x = MARGIN + place * width
        canvas.text(x, bottom + 12, name, size=12, colour=MUTED)
        canvas.text(x, bottom + 32, f"{_text(first, name)} -> {_text(last, name)}", size=13, colour=INK)
    return canvas.image


def _lines(
    evaluation: Evaluation, before: Sequence[Sample], after: Sequence[Sample]
) -> list[tuple[str, bool, tuple[float, float]]]:
    """(label, whether it is an option, (share of all samples before, after)): each option with its clusters, then the
    options of further concepts."""
    counts = [evaluation.histograms(samples) for samples in (before, after)]
    sizes = (max(len(before), 1), max(len(after), 1))
    lines: list[tuple[str, bool, tuple[float, float]]] = []
    for option in evaluation.options:
        named = [sum(sample.valid and sample.option == option for sample in each) for each in (before, after)]
        lines.append((option, True, (named[0] / sizes[0], named[1] / sizes[1])))
        for cluster, text in enumerate(evaluation.typical.get(option, [])):
            shares = [count[option][cluster] / size for count, size in zip(counts, sizes, strict=True)]
            lines.append((text, False, (shares[0], shares[1])))
    further = [evaluation.further_counts(samples) for samples in (before, after)]
    for name, options in evaluation.further.items():
        for option in options:
            first, last = (counts[name][option] / size for counts, size in zip(further, sizes, strict=True))
            lines.append((option, True, (first, last)))
    return lines


def _cut(canvas: Canvas, text: str, size: float, room: float) -> str:
    if canvas.text_width(text, size) <= room:
        return text
    while text and canvas.text_width(f"{text}...", size) > room:
        text = text[:-1]
    return f"{text}..."


def _text(figures: Figures, name: str) -> str:
    value = figures.get(name)
    return "-" if value is None else f"{value:.3g}"
