"""What is said of a run: what its policies are called, and each stage in a line, from the metrics that it left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def agent_label(metrics: dict[str, Any]) -> str:
    """What the agent is called that an evaluation is about."""
    return metrics.get("agent", "PPO")


def kind_label(kind: str, round: int, *, best_of: int, rounds: int, agent: str) -> str:
    """What a row of the final table is called."""
    if kind == "best_of":
        return f"SFT, best of {best_of}"
    names = {"sft": "SFT", "train": agent, "without_kl": f"{agent} without KL"}
    return names[kind] + (f", round {round}" if kind == "train" and rounds > 1 else "")


def row_label(metrics: dict[str, Any], row: dict[str, Any]) -> str:
    """What a row of this evaluation is called."""
    settings = {"best_of": metrics["best_of"], "rounds": metrics["rounds"], "agent": agent_label(metrics)}
    return kind_label(row["kind"], row["round"], **settings)


def is_bound(row: dict[str, Any]) -> bool:
    """Whether a row's KL is known from n alone, at most."""
    return row.get("kl_is_bound", row["kind"] == "best_of")


def count(number: int) -> str:
    """A number of parameters, shortened: 124 M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            digits = max(0, 2 - int(math.log10(number / size)))
            return f"{number / size:.{digits}f} {unit}"
    return str(number)


def pretrain_line(metrics: dict[str, Any]) -> str:
    """The stage in one line."""
    size = count(metrics["parameters"])
    n = metrics["texts"]
    return f"{size} parameters on {n:,} texts; held-out perplexity {metrics['perplexity']:.2f}"


def sft_line(metrics: dict[str, Any]) -> str:
    """The stage in one line."""
    floor = metrics.get("perplexity_floor")
    least = "" if floor is None else f" (the language itself: {floor:.3f})"
    return f"{metrics['demonstrations']:,} demonstrations; held-out perplexity {metrics['perplexity']:.3f}{least}"


def collect_line(metrics: dict[str, Any]) -> str:
    """The stage in one line."""
    total = metrics["pairs"] + metrics["heldout_pairs"]
    names = metrics["annotators"]
    who = f", compared by: {', '.join(names) if len(names) < 5 else f'{len(names)} annotators'}" if names else ""
    repeated = metrics.get("repeated", 0)
    mistaken = f", {metrics['mistaken']:.0%} of them by mistake" if metrics["mistaken"] else ""
    left_out = f"; {repeated:,} of {metrics['candidates']:,} responses were repeats" if repeated else ""
    held_out = f"{metrics['heldout_pairs']:,} held out"
    return f"{total:,} pairs about {metrics['prompts']:,} prompts{who}{mistaken}; {held_out}{left_out}"


def reward_line(metrics: dict[str, Any]) -> str:
    """The stage in one line."""
    if "source" in metrics:
        accuracy = f"; accuracy {metrics['accuracy']:.1%} on {metrics['n']:,} pairs" if "accuracy" in metrics else ""
        return f"{metrics['source']}, normalised on the SFT policy's responses{accuracy}{probes_line(metrics)}"
    if "log_loss" in metrics:
        return f"{steps_sentence(metrics)}{probes_line(metrics)}"
    parts = [] if metrics["clean_accuracy"] in (0, metrics["accuracy"]) else [f"{metrics['clean_accuracy']:.1%} clean"]
    if metrics.get("length_controlled") is not None:
        parts.append(f"{metrics['length_controlled']:.1%} length-controlled")
    aside = f" ({', '.join(parts)})" if parts else ""
    how = f"{metrics['members']} models on " if metrics["members"] > 1 else ""
    calibration = f", calibration error {metrics['ece']:.3f}," if "ece" in metrics else ""
    complaints = "".join(f"; going on although {c.split(': ')[0]}" for c in metrics.get("complaints", []))
    line = f"{how}{metrics['pairs']:,} pairs; accuracy {metrics['accuracy']:.1%}{aside}{calibration}"
    return f"{line} on {metrics['n']:,} held out{_staleness_line(metrics)}{complaints}{probes_line(metrics)}"


def steps_sentence(metrics: dict[str, Any]) -> str:
    """How a reward model that was trained on labelled steps does on those held out."""
    how = f"{metrics['members']} models on " if metrics["members"] > 1 else ""
    same = max(metrics["good"], 1 - metrics["good"])
    return (
        f"{how}{metrics['steps']:,} labelled steps; right about {metrics['accuracy']:.1%} of "
        f"{metrics['heldout_steps']:,} held out (always the same: {same:.1%}), log loss {metrics['log_loss']:.3f}"
    )


def probes_line(metrics: dict[str, Any]) -> str:
    """What is most suspicious, if anything is, for the stage's line."""
    found = metrics.get("probes", {}).get("suspicions", [])
    if not found:
        return ""
    more = f", and {len(found) - 1} more in the report" if len(found) > 1 else ""
    return f"; look before you optimise: {found[0]}{more}"


def _staleness_line(metrics: dict[str, Any]) -> str:
    """What retraining did about the latest policy's responses, as the end of the stage's line."""
    found = metrics.get("staleness")
    if not found:
        return ""
    before = found["accuracy"][-2][-1]
    now = found["accuracy"][-1][-1]
    at_best = "" if found["gold"] is None else f" (gold: {found['gold'][-1]:.1%})"
    return f"; about the latest policy's {found['pairs'][-1]:,}: {before:.1%} before, {now:.1%} now{at_best}"


def train_line(metrics: dict[str, Any]) -> str:
    """The stage in one line: medians over the seeds, of the first iterations and of the last ones."""
    first = metrics["first"]
    last = metrics["last"]
    seeds = "1 seed" if len(metrics["seeds"]) == 1 else f"{len(metrics['seeds'])} seeds"
    agent = metrics.get("agent", "PPO")
    if agent != "PPO":
        seeds = f"{agent}, {seeds}"
    if "train/accuracy" in last:
        share = f"agrees with {first['train/accuracy']:.0%} → {last['train/accuracy']:.0%} of fresh pairs"
        return f"{seeds}: loss {first['train/loss']:.3f} → {last['train/loss']:.3f}, {share}{metrics.get('alarms', '')}"
    if "rlhf/score" not in last:
        return f"{agent}: nothing to learn, it chooses among responses of the SFT policy"
    gold = f", gold {first['rlhf/gold']:+.2f} → {last['rlhf/gold']:+.2f}" if "rlhf/gold" in last else ""
    kl = last.get("rlhf/kl_initial", last["rlhf/kl"])
    earned = [each["rlhf/score"] + each.get("rlhf/dense_reward", 0.0) for each in (first, last)]  # at tokens as well
    score = f"{earned[0]:+.2f} → {earned[1]:+.2f}"
    return f"{seeds}: score {score}{gold}, KL {kl:.1f} nats{_stop_line(metrics)}{metrics.get('alarms', '')}"


def _stop_line(metrics: dict[str, Any]) -> str:
    """What the stage's line says of seeds that were stopped: ", stopped …", or nothing.

    Args:
        metrics: the stage's, with `stop_kl`, its patience and of each seed what `how_stopped` said as `stopped`.
    """
    stops = metrics.get("stopped", [])
    count = sum(stop is not None for stop in stops)
    if not count:
        return ""
    which = "" if len(stops) == 1 else f" in {count} of {len(stops)} seeds"
    beyond = sum(stop is not None and stop["kept_kl"] is None for stop in stops)  # from their first rollout
    kept = "the last policy within it is kept"
    if beyond == count:
        waited = metrics.get("stop_kl_patience", 1) > 1  # and learned meanwhile
        kept = f"beyond it from the start, {'with none to go back to' if waited else 'nothing was learned'}"
    elif beyond:
        kept += f"; {beyond} began beyond it"
    return f"; stopped{which} as KL passed {metrics['stop_kl']:g}, {kept}"


def alarm_line(seeds: Sequence[dict[str, Any] | None]) -> str:
    """What the stage's line says: "; alarms: kl_high after 7k tokens (2 of 3 seeds)", "; no alarm", or nothing of runs
    that were not watched.

    Args:
        seeds: each one's metrics.
    """
    watched = [seed for seed in seeds if seed is not None and "alarms" in seed]
    if not watched:
        return ""
    firsts: dict[str, list[int]] = {}
    for seed in watched:
        for name in dict.fromkeys(alarm["name"] for alarm in seed["alarms"]):
            tokens = next(alarm["tokens"] for alarm in seed["alarms"] if alarm["name"] == name)
            firsts.setdefault(name, []).append(tokens)
    if not firsts:
        return "; no alarm"
    named = sorted(firsts.items(), key=lambda item: min(item[1]))
    count = len(watched)
    said = [
        f"{name} after {min(tokens) / 1000:.0f}k tokens" + ("" if count == 1 else f" ({len(tokens)} of {count} seeds)")
        for name, tokens in named
    ]
    ended = sorted({seed["ended_by"] for seed in watched if seed["ended_by"]})
    return f"; alarms: {', '.join(said)}" + (f"; ended by {', '.join(ended)}" if ended else "")


def evaluate_line(metrics: dict[str, Any]) -> str:
    """The stage in one line."""
    last = [s for s in metrics["summary"] if s["kind"] == "train"][-1]
    judge = "gold" if metrics["judge"] == "gold" else "r_φ (there is no gold)"
    return (
        f"{agent_label(metrics)} wins {last['wins_sft'][0]:.0%} against SFT, {last['wins_best_of'][0]:.0%} against "
        f"its best of {metrics['best_of']}, says {judge}, on {metrics['prompts']} held-out prompts"
    )
