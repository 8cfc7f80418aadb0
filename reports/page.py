"""The HTML frame of every page that a command writes: one static file that loads nothing.

Colours are CSS variables with a light and a dark value; a page adds its own, its style and its script to the shared
ones (`page.css`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Colours = Mapping[str, tuple[str, str]]
"""Name of a CSS variable -> (in light, in dark mode)."""
COLOURS: Colours = {
    "page": ("#f4f6f8", "#0f141b"),
    "card": ("#ffffff", "#181f29"),
    "ink": ("#1b2430", "#e8edf4"),
    "muted": ("#556070", "#a3afbf"),
    "hair": ("#c5ccd6", "#3a4656"),
    "line": ("#3b4757", "#9aa8ba"),
    "control": ("#6d7a8b", "#7d8b9e"),
    "accent": ("#1f57c3", "#7fb0ff"),
    "on-accent": ("#ffffff", "#0f141b"),
}
SECURITY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def html_page(
    *,
    title: str,
    generator: str,
    facts: Sequence[tuple[str, str]],
    body: str,
    colours: Colours | None = None,
    style: str = "",
    script: str = "",
    data: Mapping[str, Any] | None = None,
) -> str:
    """The whole page: title and facts as its head, then `body`.

    Args:
        generator: the command that wrote it; it is in the first bytes, so that the file can be recognised.
        facts: (name, value) pairs below the title.
        body: HTML, escaped already.
        colours: further CSS variables of this page.
        style: CSS after the shared rules.
        script: JavaScript, run at the end.
        data: JSON for the script, in the element `#data`.
    """
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    shared = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    scripts = "" if data is None else f'<script type="application/json" id="data">{_embedded(data)}</script>\n'
    scripts += f"<script>\n{script}</script>\n" if script else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{escape(generator)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{SECURITY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{colours_css({**COLOURS, **(colours or {})})}
{shared}{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<dl>{pairs}</dl>
</header>
{body}
{scripts}</body>
</html>
"""


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def colours_css(colours: Colours) -> str:
    """The CSS variables: light, or dark if the system prefers it; data-theme overrides either."""
    light, dark = (" ".join(f"--{name}:{pair[mode]};" for name, pair in colours.items()) for mode in (0, 1))
    return (
        f":root{{color-scheme:light; {light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark; {dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark; {dark}}}"
    )
