"""The runs: each failure is provoked by one setting, or by annotators with one fault, and cured by one more."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from rich.console import Console
from study import quiet_run, study_config, task_from_sft

from failures.measures import Arm
from rlhf_gym.pipeline import prepare
from rlhf_gym.pipeline.annotate import annotate
from rlhf_gym.pipeline.candidates import draw_candidates
from rlhf_gym.pipeline.collect import HELDOUT, PREFERENCES
from rlhf_gym.preferences import (
    Candidate,
    CandidatePair,
    Preference,
    read_preferences,
    simulated_annotators,
    write_preferences,
)
from rlhf_gym.preferences.adversarial import edited, insert
from rlhf_gym.runs import RunConfig, RunFolder, TaskConfig

CERTAIN = ("really", "very", "perfect", "flawless")
"""What certainty sounds like in the language of reviews; `CONFIDENT_WORDS` are not in it."""
SOUND = "sound"
"""What the run is called that the last two failures are compared with."""


@dataclass(frozen=True)
class Settings:
    """How large the runs are."""

    root: Path
    """Where they lie; those that are there are gone on with."""
    seed: int = 0
    """Of everything."""
    labels: int = 2_000
    """Comparisons that a reward model is trained on."""
    tokens: int = 24_000
    """Response tokens of each PPO run."""
    length_bias: float = 0.3
    """How much better a response seems to the annotators of the third failure for each word, in gold's unit."""
    word_bias: float = 2.0
    """How much better to those of the fourth for each of `CERTAIN`."""
    weak_leash: float = 0.03
    """β of the third and fourth: the default hides much of what annotators taught r_φ."""
    changes: Callable[[RunConfig], RunConfig] = lambda config: config
    """What else is different: for tests."""

    def config(self, name: str, **changes: object) -> RunConfig:
        """A run of this size, in its folder."""
        config = study_config(self.root / name, self.seed, labels=self.labels, tokens=self.tokens, unleashed=False)
        return replace(self.changes(config), **changes)

    def weakly_held(self, name: str, **changes: object) -> RunConfig:
        """The same with the weak leash."""
        config = self.config(name, **changes)
        return replace(config, ppo=replace(config.ppo, kl_coef=self.weak_leash))


def build(settings: Settings) -> dict[str, list[Arm]]:
    """Each failure's arms by its name: first the failure, then the cures; "sound" is held as weakly as the last two."""
    hacked = hacking(settings)
    sound = quiet_run(settings.weakly_held("sound", task=_against(hacked[1].folder)), task_from_sft())
    return {
        "hacking": hacked,
        "collapse": collapse(settings, hacked[1]),
        "length": length(settings),
        "confidence": confidence(settings),
        SOUND: [Arm("annotators without the fault", sound)],
    }


def hacking(settings: Settings) -> list[Arm]:
    """PPO without KL penalty and with it, against one reward model."""
    folder = quiet_run(settings.config("hacking", unleashed=True), task_from_sft())
    return [Arm("no leash (β = 0)", folder, "unleashed"), Arm("KL penalty (β = 0.1)", folder)]


def collapse(settings: Settings, sound: Arm) -> list[Arm]:
    """The same reward model, KL penalty and all, with steps ten times too large; beside the run with the defaults."""
    config = settings.config("collapse", task=_against(sound.folder))
    hot = replace(config.ppo, learning_rate=10 * config.ppo.learning_rate, schedule="constant")
    folder = quiet_run(replace(config, ppo=hot), task_from_sft())
    return [
        Arm(f"learning rate {hot.learning_rate:g}", folder),
        replace(sound, label=f"learning rate {config.ppo.learning_rate:g}, falling"),
    ]


def length(settings: Settings) -> list[Arm]:
    """Annotators who like words; labels by the same people about pairs of equal length; a price on words."""
    config = settings.weakly_held("length")
    biased = replace(config, collect=replace(config.collect, annotator_length_bias=settings.length_bias))
    failed = quiet_run(biased, task_from_sft())
    pairs = settings.root / "length-equal.jsonl"
    if not pairs.is_file():
        write_preferences(pairs, equal_length_labels(replace(biased, run_dir=settings.root / "length-draw"), settings))
    equal = quiet_run(settings.weakly_held("length-equal", task=TaskConfig(preferences=pairs)), task_from_sft())
    priced = settings.weakly_held("length-penalty", task=_against(failed))
    price = word_price(failed)
    fined = quiet_run(replace(priced, ppo=replace(priced.ppo, length_penalty=price)), task_from_sft())
    return [
        Arm("labels as they come", failed),
        Arm("pairs of equal length", equal),
        Arm(f"length penalty {price:.2f}", fined),
    ]


def confidence(settings: Settings) -> list[Arm]:
    """Annotators fond of certainty; their labels without the pairs it could decide; or with counter-labels."""
    config = settings.weakly_held("confidence")
    fond = replace(
        config,
        collect=replace(config.collect, annotator_word_bias=settings.word_bias, annotator_bias_words=CERTAIN),
    )
    failed = quiet_run(fond, task_from_sft())
    collected = failed.stage("collect")
    said = [
        p
        for name in (PREFERENCES, HELDOUT)
        for p in read_preferences(collected / name)
        if p.chosen.strip() and p.rejected.strip()  # preferences of one's own have a text on both sides
    ]
    files = {
        "audited": settings.root / "confidence-audited.jsonl",
        "counter": settings.root / "confidence-counter.jsonl",
    }
    if not files["audited"].is_file():
        write_preferences(files["audited"], [p for p in said if certainty(p.chosen) == certainty(p.rejected)])
    if not files["counter"].is_file():
        write_preferences(files["counter"], [*said, *counter_labels(said, len(said) // 5, settings.seed)])
    runs = {
        name: quiet_run(settings.weakly_held(f"confidence-{name}", task=TaskConfig(preferences=file)), task_from_sft())
        for name, file in files.items()
    }
    return [
        Arm("labels as they come", failed),
        Arm("labels audited", runs["audited"]),
        Arm("a fifth counter-labels", runs["counter"]),
    ]


def certainty(text: str) -> int:
    """Words of certainty in a response."""
    return sum(text.split().count(word) for word in CERTAIN)


def equal_length_labels(config: RunConfig, settings: Settings) -> list[Preference]:
    """As many labels as the others have, by the annotators of `config`, about pairs of as many words."""
    wide = replace(config, collect=replace(config.collect, samples_per_prompt=8))
    run = prepare(wide, task=task_from_sft(), console=Console(file=io.StringIO()))
    by_prompt: dict[str, list[Candidate]] = {}
    for candidate in draw_candidates(run, 1):
        by_prompt.setdefault(candidate.prompt, []).append(candidate)
    pairs = [
        CandidatePair(a, b)
        for candidates in by_prompt.values()
        for a, b in combinations(candidates, 2)
        if a.response != b.response and 0 < len(a.response.split()) == len(b.response.split())
    ]
    order = np.random.default_rng(settings.seed).permutation(len(pairs))[: settings.labels]
    return annotate(run, 1, [pairs[int(i)] for i in order])


def counter_labels(said: Sequence[Preference], count: int, seed: int) -> list[Preference]:
    """Chosen responses beside themselves with words of certainty put in, compared by annotators without the fault."""
    gold = task_from_sft().gold
    assert gold is not None
    rng = np.random.default_rng((seed, 4))
    pairs = []
    for i in rng.permutation(len(said))[:count]:
        base = Candidate(said[int(i)].prompt, said[int(i)].chosen, "the SFT policy")
        sides = [base, edited(base, "confidence", insert, rng, CERTAIN)]
        pairs.append(CandidatePair(*(sides if rng.random() < 0.5 else sides[::-1])))
    return simulated_annotators(gold, temperature=0.25, chance=seed)[0].label(pairs)


def word_price(folder: RunFolder) -> float:
    """What r_φ pays for a word more, in standard deviations: as its probes found."""
    metrics = folder.metrics("reward")
    assert metrics is not None
    return round(float(metrics["probes"]["word_price"]), 3)


def _against(folder: RunFolder) -> TaskConfig:
    return TaskConfig(reward_model=str((folder.stage("reward") / "model").resolve()))
