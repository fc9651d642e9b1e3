"""Pictures for the chapters: curves against their limits, bars, tokens."""

import html
import math
import re
from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tokrl.tokenizers import SPECIAL_TOKENS

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's colours, told apart by colour-blind readers too."""

STYLE = {
    "figure.figsize": (6.0, 3.5),
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
# For good, not for the time of a call: leaving a context would also undo what Jupyter
# sets when it first draws, and later figures would not appear.
plt.rcParams.update(STYLE)


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    limits: Mapping[str, float | tuple[Sequence[float], Sequence[float]]] | None = None,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    ylim: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw curves against their known limits.

    lines   {label: (x, y)}
    limits  {label: y} or {label: (x, y)}: each a dashed line, level or curved
    """
    if ax is None:
        _, ax = plt.subplots()
    for label, (x, y) in lines.items():
        ax.plot(x, y, label=label)
    dashed = {"color": "#333333", "linestyle": "--", "linewidth": 1.4}
    for label, limit in (limits or {}).items():
        if isinstance(limit, tuple):
            ax.plot(*limit, label=label, **dashed)
            continue
        ax.axhline(limit, **dashed)
        ax.annotate(
            label, (0.995, limit), xycoords=("axes fraction", "data"),
            xytext=(0, 4), textcoords="offset points",
            ha="right", va="bottom", fontsize=11, color="#333333",
        )  # fmt: skip
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if ylim is not None:
        ax.set_ylim(ylim)
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend()


def bars(
    series: Mapping[str, Mapping[str, float]],
    *,
    xlabel: str,
    title: str = "",
    ax: Axes | None = None,
) -> None:
    """Draw horizontal bars, one group for each name, one colour for each series.

    series  {label: {name: value}}; names are taken in the order they first appear
    """
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    height = 0.8 / len(series)
    if ax is None:
        size = (6.0, 0.9 + 0.17 * len(names) * (len(series) + 0.6))
        _, ax = plt.subplots(figsize=size)
    for i, (label, values) in enumerate(series.items()):
        at = [row + (i - (len(series) - 1) / 2) * height for row in range(len(names))]
        ax.barh(at, [values.get(name, 0.0) for name in names], height, label=label)
    ax.set(xlabel=xlabel, title=title)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    if len(series) > 1:
        ax.legend()


_HEAT_STYLE = """
.tokrl-heat {
  --tokrl-bad: 200 82 0;
  --tokrl-good: 0 92 175;
  --tokrl-tint: 0.5;
  font-size: 1em;
  line-height: 2.1;
  overflow-wrap: break-word;
}
html[data-theme="dark"] .tokrl-heat,
[data-jp-theme-light="false"] .tokrl-heat {
  --tokrl-bad: 255 140 50;
  --tokrl-good: 95 175 255;
  --tokrl-tint: 0.45;
}
.tokrl-heat .tok {
  --neg: max(0, -1 * var(--v, 0));
  --pos: max(0, var(--v, 0));
  padding: 0.12em 0.22em;
  border-radius: 0.2em;
  color: inherit;
  background:
    linear-gradient(rgb(var(--tokrl-bad) / calc(var(--tokrl-tint) * var(--neg))) 0 0),
    linear-gradient(rgb(var(--tokrl-good) / calc(var(--tokrl-tint) * var(--pos))) 0 0);
  box-decoration-break: clone;
  -webkit-box-decoration-break: clone;
  border-bottom: calc(3px * var(--pos)) solid rgb(var(--tokrl-good));
  text-decoration: underline wavy rgb(var(--tokrl-bad) / calc(4 * var(--neg) - 0.8));
  text-decoration-thickness: calc(2.5px * var(--neg));
  text-underline-offset: 0.25em;
  text-decoration-skip-ink: none;
}
.tokrl-heat .unjudged {
  opacity: 0.62;
}
.tokrl-heat p {
  margin: 0 0 0.3em;
  font-size: 0.9em;
}
"""


class TokenHeat:
    """Tokens coloured by a signed number, shown as HTML by Jupyter and the site.

    tokens  strings, shown as they are
    values  a number for each token, or None for "not judged": blue and underlined
            where positive, orange with a wavy line where negative, plain at 0, grey
            where None. The largest size among them gives the full colour.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        values: Sequence[float | None],
        lang: str = "en",
        caption: str = "",
    ):
        if len(tokens) != len(values):
            raise ValueError(f"{len(tokens)} tokens but {len(values)} values")
        for token, value in zip(tokens, values, strict=True):
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"the value of {token!r} is {value}: give a finite number, or None"
                )
        self.tokens, self.values = list(tokens), list(values)
        self.lang, self.caption = lang, caption

    def _repr_html_(self) -> str:
        largest = (
            max((abs(v) for v in self.values if v is not None), default=0.0) or 1.0
        )
        spans = []
        for token, value in zip(self.tokens, self.values, strict=True):
            text = html.escape(token)
            if value is None:
                spans.append(f'<span class="tok unjudged">{text}</span>')
                continue
            strength = f"--v:{value / largest:.2f}".replace("-0.00", "0.00")
            title = html.escape(f"{token}: {value:+.2f}", quote=True)
            span = f'<span class="tok" style="{strength}" title="{title}">{text}</span>'
            spans.append(span)
        caption = f"<p>{html.escape(self.caption)}</p>" if self.caption else ""
        return (
            f"<style>{_HEAT_STYLE}</style>\n"
            f'<div class="tokrl-heat" lang="{html.escape(self.lang, quote=True)}">'
            f"{caption}{' '.join(spans)}</div>"
        )

    def __repr__(self) -> str:
        marked = [
            f"{token}[{value:+.2f}]" if value else token
            for token, value in zip(self.tokens, self.values, strict=True)
        ]
        return " ".join(marked)


_TOKENS_STYLE = """
.tokrl-tokens {
  --tokrl-first: 0 92 175;
  --tokrl-second: 176 88 0;
  --tokrl-fill: 0.1;
  line-height: 1.9;
}
html[data-theme="dark"] .tokrl-tokens,
[data-jp-theme-light="false"] .tokrl-tokens {
  --tokrl-first: 120 185 255;
  --tokrl-second: 245 165 85;
  --tokrl-fill: 0.16;
}
.tokrl-tokens p {
  margin: 0.5em 0 0.1em;
  font-size: 0.9em;
  font-weight: 600;
  line-height: 1.4;
}
.tokrl-tokens .tok {
  --hue: var(--tokrl-first);
  display: inline-block;
  max-width: 100%;
  margin: 0 0.08em;
  padding: 0 0.2em;
  min-width: 0.9em;
  text-align: center;
  overflow-wrap: anywhere;
  line-height: 1.5;
  color: inherit;
  background: rgb(var(--hue) / var(--tokrl-fill));
  border: 1px solid rgb(var(--hue) / 0.75);
  border-radius: 0.25em;
}
.tokrl-tokens .tok:nth-child(even) {
  --hue: var(--tokrl-second);
}
.tokrl-tokens .special {
  border-style: dashed;
  border-width: 2px;
  font-size: 0.85em;
}
.tokrl-tokens .gap {
  opacity: 0.6;
}
"""
_VISIBLE = str.maketrans({" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"})
_GAP = re.compile("[\u2423\u21b5\u21e5]+")


class Tokens:
    """Texts cut into tokens, a chip with a border for each, for Jupyter and the site.

    rows  {label: tokens}; the label is shown with the number of tokens. A space is
          shown as an open box, a special token with a dashed border; tints alternate.
    """

    def __init__(self, rows: Mapping[str, Sequence[str]], lang: str = "en"):
        self.rows = {label: list(tokens) for label, tokens in rows.items()}
        self.lang = lang

    def _repr_html_(self) -> str:
        lang, rows = html.escape(self.lang, quote=True), []
        for label, tokens in self.rows.items():
            chips = []
            for token in tokens:
                kind = "tok special" if token in SPECIAL_TOKENS else "tok"
                text = html.escape(token.translate(_VISIBLE))
                text = _GAP.sub(r'<span class="gap">\g<0></span>', text)
                chips.append(f'<span class="{kind}">{text}</span>')
            rows.append(
                f"<p>{html.escape(label)}: {len(tokens)}</p>\n"
                f'<div lang="{lang}">{" ".join(chips)}</div>'
            )
        return (
            f"<style>{_TOKENS_STYLE}</style>\n"
            f'<div class="tokrl-tokens">{"".join(rows)}</div>'
        )

    def __repr__(self) -> str:
        return "\n".join(
            f"{label}: {len(tokens)}: " + "|".join(tokens).translate(_VISIBLE)
            for label, tokens in self.rows.items()
        )


_GRID_STYLE = """
.tokrl-grid {
  --tokrl-weight: 0 92 175;
  overflow-x: auto;
}
html[data-theme="dark"] .tokrl-grid,
[data-jp-theme-light="false"] .tokrl-grid {
  --tokrl-weight: 95 175 255;
}
.tokrl-grid table {
  border-collapse: separate;
  border-spacing: 2px;
  width: auto;
  margin: 0;
  color: inherit;
}
.tokrl-grid caption {
  caption-side: top;
  text-align: left;
  font-size: 0.9em;
  color: inherit;
}
.tokrl-grid th {
  font-weight: 400;
  padding: 0 0.3em;
  white-space: nowrap;
  border: 0;
  background: none;
  color: inherit;
}
.tokrl-grid tbody th {
  text-align: right;
}
.tokrl-grid tbody td {
  width: 2em;
  height: 1.7em;
  padding: 0;
  border: 2px solid transparent;
  background: rgb(var(--tokrl-weight) / calc(0.06 + 0.8 * var(--v)));
}
.tokrl-grid tbody td.marked {
  border-color: #d55e00;
}
"""


class Grid:
    """A table of weights as shades, for Jupyter and the site: who looks at whom.

    rows, columns  words beside and above it
    weights        a row of numbers from 0 to 1 for each of `rows`, shown in tenths
    marked         {(row, column)} of the cells that get a frame
    """

    def __init__(
        self,
        rows: Sequence[str],
        columns: Sequence[str],
        weights: Sequence[Sequence[float]],
        marked: Collection[tuple[int, int]] = (),
        caption: str = "",
    ):
        if len(weights) != len(rows) or any(len(w) != len(columns) for w in weights):
            raise ValueError(
                f"{len(rows)} rows and {len(columns)} columns, but weights of "
                f"{len(weights)} by {sorted({len(w) for w in weights})}"
            )
        self.rows, self.columns = list(rows), list(columns)
        self.weights, self.marked = [list(w) for w in weights], set(marked)
        self.caption = caption

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in self.columns)
        body = []
        for i, (row, weights) in enumerate(zip(self.rows, self.weights, strict=True)):
            cells = []
            for j, weight in enumerate(weights):
                kind = ' class="marked"' if (i, j) in self.marked else ""
                said = f"{row}, {self.columns[j]}: {weight:.1f}"
                title = html.escape(said, quote=True)
                cells.append(
                    f'<td{kind} style="--v:{weight:.1f}" title="{title}"></td>'
                )
            name = f'<th scope="row">{html.escape(row)}</th>'
            body.append(f"<tr>{name}{''.join(cells)}</tr>")
        caption = f"<caption>{html.escape(self.caption)}</caption>"
        return (
            f"<style>{_GRID_STYLE}</style>\n"
            f'<div class="tokrl-grid"><table>{caption if self.caption else ""}'
            f"<thead><tr><td></td>{head}</tr></thead>\n"
            f"<tbody>{chr(10).join(body)}</tbody></table></div>"
        )

    def __repr__(self) -> str:
        return "\n".join(
            f"{row}: "
            + " ".join(
                f"{word}[{weight:.1f}]"
                for word, weight in zip(self.columns, weights, strict=True)
                if weight >= 0.05
            )
            for row, weights in zip(self.rows, self.weights, strict=True)
        )
