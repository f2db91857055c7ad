"""An `EpisodeView` as a snippet of HTML: no script, no request, nothing that escapes it; light and dark.

Colours are translucent and the ink is the page's own, so that it reads on whatever stands behind it. The figures of the
token under the pointer (or the focus) appear in a place kept free below the text: nothing jumps, nothing is covered.
"""

from __future__ import annotations

from html import escape

from rlhf_gym.envs.view import EpisodeView, one_line, scales, signed

MORE, LESS = "146,82,214", "0,140,128"
FULL_ALPHA = 0.6
SHOWN = ("KL", "value", "return", "advantage")
"""What tokens can be coloured by."""

CSS = """
.rlhf-view{font:15px/1.5 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;margin:8px 0 18px;
 max-width:860px;border:0;padding:0;min-width:0;text-align:left}
.rlhf-view .rv-head{font-size:13px;opacity:.75;margin:0 0 4px}
.rlhf-view .rv-head b{font-weight:600}
.rlhf-view .rv-by{display:flex;flex-wrap:wrap;gap:4px 6px;align-items:center;font-size:13px;margin:6px 0}
.rlhf-view .rv-by label{border:1px solid rgba(128,128,128,.45);border-radius:99px;padding:1px 11px;cursor:pointer;
 margin:0}
.rlhf-view .rv-by input{position:absolute;opacity:0;width:1px;height:1px;margin:0}
.rlhf-view .rv-by label:has(:checked){background:rgba(128,128,128,.28);font-weight:600}
.rlhf-view .rv-by label:has(:focus-visible){outline:2px solid currentColor;outline-offset:1px}
.rlhf-view .rv-scale{display:none;gap:7px;align-items:center;font-variant-numeric:tabular-nums;margin-left:6px}
.rlhf-view .rv-scale i{width:110px;height:9px;border-radius:5px;border:1px solid rgba(128,128,128,.4);
 background:linear-gradient(90deg,rgba(LESS,.6),rgba(LESS,0) 50%,rgba(MORE,0) 50%,rgba(MORE,.6))}
.rlhf-view .rv-text{position:relative;padding-bottom:64px;line-height:2;white-space:pre-wrap;overflow-wrap:anywhere}
.rlhf-view .rv-t{border-radius:3px;padding:2px 0;cursor:default;outline:0}
.rlhf-view .rv-t:hover,.rlhf-view .rv-t:focus{box-shadow:0 0 0 1.5px currentColor}
.rlhf-view .rv-t>span{display:none;position:absolute;left:0;right:0;bottom:6px;font-size:13px;line-height:1.5;
 border-top:1px solid rgba(128,128,128,.4);padding-top:5px;font-variant-numeric:tabular-nums;white-space:normal}
.rlhf-view .rv-t>span u{text-decoration:none;white-space:nowrap;margin-right:15px}
.rlhf-view .rv-t>span u i{font-style:normal;opacity:.7}
.rlhf-view .rv-t:hover>span{display:block}
.rlhf-view .rv-text:not(:has(.rv-t:hover)) .rv-t:focus>span{display:block}
.rlhf-view details{font-size:13px}
.rlhf-view summary{cursor:pointer;opacity:.75}
.rlhf-view .rv-scroll{overflow-x:auto}
.rlhf-view table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:6px 0;background:none}
.rlhf-view table td,.rlhf-view table th{text-align:right;padding:2px 12px 2px 0;border:0;background:none;
 white-space:nowrap;font-size:13px;color:inherit}
.rlhf-view table th{font-weight:500;opacity:.75}
.rlhf-view table td:first-child,.rlhf-view table th:first-child{text-align:left}
.rlhf-view table tr:last-child td{border-top:1px solid rgba(128,128,128,.4)}
""".replace("MORE", MORE).replace("LESS", LESS)


def view_html(view: EpisodeView) -> str:
    """The snippet. Several can stand on one page."""
    full = {name: amount for name, amount in scales([view]).items() if name in SHOWN}
    rules = "".join(
        f'.rlhf-view:has(input[value="{name}"]:checked) .rv-t{{background:var(--{name})}}'
        f'.rlhf-view:has(input[value="{name}"]:checked) .rv-scale[data-by="{name}"]{{display:inline-flex}}'
        for name in full
    )
    switch = "".join(
        f'<label><input type="radio" name="by" value="{name}"{" checked" * (i == 0)}>{name}</label>'
        for i, name in enumerate(full)
    )
    legends = "".join(
        f'<span class="rv-scale" data-by="{name}">{signed(-amount, 1)}<i></i>{signed(amount, 1)}</span>'
        for name, amount in full.items()
    )
    return (
        f'<form class="rlhf-view"><style>{CSS}{rules}</style>'
        f'<p class="rv-head">prompt: <b>{escape(view.prompt)}</b></p>'
        f'<p class="rv-head">{escape(view.summary)}</p>'
        f'<div class="rv-by" role="radiogroup" aria-label="colour tokens by">{switch}{legends}</div>'
        f'<div class="rv-text">{_tokens(view, full)}</div>'
        f'<details><summary>all figures</summary><div class="rv-scroll">{_table(view)}</div></details></form>'
    )


def tint(amount: float, full: float) -> str:
    """The colour of an amount: violet above 0, teal below, full at `full`; for CSS."""
    alpha = min(abs(amount) / full, 1.0) * FULL_ALPHA
    return f"rgba({MORE if amount > 0 else LESS},{alpha:.2f})" if alpha >= 0.01 else "none"


def _tokens(view: EpisodeView, full: dict[str, float]) -> str:
    columns = view.columns
    parts = []
    for t, token in enumerate(view.tokens):
        colours = ";".join(f"--{c.name}:{tint(float(c.amounts[t]), full[c.name])}" for c in columns if c.name in full)
        figures = "".join(
            f"<u><i>{_name(column.name)}</i> {signed(float(column.amounts[t]))}</u>" for column in columns
        )
        parts.append(
            f'<span class="rv-t" tabindex="0" style="{colours}">{escape(token)}'
            f"<span><u><b>{escape(one_line(token))}</b></u>{figures}</span></span>"
        )
    return "".join(parts)


def _table(view: EpisodeView) -> str:
    columns = view.columns
    head = "".join(f"<th>{_name(name)}</th>" for name in ["token", *(column.name for column in columns)])
    rows = [
        f"<td>{escape(one_line(token))}</td>" + "".join(f"<td>{signed(float(c.amounts[t]), 3)}</td>" for c in columns)
        for t, token in enumerate(view.tokens)
    ]
    sums = (f"<td>{signed(float(c.amounts.sum()), 3) if c.adds_up else ''}</td>" for c in columns)
    body = "".join(f"<tr>{row}</tr>" for row in [*rows, "<td>Σ</td>" + "".join(sums)])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _name(name: str) -> str:
    return name.replace("π_ref", "π<sub>ref</sub>")
