"""What the report's sections are written with: figures, legends, typeset words."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from rlhf_gym.report.charts import Chart
from rlhf_gym.report.figures import Histories

PROXY = "r<sub>φ</sub>"
DASH = "–"


def signed(value: float) -> str:
    """With its sign, two digits."""
    return f"{value:+.2f}".replace("-", "−")


def typeset(text: str) -> str:
    """Escaped, the symbols' subscripts set as such."""
    text = escape(text)
    for symbol, index in (("r", "φ"), ("π", "ref"), ("π", "SFT"), ("π", "old")):
        text = text.replace(f"{symbol}_{index}", f"{symbol}<sub>{index}</sub>")
    return text


def figure(chart: Chart, caption: str, *, key: str = "") -> str:
    """A chart under its title, over its caption."""
    below = f"<figcaption>{typeset(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{typeset(chart.title)}</h3>{key}{chart.svg()}{below}</figure>"


def legend(histories: Histories, agent: str, forms: Iterable[tuple[str, str]] = ()) -> str:
    """Which colour is which kind of run; `forms` are (form of the mark, what it stands for)."""
    items = [
        f'<div><i class="{kind}"></i><span>{escape(agent)} {name}</span></div>'
        for kind, name in (("ppo", "with KL penalty"), ("unleashed", "without KL penalty"))
        if kind in histories.logs
    ]
    if any(len(logs) > 1 for logs in histories.logs.values()) and not forms:
        items.append('<div><i class="thin"></i><span>single seeds</span></div>')
    items += [f'<div><i class="{form}"></i><span>{typeset(name)}</span></div>' for form, name in forms]
    return f'<div class="legend">{"".join(items)}</div>'


def share_bar(rate: list[float], kind: str) -> str:
    """A share with its interval, against a half; `kind` is the class that colours it."""
    middle, low, high = (4 + 96 * share for share in rate)
    return (
        '<svg viewBox="0 0 104 18" aria-hidden="true"><line class="track" x1="4" x2="100" y1="9" y2="9"/>'
        '<line class="half" x1="52" x2="52" y1="1" y2="17"/>'
        f'<line class="{kind}" stroke-width="3" stroke-linecap="round" x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9"/>'
        f'<circle class="{kind}" fill="currentColor" cx="{middle:.1f}" cy="9" r="4.5"/></svg><b>{rate[0]:.1%}</b> '
        f"<small>{100 * rate[1]:.0f}–{100 * rate[2]:.0f}</small>"
    )
