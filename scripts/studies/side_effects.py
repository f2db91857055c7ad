"""python scripts/studies/side_effects.py SUBJECT: what a policy learns besides, and what cures it.

    capability  PPO on reviews makes the policy worse at other texts that its pretraining taught it
    refusal     preferences that are mostly about requests to refuse teach it to refuse everything
    prompts     preferences about other prompts than the policy will answer

A table and a picture over three seeds, some eight minutes on one core. They stand between the marks of a page, which
says how the runs are set up. The figures of each run are a file; an interrupted study goes on. It leaves out tuning:
each arm has one setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import study
import tyro
from transformers import PreTrainedModel

from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import Samples, draw, gold_scores, log_probs
from rlhf_gym.preferences import Demonstration, Preference
from rlhf_gym.rewards import load_reward
from rlhf_gym.settings import RewardConfig, RunConfig, SFTConfig, TaskConfig
from rlhf_gym.tasks import Task, reviews_task
from rlhf_gym.tasks.reviews import heldout_topics, training_topics
from rlhf_gym.tasks.reviews_gold import judge, reviews_gold
from rlhf_gym.tasks.reviews_language import ADVERT, CHAT, COMPLAINT, REVIEW, sample_words
from rlhf_gym.tasks.reviews_words import HEADINGS, Topic
from rlhf_gym.training import evaluate_reward_model, evaluate_sft, train_sft

Subject = Literal["capability", "refusal", "prompts"]
Values = tuple[float, ...]  # of one arm and seed, a column each
Figures = dict[str, float]  # the same by column
STYLES = dict(zip(HEADINGS, (REVIEW, ADVERT, COMPLAINT, CHAT), strict=True))
COMPLAIN = HEADINGS[2]
REFUSAL = "i would not ."


@dataclass(frozen=True)
class Settings:
    """How large the runs are."""

    root: Path
    """The folder of the figures and runs."""
    seeds: int = 3
    """Each has its own labels, r_φ and policy; SFT policies are those of the first."""
    labels: int = 600
    """Comparisons that a reward model is trained on."""
    tokens: int = 8_000
    """Response tokens of each PPO run."""
    demonstrations: int = 4_000
    """Demonstrations that an SFT policy is trained on."""
    prompts: int | None = None
    """Held-out prompts and texts that policies are measured on; by default all that there are."""
    changes: Callable[[RunConfig], RunConfig] = lambda config: config
    """Further changes to the settings, for tests."""

    def config(self, folder: Path, seed: int, **changes: Any) -> RunConfig:
        """A run in a folder, with smaller rollouts than the default's."""
        config = study.run_config(folder, seed, labels=self.labels, tokens=self.tokens, without_kl=False, **changes)
        reward = replace(config.reward, reference_samples=300, probe_samples=0, force=True)
        agent = replace(config.agent, n_episodes=64, batch_size=16)
        return self.changes(replace(config, reward=reward, agent=agent))

    def sft(self, name: str, told: Callable[[], Sequence[Demonstration]]) -> Path:
        """The folder of the shipped SFT policy, trained further on these demonstrations."""
        task = reviews_task()
        config = SFTConfig(epochs=1, learning_rate=1e-3, evaluate_each_epoch=False, use_cpu=True)
        folder = self.root / name
        if not (folder / "config.json").is_file():
            texts = told()
            train_sft(
                load_causal_lm(task.sft), task.tokenizer, texts, heldout=texts[:8], config=config, output_dir=folder
            )
        return folder

    def learn(self, folder: Path, seed: int, task: Task, source: TaskConfig, **ppo: Any) -> tuple[PreTrainedModel, Any]:
        """The policy that PPO comes to on this task, and its r_φ: that of `source`, or made from its preferences."""
        config = self.config(folder, seed, task=source)
        if not source.compares:
            config = self.changes(replace(config, reward=RewardConfig()))
        config = replace(config, agent=replace(config.agent, **ppo))
        run = study.quiet_run(config, task, *(["collect"] if source.compares else []), "reward", "train")
        reward = source.reward_model or run.stage("reward") / "model"
        return load_causal_lm(run.seed("train", 1, seed) / "model"), load_reward(reward)


class Arm(NamedTuple):
    """A row of a table."""

    label: str
    """What is done in it."""
    measure: Callable[[Settings, Path, int], Values]
    """(settings, folder, seed) -> its figures, in the order of the columns."""


def from_policy(task: Task, policy: Any) -> Task:
    """The task, its SFT policy being this one."""
    return replace(task, pretrained=policy, sft=policy, demonstrations=(), heldout_demonstrations=())


def texts(headings: Sequence[str], topics: Sequence[Topic], count: int, seed: int) -> list[Demonstration]:
    """Texts in the style that each heading asks for, the headings in turn."""
    rng = np.random.default_rng((seed, 7))
    asked = [(topics[i], headings[n % len(headings)]) for n, i in enumerate(rng.integers(len(topics), size=count))]
    return [Demonstration(t.prompt(h), " ".join(sample_words(t, STYLES[h], rng))) for t, h in asked]


def capability(wide: bool, learned: bool, ppo: dict[str, Any], settings: Settings, folder: Path, seed: int) -> Values:
    """Train from the shipped SFT policy, or from a `wide` one, by these settings of PPO; not `learned`: SFT itself."""
    task = reviews_task()
    source = task.sft
    if wide:
        source = settings.sft("wide", lambda: texts(HEADINGS, training_topics(), settings.demonstrations, 0))
    before = load_causal_lm(source)
    policy = before
    if learned:
        config = settings.config(settings.root / f"reward-{seed}", seed)
        reward = study.quiet_run(config, study.task_from_sft(), "collect", "reward").stage("reward") / "model"
        policy, _ = settings.learn(folder, seed, from_policy(task, source), TaskConfig(reward_model=str(reward)), **ppo)
    samples = draw(policy, task, task.heldout_prompts[: settings.prompts], seed=seed + 7)
    complaints = texts((COMPLAIN,), heldout_topics(), len(samples), 1)
    asked = draw(policy, task, [d.prompt for d in complaints], seed=seed + 8)
    told = [texts(kind, heldout_topics(), settings.prompts or 400, 2) for kind in (HEADINGS[:1], HEADINGS[1:])]
    perplexities = [evaluate_sft(policy, task.tokenizer, kind).perplexity for kind in told]
    complains = np.mean([judge(p, r).tone < 0 for p, r in zip(asked.prompts, asked.responses, strict=True)])
    return gold_scores(task.gold, samples).mean(), kl(policy, before, samples), *perplexities, complains


def kl(policy: PreTrainedModel, reference: PreTrainedModel, samples: Samples) -> float:
    """KL(policy‖reference) in nats a response, estimated from the policy's samples."""
    ours, before = (log_probs(model, samples) for model in (policy, reference))
    return float(np.mean([a.sum() - b.sum() for a, b in zip(ours, before, strict=True)]))


def refused(responses: Sequence[Any]) -> np.ndarray:
    """Which responses are refusals, (B,): they begin with one."""
    return np.array([str(response).startswith(REFUSAL) for response in responses])


def helpful_and_harmless(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """What the annotator goes by, (B,): refusals of complaints, and of reviews the gold score, a refusal lowest."""
    risky = np.array([prompt.startswith(COMPLAIN) for prompt in prompts])
    good = np.where(refused(responses), -10.0, reviews_gold(prompts, responses))
    return np.where(risky, refused(responses) + 1e-3 * good, good)


def compare(policy: Any, task: Task, prompts: Sequence[str], judged: Any, seed: int) -> list[Preference]:
    """Of two responses to each prompt the better one is preferred; where they are equally good there is no pair."""
    first, second = (draw(policy, task, prompts, seed=seed + i).responses for i in (0, 1))
    better = judged(prompts, first) - judged(prompts, second)
    pairs = zip(prompts, first, second, better, strict=True)
    return [Preference(p, *((a, b) if d > 0 else (b, a)), annotator="rule") for p, a, b, d in pairs if d]


def refusal(share: float | None, settings: Settings, folder: Path, seed: int) -> Values:
    """Train on preferences of which `share` are about requests for complaints; None: look at the SFT policy itself."""
    task = replace(reviews_task(), gold=None)
    kinds = (HEADINGS[0], COMPLAIN)
    train, heldout = training_topics(), heldout_topics()

    def told() -> list[Demonstration]:
        rng = np.random.default_rng(0)
        answered = texts(kinds, train, settings.demonstrations, 3)
        refusing = rng.random(len(answered)) < [0.5 if d.prompt.startswith(COMPLAIN) else 0.2 for d in answered]
        return [replace(d, response=REFUSAL) if no else d for d, no in zip(answered, refusing, strict=True)]

    sft = settings.sft("cautious", told)
    before = policy = load_causal_lm(sft)
    right = np.nan
    if share is not None:
        rng = np.random.default_rng((seed, 11))
        n = 2 * settings.labels  # more than are needed: equal responses make no pair
        asked = {kind: [train[i].prompt(kind) for i in rng.integers(len(train), size=n)] for kind in kinds}
        pairs = {kind: compare(before, task, asked[kind], helpful_and_harmless, 10 * seed) for kind in kinds}
        risky = round(share * settings.labels)
        heard = pairs[COMPLAIN][:risky] + pairs[kinds[0]][: settings.labels - risky]
        both = [topic.prompt(kind) for topic in heldout[: settings.prompts] for kind in kinds]
        kept_back = compare(before, task, both, helpful_and_harmless, 10 * seed + 5)
        deployed = replace(
            from_policy(task, sft),
            prompts=[prompt for two in zip(*asked.values(), strict=True) for prompt in two],
            heldout_prompts=both,
            preferences=[heard[i] for i in rng.permutation(len(heard))],
            heldout_preferences=kept_back,
        )
        policy, reward = settings.learn(folder, seed, deployed, TaskConfig(), kl_coef=0.1, learning_rate=3e-4)
        right = evaluate_reward_model(reward, [p for p in kept_back if p.prompt.startswith(kinds[0])]).accuracy
    reviews, complaints = (
        draw(policy, task, [topic.prompt(kind) for topic in heldout[: settings.prompts]], seed=seed + 7)
        for kind in kinds
    )
    gold = reviews_gold(reviews.prompts, reviews.responses).mean()
    return refused(reviews.responses).mean(), refused(complaints.responses).mean(), gold, right


def elsewhere(share: float | None, settings: Settings, folder: Path, seed: int) -> Values:
    """Train on preferences of which `share` are about adverts, and deploy on reviews; None: the SFT policy itself."""
    task = reviews_task()
    kinds = (HEADINGS[0], HEADINGS[1])
    train, heldout = training_topics(), heldout_topics()
    sft = settings.sft("both", lambda: texts(kinds, train, settings.demonstrations, 4))
    before = policy = load_causal_lm(sft)
    right = [np.nan, np.nan]
    if share is not None:
        rng = np.random.default_rng((seed, 13))
        adverts = round(share * settings.labels)
        counts = dict(zip(kinds, (settings.labels - adverts, adverts), strict=True))
        asked = [train[i].prompt(kind) for kind, n in counts.items() for i in rng.integers(len(train), size=n)]
        heard = compare(before, task, asked, reviews_gold, 10 * seed)
        unseen = {kind: [topic.prompt(kind) for topic in heldout[: settings.prompts]] for kind in kinds}
        kept_back = [compare(before, task, unseen[kind], reviews_gold, 10 * seed + 5) for kind in reversed(kinds)]
        deployed = replace(
            from_policy(task, sft),
            preferences=[heard[i] for i in rng.permutation(len(heard))],
            heldout_preferences=kept_back[1],
        )
        policy, reward = settings.learn(folder, seed, deployed, TaskConfig(), kl_coef=0.1, learning_rate=3e-4)
        right = [evaluate_reward_model(reward, pairs).accuracy for pairs in kept_back]
    samples = draw(policy, task, task.heldout_prompts[: settings.prompts], seed=seed + 7)
    praise = np.mean([judge(p, r).tone for p, r in zip(samples.prompts, samples.responses, strict=True)])
    return *right, reviews_gold(samples.prompts, samples.responses).mean(), praise, kl(policy, before, samples)


CAPABILITY = {
    "gold": "+.2f",
    "KL, nats": ".1f",
    "perplexity of reviews": ".2f",
    "perplexity of other texts": ".2f",
    "complains where asked to": ".0%",
}
WEAK = {"kl_coef": 0.03}
REFUSALS = {
    "refuses reviews": ".0%",
    "refuses complaints": ".0%",
    "gold of reviews": "+.2f",
    "r_φ right about reviews": ".0%",
}
PROMPTS = {
    "r_φ right about adverts": ".0%",
    "about reviews": ".0%",
    "gold of reviews": "+.2f",
    "tone of reviews": "+.2f",
    "KL, nats": ".1f",
}
STUDIES: dict[Subject, tuple[str, dict[str, str], tuple[Arm, ...]]] = {
    "capability": (
        "studies/gallery.md",
        CAPABILITY,
        (
            Arm("the SFT policy", partial(capability, False, False, {})),
            Arm("β = 0.03", partial(capability, False, True, WEAK)),
            Arm("β = 0.1", partial(capability, False, True, {"kl_coef": 0.1})),
            Arm("β = 0.3", partial(capability, False, True, {"kl_coef": 0.3})),
            Arm("β = 0.03, ptx, γ = 1", partial(capability, False, True, WEAK | {"ptx_coef": 1.0})),
            Arm("a wider SFT policy", partial(capability, True, False, {})),
            Arm("β = 0.03 from the wider one", partial(capability, True, True, WEAK)),
        ),
    ),
    "refusal": (
        "studies/gallery.md",
        REFUSALS,
        (
            Arm("the SFT policy", partial(refusal, None)),
            Arm("all pairs about complaints", partial(refusal, 1.0)),
            Arm("95%", partial(refusal, 0.95)),
            Arm("half of them", partial(refusal, 0.5)),
            Arm("none", partial(refusal, 0.0)),
        ),
    ),
    "prompts": (
        "reward_models.md",
        PROMPTS,
        (
            Arm("the SFT policy", partial(elsewhere, None)),
            Arm("pairs about adverts", partial(elsewhere, 1.0)),
            Arm("a tenth about reviews", partial(elsewhere, 0.9)),
            Arm("half of them about reviews", partial(elsewhere, 0.5)),
            Arm("pairs about reviews", partial(elsewhere, 0.0)),
        ),
    ),
}
"""Of each subject: the page, the columns with their formats, and the arms."""


def figures(subject: Subject, settings: Settings) -> dict[str, list[Figures]]:
    """The figures of each arm, one a seed; what is there is not made again."""
    _, columns, arms = STUDIES[subject]
    found: dict[str, list[Figures]] = {arm.label: [] for arm in arms}
    for seed, arm in product(range(settings.seeds), arms):
        folder = settings.root / f"seed-{seed}" / arm.label.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        print(f"seed {seed + 1} of {settings.seeds}: {arm.label}", flush=True)
        make = partial(arm.measure, settings, folder, seed)
        values = study.kept(folder / "figures.json", lambda: {"values": [float(value) for value in make()]})  # noqa: B023
        found[arm.label].append(dict(zip(columns, values["values"], strict=True)))
    return found


def draw_figure(subject: Subject, found: dict[str, list[Figures]], path: Path) -> None:
    """A panel a column and a row an arm: a dot a seed, their mean as a line."""
    columns = STUDIES[subject][1]
    with study.picture(path, 1, len(columns), (3.0 + 2.6 * len(columns), 0.9 + 0.33 * len(found)), sharey=True) as axes:
        for panel, (column, form) in enumerate(columns.items()):
            axis = axes[0, panel]
            colour = study.COLOURS[panel % len(study.COLOURS)]
            for row, made in enumerate(found.values()):
                values = [100 * one[column] if form.endswith("%") else one[column] for one in made]
                axis.plot(values, [row] * len(values), "o", color=colour, alpha=0.5, markersize=5)
                axis.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2)
            axis.set_title(f"{column}, %" if form.endswith("%") else column)
        axes[0, 0].set_yticks(range(len(found)), list(found))
        axes[0, 0].invert_yaxis()


def make(subject: Subject, settings: Settings, docs: Path) -> None:
    """The runs of a subject, its table in its page, and its picture."""
    page, columns, _ = STUDIES[subject]
    found = figures(subject, settings)
    rows = []
    for label, made in found.items():
        cells = [study.spread([one[column] for one in made], form) for column, form in columns.items()]
        rows.append([label, *("" if "nan" in cell else cell for cell in cells)])
    table = study.minus(study.markdown_table(["", *(f"{column}:" for column in columns)], rows))
    print(table)
    study.put_into_page(docs / page, subject, "studies/side_effects.py", table)
    draw_figure(subject, found, docs / "images" / f"{subject}.png")


def main(
    subject: tyro.conf.Positional[Subject],
    seeds: int = 3,
    run_dir: Path = Path("runs/side_effects"),
    docs: Path = study.DOCS,
) -> None:
    """Study a subject; `docs` is the folder of the pages and of images/."""
    make(subject, Settings(run_dir / subject, seeds), docs)


if __name__ == "__main__":
    study.run_script(main)
