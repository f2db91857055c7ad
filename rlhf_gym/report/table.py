"""The report's head and its table: who wins against the SFT policy, and at what price."""

from __future__ import annotations

from html import escape
from typing import Any

from rlhf_gym.report.parts import DASH, PROXY, share_bar, signed, typeset
from rlhf_gym.report.run import ReportRun
from rlhf_gym.runs.summaries import agent_label, is_bound, row_label


def head_section(run: ReportRun) -> str:
    """What came out, in a sentence."""
    metrics = run.evaluation
    ppo = [row for row in metrics["summary"] if row["kind"] == "ppo"][-1]
    agent, at_most = escape(agent_label(metrics)), "at most " if is_bound(ppo) else ""
    agent = agent[0].upper() + agent[1:]
    gold = metrics["judge"] == "gold"
    wins, judge = ppo["wins_sft"], "the gold reward" if gold else f"the reward model {PROXY}"
    verdict = "beat" if wins[1] > 0.5 else "lose to" if wins[2] < 0.5 else "tie with"
    seeds = f" The median of {ppo['seeds']} seeds." if ppo["seeds"] > 1 else ""
    warning = "" if gold else (
        " There is no gold reward in this run: the judge is what was optimised against, and flatters."
    )  # fmt: skip
    # fmt: off
    return f"""
<p class="eyebrow">rlhf_gym · {escape(str(run.folder.root))}</p>
<h1>{agent}’s responses {verdict} the SFT policy’s on <span class="ink-ppo">{wins[0]:.0%}</span> of held-out
prompts, {at_most}{ppo["kl"][0]:.1f} nats away from it</h1>
<p class="lead">Judged by {judge} on {metrics["prompts"]} prompts that nothing was trained on; a tie counts half.
The 95 % interval is {wins[1]:.0%} to {wins[2]:.0%}.{seeds}{warning}</p>"""
    # fmt: on


def table_section(run: ReportRun) -> str:
    """Every policy, a row."""
    metrics = run.evaluation
    gold, n, many = metrics["judge"] == "gold", metrics["best_of"], metrics["rounds"] > 1
    headings = [
        ("", ""), ("wins against SFT", "95 % interval"), ("wins against", f"best of {n}"),
        *([("gold", "mean ± s.e."), ("its rise", "σ of SFT")] if gold else []),
        ("score r_φ", "SFT: 0 ± 1"), ("KL", "nats a response"),
        ("entropy", "nats a token"), ("length", "tokens"), ("distinct-2", ""),
    ]  # fmt: skip
    head = "".join(f"<th>{typeset(a)}<small>{typeset(b)}</small></th>" for a, b in headings)
    rows = []
    for row in metrics["summary"]:
        label = row_label(metrics, row)
        rows.append(f'<tr><td><i class="swatch fill-{row["kind"]}"></i>{escape(label)}</td>{_cells(row, gold)}</tr>')
    rounds = f" {PROXY} is the last round’s." if many else ""
    return f"""
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<p class="caption">Wins are shares of the held-out prompts. KL is from the SFT policy, estimated from each policy’s own
responses; best of {n} takes, of {n} SFT responses, the one {PROXY} likes best, and its KL is at most log n − (n − 1)/n.
Distinct-2 is the share of neighbouring pairs of words that occur for the first time.{rounds}</p>"""


def _cells(row: dict[str, Any], gold: bool) -> str:
    best = row.get("wins_best_of")
    kl = DASH if row["kind"] == "sft" else f"{'≤ ' if is_bound(row) else ''}{row['kl'][0]:.2f}"
    cells = [
        f'<td class="bar">{share_bar(row["wins_sft"], row["kind"]) if "wins_sft" in row else DASH}</td>',
        f"<td>{DASH if best is None else f'{best[0]:.1%}'}</td>",
        *(_gold_cells(row) if gold else []),
        f"<td>{signed(row['proxy'][0])}</td>",
        f"<td>{kl}</td>",
        f"<td>{row['entropy']:.2f}</td>",
        f"<td>{row['length']:.1f}</td>",
        f"<td>{row['distinct_2']:.3f}</td>",
    ]
    return "".join(cells)


def _gold_cells(row: dict[str, Any]) -> list[str]:
    rise = DASH if row["kind"] == "sft" else signed(row["gold_rise"])
    return [f"<td>{signed(row['gold'][0])} <small>± {row['gold'][1]:.2f}</small></td>", f"<td>{rise}</td>"]
