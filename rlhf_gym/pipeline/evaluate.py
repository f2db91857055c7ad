"""Evaluation on held-out prompts: every policy answers them, gold (or r_φ, where there is none) judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from rlhf_gym.envs.view import said_between
from rlhf_gym.files import read_packed, write_jsonl, write_packed
from rlhf_gym.functional import best_of_n_kl
from rlhf_gym.lm.chat import Prompt, to_json
from rlhf_gym.lm.tokens import token_texts
from rlhf_gym.manifest import UNFINISHED
from rlhf_gym.pipeline.agents import settings_label
from rlhf_gym.pipeline.best_of_n import measure_best_of_n
from rlhf_gym.pipeline.comparison import mean_with_error, median_index, win_rate
from rlhf_gym.pipeline.context import Run
from rlhf_gym.pipeline.costs import Timing, affordable, allowed, steps_of
from rlhf_gym.pipeline.samples import Samples, distinct_2, draw, gold_scores, log_probs, proxy_scores
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import LearnedReward
from rlhf_gym.settings import StageName

LEAST_PROMPTS = 8
"""Held-out prompts that are answered however long it takes."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A policy's responses to the held-out prompts, and how they fare."""

    samples: Samples
    """One response to each prompt."""
    proxy: np.ndarray
    """The score of each by r_φ, (B,)."""
    gold: np.ndarray | None
    """The gold score of each, (B,)."""
    log_probs: list[np.ndarray]
    """log π of each one's tokens, (T_b,) each."""
    sft_log_probs: list[np.ndarray]
    """log π_SFT of the same tokens."""

    @property
    def judged(self) -> np.ndarray:
        """What decides who wins: gold, or r_φ where there is none, (B,)."""
        return self.proxy if self.gold is None else self.gold

    @property
    def kl(self) -> np.ndarray:
        """log π(y|x) − log π_SFT(y|x) of each response, in nats, (B,): its mean estimates KL(π‖π_SFT)."""
        return np.array([(a - b).sum() for a, b in zip(self.log_probs, self.sft_log_probs, strict=True)])

    def to_json(self) -> dict[str, Any]:
        """All of it, for JSON, which holds these numbers exactly."""
        return {
            "samples": self.samples.to_json(),
            "proxy": self.proxy.tolist(),
            "gold": None if self.gold is None else self.gold.tolist(),
            "log_probs": [row.tolist() for row in self.log_probs],
            "sft_log_probs": [row.tolist() for row in self.sft_log_probs],
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Measured:
        """What `to_json` gave."""
        gold = None if saved["gold"] is None else np.array(saved["gold"])
        rows = [[np.array(row, np.float32) for row in saved[name]] for name in ("log_probs", "sft_log_probs")]
        return cls(Samples.from_json(saved["samples"]), np.array(saved["proxy"]), gold, *rows)


def evaluate_stage(run: Run) -> dict[str, Any]:
    """Figures of all policies; their responses go to `samples/`."""
    config = run.config
    share = ranks().broadcast(affordable_share(run), "how much is evaluated")
    prompts = heldout_prompts(run)
    prompts = prompts[: affordable(len(prompts), share, LEAST_PROMPTS)]
    if share < 1:
        run.console.print(
            f"  evaluation: {len(prompts):,} of {len(heldout_prompts(run)):,} held-out prompts, for a fifth of the "
            "run's time so far",
            style="dim",
            highlight=False,
        )
    reward = run.load_reward(config.rounds)
    sft = run.load_policy(run.sft)
    base = _kept(run, "sft", lambda: _measure(run, sft, sft, reward, prompts, "the SFT policy"))
    n = config.evaluate.best_of
    best = _kept(run, "best_of", lambda: _best_of(run, sft, reward, prompts, n=n, seed=config.seed + 8))
    best_metrics = _entry("best_of", f"best of {n}", best, base, None) | _bound(n)
    entries = [_entry("sft", "SFT", base, base, best), best_metrics]
    folder = run.folder.stage("evaluate") / "samples"
    _write(folder / "sft.jsonl", base)
    _write(folder / "best_of.jsonl", best)
    asked = affordable(config.evaluate.best_of_prompts, share, LEAST_PROMPTS)
    measure_best_of_n(run, sft, reward, prompts[:asked])
    for kind, round, seed in trained_policies(run):
        name = f"{kind}-round-{round}-seed-{seed}"
        model = run.load_policy(run.folder.seed(kind, round, seed) / "model")
        chooses = config.agent.best_of
        measured = _kept(run, name, lambda: _measured(run, model, sft, reward, prompts, name, seed))  # noqa: B023
        _write(folder / f"{name}.jsonl", measured)
        entry = _entry(kind, name, measured, base, best) | {"round": round, "seed": seed}
        entries.append(entry if chooses is None else entry | _bound(chooses))
        shown = _token_records(run, model, measured, base)
        if ranks().leads:
            write_jsonl(run.folder.stage("evaluate") / "tokens" / f"{name}.jsonl", shown)
    return {
        "agent": settings_label(config.agent),
        "judge": "gold" if run.task.gold is not None else "proxy",
        "prompts": len(prompts),
        "best_of": config.evaluate.best_of,
        "rounds": config.rounds,
        "policies": entries,
        "summary": _summary(entries),
    }


def heldout_prompts(run: Run) -> list[Prompt]:
    """The held-out prompts that every policy answers."""
    prompts = run.task.heldout_prompts
    chosen = np.random.default_rng((run.config.seed, 7)).permutation(len(prompts))[: run.config.evaluate.num_prompts]
    return [prompts[int(i)] for i in chosen]


def affordable_share(run: Run) -> float:
    """The share of the samples set for the evaluation that a fifth of the time of the stages before it allows, > 1
    where there is room for more; 1 where a folder of an earlier version does not say what a response takes.

    It follows from what is in the folder, so that an evaluation that is done again takes the same samples.
    """
    config = run.config
    timing = Timing(run.folder.stage("reward", 1))
    response = timing.get("response")
    text = timing.get("text")
    if not response:
        return 1.0
    policies = len(trained_policies(run))
    best_of = config.evaluate.best_of
    written = 1 + best_of + policies * (config.agent.best_of or 1)
    read = written + 2 + 1 + 2 * policies  # scored by r_φ; log π of SFT's, of the best of n, and of each policy's twice
    cost = len(heldout_prompts(run)) * (written * response + read * text)
    if run.task.gold is not None:
        cost += config.evaluate.best_of_prompts * config.evaluate.best_of_samples * (response + text)
    return allowed(spent(run)) / max(cost, 1e-9)


def spent(run: Run) -> float:
    """Seconds of all complete stages before the evaluation, over all starts of the training in them."""

    def stage(name: StageName, round: int = 1) -> float:
        seconds = float((run.folder.metrics(name, round) or {}).get("seconds", 0.0))  # of the last start
        folders = [run.folder.seed(name, round, seed) for seed in run.seeds] if name in ("train", "without_kl") else []
        folders += [run.folder.stage(name, round)] if name == "reward" else []
        return max(seconds, sum(Timing(folder).get("training") for folder in folders))

    rounds = range(1, run.config.rounds + 1)
    late: tuple[StageName, ...] = ("collect", "reward", "train", "without_kl")
    return stage("pretrain") + stage("sft") + sum(stage(name, round) for round in rounds for name in late)


def trained_policies(run: Run) -> list[tuple[Any, int, int]]:
    """(kind, round, seed) of what the agent left."""
    found: list[tuple[Any, int, int]] = []
    for round in range(1, run.config.rounds + 1):
        found += [("train", round, seed) for seed in run.seeds]
        if round == 1 and run.trains_without_kl:
            found += [("without_kl", round, seed) for seed in run.seeds]
    return found


def _kept(run: Run, name: str, measure: Callable[[], Measured]) -> Measured:
    """What was measured before an interrupt, or what is measured now, and kept until the evaluation is complete."""
    path = run.folder.stage("evaluate") / UNFINISHED / f"{name}.zip"
    saved = ranks().broadcast(read_packed(path), "measurements that are kept")
    if saved is None:
        measured = measure()
        if ranks().leads:
            write_packed(path, measured.to_json())
        return measured
    return Measured.from_json(saved)


def _measured(
    run: Run,
    model: PreTrainedModel,
    sft: PreTrainedModel,
    reward: LearnedReward,
    prompts: Sequence[Prompt],
    name: str,
    seed: int,
) -> Measured:
    """What a seed's agent left, which for best-of-n is a way to choose among the SFT policy's responses."""
    chooses = run.config.agent.best_of
    if chooses is None:
        return _measure(run, model, sft, reward, prompts, name)
    return _best_of(run, sft, reward, prompts, n=chooses, seed=run.config.seed + 1000 * seed + 9)


def _measure(
    run: Run,
    model: PreTrainedModel,
    sft: PreTrainedModel,
    reward: LearnedReward,
    prompts: Sequence[Prompt],
    name: str,
) -> Measured:
    samples = draw(
        model, run.task, prompts, seed=run.config.seed + 7, progress=run.progress(f"held-out responses of {name}")
    )
    return _scored(run, model, sft, reward, samples, name)


def _scored(
    run: Run, model: PreTrainedModel, sft: PreTrainedModel, reward: LearnedReward, samples: Samples, name: str
) -> Measured:
    at_once = scored_at_once(run)
    own = log_probs(model, samples, progress=run.progress(f"log π of {name}"), at_once=at_once)
    before = own
    if model is not sft:
        before = log_probs(sft, samples, progress=run.progress(f"log π_SFT of {name}"), at_once=at_once)
    shown = run.progress(f"scores of {name}")
    return Measured(
        samples,
        proxy_scores(reward, run.task.tokenizer, samples, progress=shown, at_once=at_once),
        None if run.task.gold is None else gold_scores(run.task.gold, samples),
        own,
        before,
    )


def scored_at_once(run: Run) -> int:
    """Responses that are scored between two steps of the progress, by the time that one took in the reward stage."""
    return steps_of(Timing(run.folder.stage("reward", 1)).get("text"))


def _best_of(
    run: Run, sft: PreTrainedModel, reward: LearnedReward, prompts: Sequence[Prompt], *, n: int, seed: int
) -> Measured:
    """Of n fresh SFT responses to each prompt the one r_φ likes best: what one has without training."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    samples = draw(sft, run.task, repeated, seed=seed, progress=run.progress(f"best of {n} of the SFT policy"))
    shown = run.progress(f"scores to choose the best of {n} by")
    scores = proxy_scores(reward, run.task.tokenizer, samples, progress=shown, at_once=scored_at_once(run))
    best = scores.reshape(len(prompts), n).argmax(axis=1)
    chosen = [i * n + int(j) for i, j in enumerate(best)]
    return _scored(run, sft, sft, reward, samples.take(chosen), f"the best of {n}")


def _bound(n: int) -> dict[str, Any]:
    """The KL of the best of n: its own log-probability is not that of SFT, so it is known, at most, from n alone."""
    return {"kl": [float(best_of_n_kl(n)), 0.0], "kl_is_bound": True}


def _entry(kind: str, name: str, measured: Measured, base: Measured, best: Measured | None) -> dict[str, Any]:
    samples = measured.samples
    entry: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "proxy": mean_with_error(measured.proxy),
        "kl": mean_with_error(measured.kl),
        "length": float(samples.lengths.mean()),
        "stopped": float(samples.stopped.mean()),
        "distinct_2": distinct_2(samples.responses),
        "entropy": -float(sum(row.sum() for row in measured.log_probs)) / float(samples.lengths.sum()),
    }
    if measured.gold is not None and base.gold is not None:
        entry["gold"] = mean_with_error(measured.gold)
        entry["gold_std"] = float(measured.gold.std())
        entry["gold_rise"] = float((measured.gold.mean() - base.gold.mean()) / base.gold.std())
    if measured is not base:
        entry["wins_sft"] = win_rate(measured.judged, base.judged)
    earned = samples.earned
    if earned is not None:
        entry["turn_reward"] = mean_with_error(earned)
    if best is not None and measured is not base:
        entry["wins_best_of"] = win_rate(measured.judged, best.judged)
    return entry


def _summary(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind of policy and round: the seed whose wins over SFT are the median, and medians of the rest."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["kind"], entry.get("round", 0)), []).append(entry)
    rows = []
    for (kind, round), group in groups.items():
        middle = group[median_index([e["wins_sft"].rate if "wins_sft" in e else 0.0 for e in group])]
        row = {"kind": kind, "round": round, "name": middle["name"], "seeds": len(group)}
        row["kl_is_bound"] = middle.get("kl_is_bound", False)
        for name, value in middle.items():
            if isinstance(value, tuple):
                row[name] = sorted((e[name] for e in group), key=lambda pair: pair[0])[(len(group) - 1) // 2]
            elif isinstance(value, float):
                row[name] = float(np.median([e[name] for e in group]))
            elif isinstance(value, list):
                row[name] = value
        rows.append(row)
    return rows


def _write(path: Path, measured: Measured) -> None:
    if not ranks().leads:
        return
    gold = [None] * len(measured.samples) if measured.gold is None else measured.gold.tolist()
    rows = zip(
        measured.samples.prompts,
        measured.samples.responses,
        gold,
        measured.proxy.tolist(),
        measured.kl.tolist(),
        measured.samples.episodes,
        strict=True,
    )
    write_jsonl(
        path,
        [
            {
                "prompt": to_json(p),
                "response": to_json(r),
                "gold": g,
                "proxy": s,
                "kl": k,
                "finish_reason": episode.finish_reason,
            }
            for p, r, g, s, k, episode in rows
        ],
    )


def _token_records(run: Run, model: PreTrainedModel, measured: Measured, base: Measured) -> list[dict[str, Any]]:
    """The first few prompts: before and after, token by token, with log π and log π_SFT of both."""
    first = list(range(min(run.config.evaluate.shown, len(base.samples))))
    if not first:
        return []
    before = base.samples.take(first)
    before_now = log_probs(model, before)  # what the trained policy makes of the SFT policy's words
    records = []
    for i in first:
        sides = {
            "before": (base, before_now[i], base.log_probs[i]),
            "after": (measured, measured.log_probs[i], measured.sft_log_probs[i]),
        }
        record: dict[str, Any] = {"prompt": to_json(base.samples.prompts[i])}
        for side, (source, log_pi, log_sft) in sides.items():
            episode = source.samples.episodes[i]
            record[side] = {
                "tokens": token_texts(run.task.tokenizer, episode.response_ids.tolist()),
                "others": said_between(run.task.tokenizer, episode.input_ids, episode.action_mask),
                "log_prob": [round(float(x), 4) for x in log_pi],
                "ref_log_prob": [round(float(x), 4) for x in log_sft],
                "gold": None if source.gold is None else float(source.gold[i]),
                "proxy": float(source.proxy[i]),
            }
        records.append(record)
    return records
