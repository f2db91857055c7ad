"""The report's section on training: KL, entropy, length and what else was logged, over tokens."""

from __future__ import annotations

from html import escape

import numpy as np

from rlhf_gym.report.figures import Histories, training_chart
from rlhf_gym.report.parts import figure, legend
from rlhf_gym.report.run import ReportRun
from rlhf_gym.runs.summaries import agent_label


def training_section(run: ReportRun) -> str:
    """What was logged of training, a picture a quantity."""
    histories, metrics = run.histories, run.evaluation
    agent = agent_label(metrics)
    charts = [
        (training_chart(histories, "rlhf/kl", "KL to π_ref, nats a response", from_zero=True),
         "What the leash holds: Σ log π − log π_ref over the response."),
        (training_chart(histories, "rlhf/entropy", "entropy, nats a token", from_zero=True),
         "How undecided the policy is; near 0 it always writes the same."),
        (training_chart(histories, "rlhf/response_length", "response length, tokens"),
         "Much of what looks like progress can be mere length."),
        (training_chart(histories, "rlhf/stopped", "share of responses that end"),
         "The rest were cut at the longest length."),
        (training_chart(histories, "train/explained_variance", "explained variance of the critic"),
         "1 when the value head foresees every return, 0 when it knows the mean alone."),
        (training_chart(histories, "train/clip_fraction", "share of clipped ratios", from_zero=True),
         f"Tokens whose probability moved more than {agent}’s ε in one iteration."),
        (training_chart(histories, "train/accuracy", "share of pairs that the policy agrees with"),
         "Pairs whose chosen response has gained more in probability than the rejected one, as they are met."),
        (training_chart(histories, "train/margin", "margin, in units of reward"),
         "β times the chosen response’s log π − log π_ref, less the rejected one’s."),
    ]  # fmt: skip
    if any("rlhf/kl_coef" in record for record in histories.logs["ppo"][0]) and _moves(histories, "rlhf/kl_coef"):
        charts.insert(
            1, (training_chart(histories, "rlhf/kl_coef", "β"), "The price of a nat, as its controller set it.")
        )
    if metrics["judge"] != "gold":
        chart = training_chart(histories, "rlhf/score", "score of r_φ, in standard deviations of the SFT policy")
        charts.insert(0, (chart, f"What {agent} maximises, before the KL penalty."))
    logged = [(chart, caption) for chart, caption in charts if any(np.size(line.x) for line in chart.lines)]
    figures = "".join(figure(chart, caption) for chart, caption in logged)
    if not figures:
        return ""
    return f"""
<h2>While {escape(agent)} learns</h2>
{legend(histories, agent)}
<div class="charts">{figures}</div>"""


def _moves(histories: Histories, name: str) -> bool:
    _, values = histories.curve("ppo", name)
    return len(values) > 0 and float(values.max() - values.min()) > 0
