"""A run folder as a finished run leaves it, with made-up figures: for tests of what reads one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.envs import EpisodeView
from rlhf_gym.files import read_jsonl, write_jsonl
from rlhf_gym.runs.folder import RunFolder
from rlhf_gym.settings import EvaluateConfig, RunConfig

SEEDS = [0, 1, 2]


def made_up_run(
    root: Path,
    *,
    gold: bool = True,
    rounds: int = 1,
    seeds: int = 3,
    evil: str = "",
    views: bool = True,
    kl_coef: float = 0.1,
) -> RunFolder:
    """Three seeds with and without KL penalty; `evil` is slipped into prompts and tokens. Without `views`, as runs were
    left before agents kept their critics' values."""
    folder = RunFolder(root)
    config = replace(RunConfig(run_dir=root), seeds=seeds, rounds=rounds, evaluate=EvaluateConfig(shown=3))
    config = replace(config, agent=replace(config.agent, kl_coef=kl_coef))
    folder.open(config)
    rng = np.random.default_rng(0)
    folder.complete("sft", 1, {"demonstrations": 8000, "perplexity": 3.31, "perplexity_floor": 3.233, "seconds": 21})
    for round in range(1, rounds + 1):
        collected = {
            "pairs": 3600,
            "heldout_pairs": 400,
            "prompts": 2000,
            "mistaken": 0.05,
            "annotators": ["simulated"],
        }
        folder.complete("collect", round, collected | {"seconds": 14.2})
        folder.complete("reward", round, _rewarded(round) | {"seconds": 12.5})
        _ppo(folder, "train", round, seeds, rng, gold)
    if gold:
        _ppo(folder, "without_kl", 1, seeds, rng, gold)
        _best_of_n(folder, np.random.default_rng(1))
    folder.complete("evaluate", 1, _evaluation(folder, rounds, seeds, gold, evil) | {"seconds": 9.1})
    if views:
        _views(folder)
    return folder


def _views(folder: RunFolder) -> None:
    """What the agents would have left: the evaluation's tokens, with a critic's values."""
    rng = np.random.default_rng(1)
    for path in sorted((folder.stage("evaluate") / "tokens").glob("*.jsonl")):
        kind, _, round, _, seed = path.stem.split("-")
        records = []
        for record in read_jsonl(path):
            sides = {name: _view(record["prompt"], record[name], rng) for name in ("before", "after")}
            records.append({"prompt": record["prompt"]} | sides)
        stage: Any = kind
        write_jsonl(folder.seed(stage, int(round), int(seed)) / "views.jsonl", records)


def _view(prompt: str, side: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    ours, theirs = np.array(side["log_prob"]), np.array(side["ref_log_prob"])
    rewards = -0.1 * (ours - theirs)
    rewards[-1] += side["proxy"]
    values = np.cumsum(rewards[::-1])[::-1] + rng.normal(0, 0.5, len(ours))
    view = EpisodeView(prompt, tuple(side["tokens"]), ours, theirs, values, rewards).with_returns()
    view = replace(view, score=side["proxy"], finish_reason="stop")
    return view.to_dict(digits=4) | {"gold": side["gold"]}


def _best_of_n(folder: RunFolder, rng: np.random.Generator) -> None:
    """Goodhart's control: gold z, proxy z + .8·noise, 32 responses to each of 24 prompts."""
    gold = rng.standard_normal((24, 32))
    proxy = gold + 0.8 * rng.standard_normal(gold.shape)
    path = folder.stage("evaluate") / "best_of_n.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"gold": gold.round(5).tolist(), "proxy": proxy.round(5).tolist()}))


def _rewarded(round: int) -> dict[str, Any]:
    """A sound reward model's figures; from the second round on, with how the rounds agree."""
    shares = [{"name": "simulated", "n": 400, "accuracy": 0.81}]
    lengths = {
        "below -10": 0.7,
        "-10 to -6": 0.74,
        "-5 to -3": 0.78,
        "-2 to -1": 0.77,
        "equal": 0.8,
        "+1 to +2": 0.82,
        "+3 to +5": 0.86,
        "+6 to +10": 0.9,
        "above +10": 0.93,
    }
    bins = [(0.53, 0.55, 60), (0.64, 0.61, 70), (0.75, 0.77, 90), (0.86, 0.84, 110), (0.95, 0.93, 70)]
    metrics = {
        "pairs": 3600,
        "accuracy": 0.81,
        "clean_accuracy": 0.83,
        "n": 400,
        "members": 1,
        "nll": 0.43,
        "ece": 0.021,
        "margin": 1.3,
        "length_correlation": 0.2,
        "chance": 1e-30,
        "score_std": 1.4,
        "length_controlled": 0.792,
        "length_controlled_pairs": 380,
        "longer_chosen": 0.55,
        "complaints": [],
        "reliability": [
            {"low": p - 0.03, "high": p + 0.03, "n": n, "confidence": p, "accuracy": a} for p, a, n in bins
        ],
        "by_annotator": shares,
        "by_source": [shares[0] | {"name": "the SFT policy"}],
        "by_length": [{"name": name, "n": 40, "accuracy": value} for name, value in lengths.items()],
    }
    if round > 1:
        table = [[0.81 - 0.1 * max(0, j - i) for j in range(round)] for i in range(round)]
        metrics["staleness"] = {"pairs": [400] * round, "accuracy": table, "gold": [0.87] * round}
    return metrics


def _ppo(folder: RunFolder, stage: Any, round: int, seeds: int, rng: np.random.Generator, gold: bool) -> None:
    for seed in range(seeds):
        records = []
        for i in range(120):
            done = (i + 1) / 120
            penalised = stage == "train"
            kl = 6.5 * (1 - np.exp(-5 * done)) if penalised else 40 * done**1.3
            d = np.sqrt(kl)
            rise = d * (1.05 - 0.28 * np.log(max(d, 1e-3))) if penalised else d * (1.5 - 0.75 * np.log(max(d, 1e-3)))
            record = {
                "iteration": i + 1,
                "tokens": 2500 * (i + 1) + int(rng.integers(200)),
                "rlhf/score": float(1.25 * d * (1 - 0.05 * d) + 0.08 * rng.standard_normal()),
                "rlhf/kl": float(kl + 0.15 * rng.standard_normal() * d),
                "rlhf/kl_coef": 0.1 if penalised else 0.0,
                "rlhf/entropy": float(1.3 * np.exp(-0.08 * kl) + 0.02 * rng.standard_normal()),
                "rlhf/response_length": float(13 + (done if penalised else 9 * done) + 0.3 * rng.standard_normal()),
                "rlhf/stopped": 1.0 if penalised else 1 - 0.4 * done,
                "train/explained_variance": float(0.5 * (1 - np.exp(-4 * done))),
                "train/clip_fraction": float(0.12 * (1 - done)),
            }
            if gold:
                record["rlhf/gold"] = float(0.1 + 1.24 * rise + 0.1 * rng.standard_normal())
            records.append(record)
        write_jsonl(folder.seed(stage, round, seed) / "metrics.jsonl", records)
    figures = {"rlhf/score": 0.0, "rlhf/kl": 0.0} | ({"rlhf/gold": 0.1} if gold else {})
    last = {"rlhf/score": 2.6, "rlhf/kl": 6.4} | ({"rlhf/gold": 1.9} if gold else {})
    folder.complete(stage, round, {"seeds": list(range(seeds)), "first": figures, "last": last, "seconds": 80.0})


def _evaluation(folder: RunFolder, rounds: int, seeds: int, gold: bool, evil: str) -> dict[str, Any]:
    base = {"length": 13.7, "stopped": 1.0, "distinct_2": 0.061, "entropy": 1.31}
    judged = {"gold": [0.11, 0.06], "gold_std": 1.24, "gold_rise": 0.0} if gold else {}
    rows: list[dict[str, Any]] = [
        {"kind": "sft", "round": 0, "name": "SFT", "seeds": 1, "proxy": [0.01, 0.05], "kl": [0, 0]} | base | judged,
        {"kind": "best_of", "round": 0, "name": "best of 4", "seeds": 1, "proxy": [0.99, 0.04], "kl": [0.636, 0]}
        | base
        | {"wins_sft": [0.74, 0.69, 0.78]}
        | (judged | {"gold": [0.93, 0.05]} if gold else {}),
    ]
    for round in range(1, rounds + 1):
        rows.append(
            {
                "kind": "train",
                "round": round,
                "name": f"train-round-{round}-seed-0",
                "seeds": seeds,
                "proxy": [2.61, 0.04],
            }
            | base
            | {"kl": [6.42, 0.1], "wins_sft": [0.912, 0.88, 0.936], "wins_best_of": [0.78, 0.74, 0.82]}
            | (judged | {"gold": [1.93, 0.05]} if gold else {})
        )
    if gold:
        rows.append(
            {
                "kind": "without_kl",
                "round": 1,
                "name": "without_kl-round-1-seed-0",
                "seeds": seeds,
                "proxy": [5.2, 0.02],
            }
            | base
            | {"kl": [41.3, 0.4], "wins_sft": [0.23, 0.19, 0.27], "wins_best_of": [0.1, 0.07, 0.13], "entropy": 0.05}
            | judged
            | {"gold": [-0.9, 0.05]}
        )
    for row in rows[2:]:
        _tokens(folder, row["name"], gold, evil)
    return {
        "judge": "gold" if gold else "proxy",
        "prompts": 400,
        "best_of": 4,
        "rounds": rounds,
        "policies": [],
        "summary": rows,
    }


def _tokens(folder: RunFolder, name: str, gold: bool, evil: str) -> None:
    rng = np.random.default_rng(len(name))
    words = {
        "before": "the soup was fine but the service was rather slow . i would not go back .",
        "after": "a lovely soup , fresh and warm ! the service was friendly and quick too .",
    }
    if name.startswith("without_kl"):
        words["after"] = (
            "superb superb ! amazing superb soup ! superb amazing soup ! superb amazing superb ! wow superb"
        )
    records = []
    for prompt in (
        "review of the soup : service at Mario bistro",
        "review of the bread : price",
        "review of the tea :",
    ):
        record: dict[str, Any] = {"prompt": prompt + evil}
        for side, text in words.items():
            tokens = [word + " " for word in (evil + text).split()] + ["<eos> "]
            shift = rng.normal(0.9 if side == "after" else -0.6, 1.2, len(tokens))
            theirs = -np.abs(rng.normal(0.3, 1.2, len(tokens)))
            record[side] = {
                "tokens": tokens,
                "log_prob": np.minimum(theirs + shift, -0.001).round(4).tolist(),
                "ref_log_prob": theirs.round(4).tolist(),
                "gold": 0.4 if gold else None,
                "proxy": 1.2,
            }
        records.append(record)
    write_jsonl(folder.stage("evaluate") / "tokens" / f"{name}.jsonl", records)


def read_page(folder: RunFolder) -> str:
    """The report."""
    return folder.report.read_text(encoding="utf-8")


def settings_of(page: str) -> dict[str, Any]:
    """The settings that a report shows."""
    import html

    return json.loads(html.unescape(page.split("<pre>")[1].split("</pre>")[0]))
