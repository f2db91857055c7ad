"""Adversarial pairs: what a round's reward model overrates is looked for, labelled, and trained on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.lm.loading import load_causal_lm
from rlhf_gym.lm.tokens import encode_prompts, encode_responses
from rlhf_gym.pipeline.annotate import annotate
from rlhf_gym.pipeline.collect import HELDOUT, PREFERENCES, all_preferences
from rlhf_gym.pipeline.preparation import Run, context_length
from rlhf_gym.pipeline.reward import adversarial_folder, normalise, reference_samples, train_reward
from rlhf_gym.pipeline.samples import draw
from rlhf_gym.preferences import Candidate, CandidatePair, Preference, write_preferences
from rlhf_gym.preferences.adversarial import (
    Edit,
    Suspect,
    choose_overrated,
    common_words,
    edited,
    favoured_words,
    insert,
    repeat,
    shuffle,
)
from rlhf_gym.rewards import LearnedReward, check_scores
from rlhf_gym.runs.folder import METRICS_FILE
from rlhf_gym.training import accuracy_by_name, score_pairs
from rlhf_gym.training.folder import write_json

EDITS: dict[str, Edit] = {"repetition": repeat, "padding": insert, "praise": insert, "shuffle": shuffle}
UNLEASHED = "unleashed"
BATCH = 99
"""The part of its round that these labels are, for annotators that number what they are asked."""


@dataclass(frozen=True)
class AdversarialConfig:
    """How adversarial pairs are looked for."""

    round: int = 1
    """The round whose reward model is put to the test."""
    pairs: int = 400
    """Pairs to be labelled and trained on, and half as many to measure by."""
    num_prompts: int = 400
    """Prompts that are searched for the former; half as many for the latter, of those no reward model trained on."""
    tries: int = 4
    """Edits of each kind that are tried on each normal response."""
    words: int = 12
    """Words of praise: as many as annotators seem to pay for most; and of filler: as many of the most common."""
    seed: int = 0
    """Of prompts, responses and edits."""

    def __post_init__(self) -> None:
        for name in ("round", "pairs", "num_prompts", "tries", "words"):
            if vars(self)[name] < 1:
                raise ValueError(f"expected {name} >= 1, got {vars(self)[name]}")


def adversarial(run: Run, config: AdversarialConfig) -> dict[str, Any]:
    """Find, label, retrain, measure; everything goes to `adversarial/round-K/` in the run's folder.

    From then on the pairs belong to the run: later rounds' reward models are trained on them too, and so is this
    round's if it is done again (`rlhf-gym run --redo reward`).

    Returns:
        What came out, as it is in `metrics.json` there.

    Raises:
        ValueError: the round has no reward model of its own yet, or nothing it overrates was found.
    """
    check_round(run, config.round)
    folder = adversarial_folder(run, config.round)
    train, heldout = all_preferences(run, config.round)
    before = run.load_reward(config.round)
    words = {
        "praise": favoured_words(train, config.words),
        "padding": common_words([p.chosen for p in train], config.words),
    }
    sides = {}
    for place, (name, count) in enumerate((("train", config.pairs), ("heldout", max(1, config.pairs // 2)))):
        source = train if name == "train" else heldout
        found = find_suspects(run, config, _prompts(source, config, name), words, before, part=place)
        chosen = choose_overrated(found, count)
        if not chosen:
            raise ValueError(
                f"expected responses that r_φ of round {config.round} overrates among {len(found):,}, got none: it "
                "scores each edited response below the unedited one. Raise --tries or --num-prompts"
            )
        sides[name] = (found, chosen, label(run, config, chosen, part=place))
    write_preferences(folder / PREFERENCES, sides["train"][2])
    write_preferences(folder / HELDOUT, sides["heldout"][2])
    after = retrain(run, config, [*train, *sides["train"][2]], heldout)
    metrics = {
        "round": config.round,
        "config": asdict(config),
        "words": words,
        "pairs": len(sides["train"][2]),
        "kinds": dict(Counter(suspect.kind for suspect in sides["train"][1])),
        "before": _measure(before, heldout, sides["heldout"][2], sides["heldout"][0]),
        "after": _measure(after, heldout, sides["heldout"][2], sides["heldout"][0]),
    }
    write_json(folder / METRICS_FILE, metrics)
    return metrics


def check_round(run: Run, round: int) -> None:
    """There is a reward model to put to the test, and preferences it was trained on.

    Raises:
        ValueError: there is not.
    """
    if run.config.task.reward_model is not None:
        raise ValueError(
            f"expected a reward model that the run trained, got one from elsewhere ({run.config.task.reward_model}): "
            "there are no preferences to train it on again"
        )
    if run.folder.metrics("reward", round) is None:
        raise ValueError(
            f"expected the reward model of round {round} in {run.folder.root}, got none: run `rlhf-gym reward` first"
        )


def find_suspects(
    run: Run,
    config: AdversarialConfig,
    prompts: Sequence[str],
    words: dict[str, list[str]],
    reward: LearnedReward,
    *,
    part: int,
) -> list[Suspect]:
    """Edits of normal responses, each beside what it was made of; and what policies without KL penalty write.

    Normal responses are the SFT policy's and, once there is one, those of this round's policy.
    """
    seed = config.seed + 10_000 * config.round + part
    sources = [("the SFT policy", run.sft)]
    if run.folder.metrics("ppo", config.round) is not None:
        sources.append((f"policy {run.seeds[0]} of round {config.round}", run.policy(config.round, run.seeds[0])))
    normal = [c for i, (name, source) in enumerate(sources) for c in _responses(run, name, source, prompts, seed + i)]
    rng = np.random.default_rng((config.seed, config.round, part))
    pairs = [
        (kind, CandidatePair(edited(base, kind, edit, rng, words.get(kind, ())), base))
        for base in normal
        for kind, edit in EDITS.items()
        for _ in range(config.tries)
    ]
    if run.folder.metrics("unleashed", 1) is not None:
        for i, policy in enumerate(run.seeds):
            model = run.folder.seed("unleashed", 1, policy) / "model"
            free = _responses(run, f"unleashed policy {policy}", model, prompts, seed + 100 + i)
            pairs += [(UNLEASHED, CandidatePair(c, base)) for c, base in zip(free, normal, strict=False)]
    pairs = _that_fit(run, [(kind, pair) for kind, pair in pairs if pair.first.response != pair.second.response])
    gaps = _gaps(reward, [pair for _, pair in pairs])
    return [Suspect(pair, kind, float(gap)) for (kind, pair), gap in zip(pairs, gaps, strict=True)]


def label(run: Run, config: AdversarialConfig, suspects: Sequence[Suspect], *, part: int) -> list[Preference]:
    """Ask whoever labels this run, which of a pair stands first being drawn."""
    rng = np.random.default_rng((config.seed, config.round, part, 1))
    flips = rng.random(len(suspects)) < 0.5
    pairs = [CandidatePair(*s.pair[::-1]) if flip else s.pair for s, flip in zip(suspects, flips, strict=True)]
    return annotate(run, config.round, pairs, part=BATCH + part)


def retrain(
    run: Run, config: AdversarialConfig, train: Sequence[Preference], heldout: Sequence[Preference]
) -> LearnedReward:
    """r_φ on the preferences so far and the adversarial pairs, normalised as in its round, into `model/`."""
    folder = adversarial_folder(run, config.round)
    _remove_members(folder)
    reward = train_reward(run, folder, train, heldout)
    normalise(reward, run, reference_samples(run))
    _remove_members(folder)
    shutil.rmtree(folder / "model", ignore_errors=True)
    reward.save_pretrained(folder / "model")
    return reward


def _remove_members(folder: Path) -> None:
    for path in folder.glob("member-*"):
        shutil.rmtree(path)


def _measure(
    reward: LearnedReward,
    normal: Sequence[Preference],
    hostile: Sequence[Preference],
    suspects: Sequence[Suspect],
) -> dict[str, Any]:
    """Accuracy on normal and on adversarial held-out pairs, and how often edits raise the score, labelled or not."""
    scored = score_pairs(reward, hostile)
    gaps = _gaps(reward, [suspect.pair for suspect in suspects])
    kinds = np.array([suspect.kind for suspect in suspects])
    return {
        "pairs": {"normal": len(normal), "adversarial": len(hostile)},
        "normal": float(score_pairs(reward, normal).right.mean()),
        "adversarial": float(scored.right.mean()),
        "by_kind": {share.name: [share.accuracy, share.n] for share in accuracy_by_name(scored, kind_of)},
        "raised": {str(kind): float((gaps[kinds == kind] > 0).mean()) for kind in np.unique(kinds)},
    }


def kind_of(preference: Preference) -> str:
    """How the suspect of a pair came about, by its source."""
    for source in (preference.chosen_source, preference.rejected_source):
        kind = source.split(" ")[0]
        if kind in EDITS or kind == UNLEASHED:
            return kind
    return "other"


def _prompts(preferences: Sequence[Preference], config: AdversarialConfig, name: str) -> list[str]:
    """Prompts of these preferences, drawn: what was held out stays held out."""
    distinct = list(dict.fromkeys(p.prompt for p in preferences))
    count = config.num_prompts if name == "train" else max(1, config.num_prompts // 2)
    order = np.random.default_rng((config.seed, config.round, 7)).permutation(len(distinct))[:count]
    return [distinct[int(i)] for i in order]


def _responses(run: Run, name: str, source: Any, prompts: Sequence[str], seed: int) -> list[Candidate]:
    model = load_causal_lm(source, device=run.device)
    samples = draw(model, run.task, prompts, seed=seed, progress=run.bar(f"responses of {name}"))
    return [Candidate(p, r, source=name) for p, r in zip(samples.prompts, samples.responses, strict=True)]


def _that_fit(run: Run, pairs: Sequence[tuple[str, CandidatePair]]) -> list[tuple[str, CandidatePair]]:
    """Those whose first response a policy could have written, and a reward model can read with an end after it."""
    prompts = encode_prompts(run.task.tokenizer, [pair.first.prompt for _, pair in pairs])
    rows = encode_responses(run.task.tokenizer, [pair.first.response for _, pair in pairs], stop=False)
    context = context_length(run) or sum(map(len, (*prompts, *rows))) + 1
    return [
        pair
        for pair, prompt, row in zip(pairs, prompts, rows, strict=True)
        if len(row) <= run.task.max_new_tokens and len(prompt) + len(row) < context
    ]


def _gaps(reward: LearnedReward, pairs: Sequence[CandidatePair]) -> np.ndarray:
    """r_φ of the first less r_φ of the second, normalised, (pairs,)."""
    if not pairs:
        return np.zeros(0)
    texts = list(dict.fromkeys((c.prompt, c.response) for pair in pairs for c in pair))
    raw = reward.score_texts([prompt for prompt, _ in texts], [response for _, response in texts])
    scores = dict(zip(texts, check_scores(raw, len(texts), source="r_φ").astype(np.float64), strict=True))
    return np.array([scores[a.prompt, a.response] - scores[b.prompt, b.response] for a, b in pairs])
