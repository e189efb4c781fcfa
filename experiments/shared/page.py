"""HTML pages that need no other file, for light and dark screens."""

import html
import io
import re
from collections.abc import Sequence
from typing import Any

LIGHT = (
    "#0a5fb4", "#b8450a", "#157a37", "#b3261e", "#6a35c2",
    "#7a4a25", "#a81f86", "#52606d", "#6b6600", "#0b7285",
)  # fmt: skip
"""Colours of matplotlib's C0 to C9 on white."""
DARK = (
    "#6cb4ff", "#ff9d5c", "#5fd68a", "#ff8a80", "#b9a1ff",
    "#d6a77a", "#ff8ad8", "#a9b4c0", "#d6d04a", "#4fd3e6",
)  # fmt: skip
INK, PAPER = ("#1b1f24", "#e6e8eb"), ("#ffffff", "#14171a")
"""Of text and of the background, on light and dark screens."""
_NUMBER = re.compile(r"[-+]?[\d.]|-?$")
_GRID = ("#d4d8dd", "#3a4047")
_CYCLE = (
    "1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd",
    "8c564b", "e377c2", "7f7f7f", "bcbd22", "17becf",
)  # fmt: skip
_NAMES = {
    **{f"#{colour}": f"var(--c{n})" for n, colour in enumerate(_CYCLE)},
    "#000000": "var(--ink)",
    "#262626": "var(--ink)",
    "#ffffff": "var(--paper)",
    "#b0b0b0": "var(--grid)",
}


def _colours(number):
    found = {f"c{n}": each for n, each in enumerate((LIGHT, DARK)[number])}
    found |= {"ink": INK[number], "paper": PAPER[number]}
    found["grid"] = _GRID[number]
    return "".join(f"--{name}:{colour};" for name, colour in found.items())


_COLOURS = f"""
:root {{ color-scheme: light dark; {_colours(0)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_colours(1)} }} }}
svg text {{ fill: var(--ink); }}
"""
_STYLE = f"""{_COLOURS}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 82rem; background:
  var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }}
h1, h2, p, li, summary {{ overflow-wrap: anywhere; }}
h2 {{ margin-top: 2.5rem; border-top: 1px solid var(--grid); }}
a {{ color: var(--c0); }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.2rem 0.8rem 0.2rem 0; vertical-align: top;
  border-bottom: 1px solid var(--grid); }}
td {{ white-space: nowrap; }}
td, th {{ text-align: right; }}
.word {{ text-align: left; }}
.words td {{ white-space: normal; overflow-wrap: anywhere; }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ margin: 1rem 0 0; flex: 1 1 20rem; max-width: 40rem; min-width: 0; }}
.wide {{ max-width: none; overflow-x: auto; }}
.wide svg {{ min-width: 40rem; }}
svg {{ width: 100%; height: auto; display: block; }}
.warn {{ border-left: 4px solid var(--c1); padding-left: 0.7rem; }}
.fail {{ border-left: 4px solid var(--c3); padding-left: 0.7rem; }}
"""


def page(title: str, body: Sequence[str]) -> str:
    """Returns a page of HTML."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, '
            'initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            *body,
            "</html>\n",
        ]
    )


def table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = ""
) -> str:
    """Returns a table of HTML; with ``kind="words"`` its lines may wrap."""
    left = [
        kind == "words" or any(not _NUMBER.match(str(row[n])) for row in rows)
        for n in range(len(rows[0]))
    ]

    def line(tag, cells):
        found = (
            f"<{tag}{' class=word' * is_left}>{html.escape(str(cell))}</{tag}>"
            for cell, is_left in zip(cells, left, strict=True)
        )
        return f"<tr>{''.join(found)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    top = f"<thead>{line('th', head)}</thead>" if head else ""
    return (
        f'<div class="scroll"><table class="{kind}">{top}'
        f"<tbody>{body}</tbody></table></div>"
    )


def svg(figure: Any, name: str, alone: bool = False) -> str:
    """Returns a figure whose colours are those of the page.

    Args:
        figure: of matplotlib, in its default colours.
        name: what is drawn, for those who cannot see it; it also keeps the
            drawing's parts from those of others on the page.
        alone: whether it is to be a file of its own.
    """
    import matplotlib

    drawing = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            drawing, format="svg", transparent=True, metadata={"Date": None}
        )
    text = "<svg" + drawing.getvalue().partition("<svg")[2]
    for colour, variable in _NAMES.items():
        text = text.replace(colour, variable)
    own = re.sub(r"\W+", "-", name)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{own}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    label = html.escape(name, quote=True)
    style = f"<style>{_COLOURS}</style>" if alone else ""
    first, _, rest = text.partition(">")
    first = re.sub(r' (width|height)="[^"]*"', "", first)
    return f'{first} role="img" aria-label="{label}">{style}{rest}'
