"""Pieces of HTML that the report's sections share: figures, legends, tables, typeset words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from rlhf_gym.report.charts import Chart, share_bar
from rlhf_gym.report.run import KINDS, Histories

PROXY = "r<sub>φ</sub>"
DASH = "–"


def signed(value: float) -> str:
    """A number with its sign and two digits."""
    return f"{value:+.2f}".replace("-", "−")


def typeset(text: str) -> str:
    """Escaped text, with the subscripts of symbols set as such."""
    text = escape(text)
    for symbol, index in (("r", "φ"), ("π", "ref"), ("π", "SFT"), ("π", "old")):
        text = text.replace(f"{symbol}_{index}", f"{symbol}<sub>{index}</sub>")
    return text


def figure(chart: Chart, caption: str) -> str:
    """A chart under its title, over its caption."""
    below = f"<figcaption>{typeset(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{typeset(chart.title)}</h3>{chart.svg()}{below}</figure>"


def legend(items: Iterable[tuple[str, str]]) -> str:
    """What each mark stands for, as (its CSS class, the text)."""
    rows = "".join(f'<div><i class="{mark}"></i><span>{typeset(text)}</span></div>' for mark, text in items)
    return f'<div class="legend">{rows}</div>'


def kind_legend(histories: Histories, agent: str) -> list[tuple[str, str]]:
    """The items of a legend for the kinds of training."""
    return [(kind, f"{agent} {name}") for kind, name in KINDS.items() if kind in histories.logs]


def seed_legend(histories: Iterable[Histories]) -> list[tuple[str, str]]:
    """The item of a legend for single seeds, where there are several."""
    several = any(len(logs) > 1 for history in histories for logs in history.logs.values())
    return [("thin", "single seeds")] if several else []


def table(kind: str, head: Sequence[str], rows: Iterable[str]) -> str:
    """A table of rows made by `row`; the head's cells are HTML."""
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def row(cells: Sequence[str], kind: str = "") -> str:
    """One row of a table, its cells HTML."""
    start = f'<tr class="{kind}">' if kind else "<tr>"
    return f"{start}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def swatch(kind: str) -> str:
    """A dot of a kind's colour."""
    return f'<i class="swatch fill-{kind}"></i>'


def share_cell(rate: Sequence[float], kind: str, digits: int = 0) -> str:
    """A share with its interval, (share, low, high), as a bar and a number."""
    return f'<span class="bar">{share_bar(rate, kind)}<span>{rate[0]:.{digits}%}</span></span>'
