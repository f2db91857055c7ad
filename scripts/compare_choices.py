"""python scripts/compare_choices.py: five choices of RLHF, the alternatives of each side by side.

    python scripts/compare_choices.py                             # all five; up to ten minutes each on one core
    python scripts/compare_choices.py --studies clip-range labels

`normalisation`: scores times .1, 1 and 10, with and without normalising them and whitening advantages. `clip-range`: ε
of PPO's clip, on the environment that can be enumerated. `kl-at-the-end`: the KL penalty of a response as one sum at
its end, or a token at a time, there too. `labels`: comparisons, rankings and ratings for an equal effort.
`shared-trunk`: r_φ as a head on the trunk of π_ref or of the policy.

Each writes its table between its marks of a page in docs/, and draws docs/images/NAME.png. Every run is a file, and an
interrupted study goes on. It leaves out tuning: all arms of a study have the same learning rates and budgets,
but for a reward model whose head alone is trained. Those of reward models were looked at on seeds 100 and 101.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import compare_agents
import compare_losses
import numpy as np
import torch
from studies import study
from torch import Tensor, nn

from rlhf_gym.agents import FixedKL, LMActorCriticPolicy, Regulariser, TokenAlgorithm, TokenPPO, TokenReinforce
from rlhf_gym.agents.rollout import EpisodeBatch, LossTerm, MinibatchSize, Rollout
from rlhf_gym.envs import NormalizeScore, TokenVectorEnv, tabular_task
from rlhf_gym.lm import Shared, load_causal_lm, quiet_transformers
from rlhf_gym.lm.tokens import pad_rows
from rlhf_gym.pipeline import draw, gold_scores, proxy_scores
from rlhf_gym.preferences import Preference, pairs_from_ranking, pairs_from_ratings
from rlhf_gym.rewards import RewardModel
from rlhf_gym.training import RewardModelingConfig

Figures = dict[str, Any]  # of one run
Found = dict[str, list[Figures]]  # by arm, one a seed
UNCLIPPED = 1e9  # an ε that clips nothing


# -- what is looked at while an agent learns ---------------------------------------------------------------------------


class Watch(Regulariser):
    """Adds nothing; keeps of each minibatch the share of ratios outside 1 ± ε and, of a task, the exact KL(π_old‖π)."""

    def __init__(self, epsilon: float, probabilities: Callable[[Any], np.ndarray] | None = None) -> None:
        self.epsilon = epsilon
        self.probabilities = probabilities
        self.outside: list[list[float]] = []  # by iteration, an entry a minibatch
        self.kl: list[list[float]] = []

    def begin(self, policy: LMActorCriticPolicy, env: TokenVectorEnv) -> None:
        self.policy = policy

    def after_rollout(self, rollout: Rollout) -> Rollout:
        self.outside.append([])
        self.kl.append([])
        if self.probabilities is not None:
            self.old = self.probabilities(self.policy.model)  # (V^T,)
        return rollout

    def loss(self, batch: EpisodeBatch, evaluation: Any, size: MinibatchSize) -> LossTerm | None:
        ratio = (evaluation.log_probs.detach() - batch.log_probs).exp()[batch.mask]  # (n,)
        self.outside[-1].append(float(((ratio - 1).abs() > self.epsilon).float().mean()))
        if self.probabilities is not None:
            new = self.probabilities(self.policy.model)  # (V^T,)
            self.kl[-1].append(float((self.old * np.log(self.old / new)).sum()))
        return None


class KLAtTheEnd(Regulariser):
    """All that a response earned, KL penalties included, falls on its last token."""

    def after_rollout(self, rollout: Rollout) -> Rollout:
        rewards = np.zeros_like(rollout.rewards.rewards)  # (E, T)
        last = [episode.response_length - 1 for episode in rollout.episodes]
        rewards[np.arange(len(last)), last] = rollout.rewards.rewards.sum(axis=1)
        return rollout._replace(rewards=rollout.rewards._replace(rewards=rewards))


# -- scores and advantages, normalised or not --------------------------------------------------------------------------

BETA = 0.1
NORMALISATION: dict[str, tuple[float, bool, bool, dict[str, Any]]] = {  # scale, advantages, scores, other options
    **{f"neither, ×{scale:g}": (scale, False, False, {}) for scale in (0.1, 1.0, 10.0)},
    "neither, ×10, value not clipped": (10.0, False, False, {"clip_range_vf": None}),
    **{f"neither, ×{s:g}, β too": (s, False, False, {"kl_controller": FixedKL(BETA * s)}) for s in (0.1, 10.0)},
    **{f"advantages, ×{scale:g}": (scale, True, False, {}) for scale in (0.1, 1.0, 10.0)},
    **{f"scores, ×{scale:g}": (scale, False, True, {}) for scale in (0.1, 1.0, 10.0)},
    "both, ×10": (10.0, True, True, {}),
}


def normalisation(arm: str, seed: int, tokens: int) -> Figures:
    """PPO on the reviews, whose scores are multiplied by a number."""
    scale, whitened, normalised, more = NORMALISATION[arm]
    shaping = (lambda episodes, scores: scale * scores, *([NormalizeScore()] if normalised else []))
    watch = Watch(0.2)
    options = {"normalize_advantage": whitened, "regularisers": [watch], "kl_controller": FixedKL(BETA)} | more
    _, figures = compare_losses.reviews_agent(TokenPPO, seed, tokens, {"shaping": shaping}, **options)
    return figures | {"outside": float(np.mean([np.mean(each) for each in watch.outside]))}


def draw_normalisation(axes: np.ndarray, found: Found) -> None:
    """Gold and KL over the scale, a line for each way."""
    for axis, (name, label) in zip(axes, {"gold": "gold", "kl": "KL from π_ref, nats"}.items(), strict=True):
        ways = dict.fromkeys(arm.split(",")[0] for arm in found if not arm.startswith("both"))
        for way, colour in zip(ways, study.COLOURS, strict=False):
            arms = {
                NORMALISATION[arm][0]: runs
                for arm, runs in found.items()
                if arm.startswith(way) and arm.count(",") == 1
            }
            means, errors = np.array([study.mean_and_error([run[name] for run in runs]) for runs in arms.values()]).T
            axis.errorbar(list(arms), means, errors, color=colour, marker="o", capsize=3, label=way)
        axis.set(xscale="log", xlabel="r_φ times", ylabel=label)
    axes[0].set_title("β = .1 throughout")
    axes[0].legend(title="normalised", alignment="left")


# -- ε of the clip -----------------------------------------------------------------------------------------------------

CLIP_RANGES = {f"{epsilon:g}".lstrip("0"): epsilon for epsilon in (0.05, 0.1, 0.2, 0.3, 0.5)} | {"none": UNCLIPPED}
EPOCHS = 8


def clip_range(arm: str, seed: int, tokens: int) -> Figures:
    """PPO with this ε on the table, eight epochs a rollout: J over tokens, exact KL(π_old‖π) and what is clipped."""
    run = compare_agents.Run("tabular", 0.05, tokens, seed)
    watch = Watch(CLIP_RANGES[arm], run.task.probabilities)
    options = compare_losses.EXACT | {"n_epochs": EPOCHS, "clip_range": CLIP_RANGES[arm], "regularisers": [watch]}
    figures = exact_run(run, TokenPPO, options)
    steps = len(watch.kl[0]) // EPOCHS
    first = [np.array(each[: max(1, len(each) // 4)]).mean(axis=0) for each in (watch.kl, watch.outside)]
    by_epoch = [each[steps - 1 :: steps].tolist() for each in first]  # at the last minibatch of each epoch
    return figures | {"kl_old": by_epoch[0], "outside": by_epoch[1], "kl_last": by_epoch[0][-1], "out": first[1].mean()}


def exact_run(run: compare_agents.Run, kind: type[TokenAlgorithm], options: dict[str, Any]) -> Figures:
    """An agent's learning on a task that can be enumerated: J* − J, its mean on the way, and its curve."""
    with quiet_transformers():
        model, tokens = compare_agents.ours(run, kind, **options)
    curve = [*run.curve, (tokens, run.measure(model))]
    gaps = [(at, figures["gap"]) for at, figures in curve]
    return {"gap": gaps[-1][1], "mean": float(np.mean([gap for _, gap in gaps])), "curve": gaps}


def draw_clip_range(axes: np.ndarray, found: Found) -> None:
    """J* − J over tokens; KL to π_old and the share outside 1 ± ε over the epochs of an update."""
    colours = dict(zip(found, ("#9dbfe8", "#5c93d6", "#1f56a5", "#e08a3c", "#bf4a14", study.INK), strict=False))
    draw_curves(axes[0], found, colours)
    for axis, name in zip(axes[1:], ("kl_old", "outside"), strict=True):
        for arm, runs in found.items():
            if name == "kl_old" or arm != "none":
                line = np.mean([run[name] for run in runs], axis=0)
                axis.plot(
                    np.arange(1, len(line) + 1),
                    line,
                    color=colours[arm],
                    marker="o",
                    ms=3,
                    label=f"ε {arm}" if arm != "none" else "nothing clipped",
                )
        axis.set(xlabel="epoch of an update")
    axes[0].set_title("median and range of the seeds")
    axes[1].set(yscale="log", ylabel="KL(π_old‖π) of a response, nats", title="in the first quarter of the updates")
    axes[2].set(ylabel="share of ratios outside 1 ± ε")
    axes[1].legend()


def draw_curves(axis: Any, found: Found, colours: dict[str, str]) -> None:
    """J* − J over tokens, the median and the range of each arm's seeds."""
    for arm, runs in found.items():
        tokens = [at for at, _ in runs[0]["curve"]]
        gaps = [np.interp(tokens, *zip(*run["curve"], strict=True)) for run in runs]
        gaps = np.maximum(gaps, compare_agents.FLOOR)  # (seeds, looks)
        axis.plot(tokens, np.median(gaps, axis=0), color=colours[arm], label=arm)
        axis.fill_between(tokens, gaps.min(axis=0), gaps.max(axis=0), color=colours[arm], alpha=0.08, lw=0)
    axis.set(yscale="log", xlabel="tokens", ylabel="J* − J")


# -- the KL penalty a token at a time, or at the end -------------------------------------------------------------------

PLACES = ("token by token", "at the end")
LEARNERS: dict[str, tuple[type[TokenAlgorithm], float, dict[str, Any]]] = {
    "PPO, λ .95": (TokenPPO, 0.05, compare_losses.EXACT),
    "PPO, λ 1": (TokenPPO, 0.05, compare_losses.EXACT | {"gae_lambda": 1.0}),
    "REINFORCE, G_t": (TokenReinforce, 0.2, compare_losses.ONE | {"reward_to_go": True}),
}


def kl_at_the_end(arm: str, seed: int, tokens: int) -> Figures:
    """An agent on a table of 3 tokens and 5 steps, 243 responses."""
    learner, place = arm.rsplit(", ", 1)
    kind, rate, options = LEARNERS[learner]
    run = compare_agents.Run("tabular", rate, tokens, seed)
    run.task = tabular_task(seed, vocab_size=3, horizon=5)
    return exact_run(run, kind, options | {"regularisers": [KLAtTheEnd()] if place == PLACES[1] else []})


def draw_kl_at_the_end(axes: np.ndarray, found: Found) -> None:
    """J* − J over tokens, a panel an agent."""
    for axis, learner in zip(axes, LEARNERS, strict=True):
        shown = {place: found[f"{learner}, {place}"] for place in PLACES if f"{learner}, {place}" in found}
        draw_curves(axis, shown, dict(zip(shown, study.COLOURS, strict=False)))
        axis.set_title(learner)
        axis.sharey(axes[0])
    axes[0].legend(title="KL penalty", alignment="left")


# -- kinds of labels ---------------------------------------------------------------------------------------------------

PROMPTS = 300  # of those that labels are about
HELDOUT_PROMPTS = 150
COPIES = 4  # responses to a prompt
ALL_PAIRS = [[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]]  # of four, as neighbours
TAU = 0.5  # of the annotators, in gold's unit
DRIFT = 1.0  # between raters whose scales differ, in gold's unit
LABELS = {
    "comparisons": "pairs",
    "rankings of 4": "ranking",
    "ratings": "rating",
    "ratings by raters whose scales differ": "drift",
}
R_PHI = replace(study.REWARD_TRAINING, batch_size=16)


@dataclass(frozen=True, eq=False)
class Drawn:
    """SFT responses of one seed, `COPIES` to a prompt."""

    prompts: list[str]
    responses: list[list[str]]
    gold: np.ndarray  # (prompts, copies)


def drawn(prompts: Sequence[str], seed: int) -> Drawn:
    """The SFT policy's responses to the first `prompts` in an order of the seed."""
    task = study.task_from_sft()
    samples = draw(load_causal_lm(task.sft), task, [p for p in prompts for _ in range(COPIES)], seed=seed)
    rows = [samples.responses[i : i + COPIES] for i in range(0, len(samples), COPIES)]
    return Drawn(list(prompts), rows, gold_scores(task.gold, samples).reshape(-1, COPIES))


def labelled(data: Drawn, kind: str, rng: np.random.Generator) -> list[Preference]:
    """What annotators say, who perceive gold + τ·Gumbel noise: pairs are Bradley–Terry, rankings Plackett–Luce."""
    perceived = data.gold + TAU * rng.gumbel(size=data.gold.shape)  # (prompts, copies)
    if kind == "drift":
        perceived = perceived + DRIFT * rng.standard_normal(perceived.shape)
    stars = np.clip(np.round(perceived), -2, 2)  # five of them
    said: list[Preference] = []
    for prompt, responses, seen, rated in zip(data.prompts, data.responses, perceived, stars, strict=True):
        if kind in ("rating", "drift"):
            said += pairs_from_ratings(prompt, responses, rated.tolist())
            continue
        parts = [[0, 1, 2, 3]] if kind == "ranking" else [[0, 1], [2, 3]]
        for part in parts:
            ranks = (1 + (-seen[part]).argsort().argsort()).tolist()
            said += pairs_from_ranking(prompt, [responses[i] for i in part], ranks)
    return said


def trained(
    kind: str, seed: int, training: RewardModelingConfig = R_PHI, head_alone: bool = False
) -> tuple[RewardModel, list[Preference]]:
    """A reward model, and the labels of this kind that it was trained on."""
    task = study.task_from_sft()
    rng = np.random.default_rng(seed)
    order = [task.prompts[int(i)] for i in rng.permutation(len(task.prompts))]
    said = labelled(drawn(order[:PROMPTS], seed), kind, rng)
    return study.train_r_phi(task.sft, task, said, seed, training=training, head_alone=head_alone), said


def labels(arm: str, seed: int, tokens: int) -> Figures:
    """A reward model from labels of this kind, how it orders held-out responses, and PPO against it."""
    reward, said = trained(LABELS[arm], seed)
    return ppo_against(reward, seed, tokens) | {"pairs": len(said)}


def ppo_against(reward: RewardModel, seed: int, tokens: int, *regularisers: Regulariser) -> Figures:
    """PPO against a reward model normalised on SFT responses: accuracy on held-out pairs, and gold afterwards."""
    task = study.task_from_sft()
    before = drawn(task.heldout_prompts[:HELDOUT_PROMPTS], seed + 100)
    asked = [prompt for prompt in before.prompts for _ in range(COPIES)]
    said = [response for row in before.responses for response in row]

    def right(scores: np.ndarray, golds: np.ndarray) -> float:
        by_prompt = (each.reshape(-1, COPIES)[:, ALL_PAIRS] for each in (scores, golds))  # (prompts, 3, 4) each
        return study.share_ordered_right(*by_prompt)

    reward.fit_normalizers(asked, said)
    figures = {"right": right(reward.score_texts(asked, said), before.gold)}
    changes = {"reward": Shared(reward)}
    agent, reached = compare_losses.reviews_agent(TokenPPO, seed, tokens, changes, regularisers=list(regularisers))
    own = draw(agent.policy.model, task, asked, seed=seed + 200)
    fresh = right(proxy_scores(reward, task.tokenizer, own), gold_scores(task.gold, own))
    return figures | reached | {"later": right(reward.score_texts(asked, said), before.gold), "fresh": fresh}


def draw_labels(axes: np.ndarray, found: Found) -> None:
    """Accuracy and gold, an arm a row, a dot a seed."""
    for axis, (name, label) in zip(
        axes, {"right": "r_φ right on held-out pairs", "gold": "gold after PPO"}.items(), strict=True
    ):
        for row, runs in enumerate(found.values()):
            values = [run[name] for run in runs]
            axis.plot(values, [row] * len(values), "o", color=study.COLOURS[0], alpha=0.45)
            axis.plot([np.mean(values)], [row], "|", color=study.COLOURS[0], ms=18, mew=2.5)
        axis.set(xlabel=label, yticks=range(len(found)), ylim=(len(found) - 0.5, -0.5))
        axis.set_yticklabels(list(found))
    axes[1].set_yticklabels([])


# -- whose trunk r_φ stands on -----------------------------------------------------------------------------------------

TRUNKS = (
    "a trunk of its own",
    "a head on π_ref's trunk, which stays",
    "a head on the policy's trunk",
    "a head on the policy's trunk, comparisons in PPO's loss",
)


class OnPolicyTrunk(Regulariser):
    """r_φ is a head on the policy's trunk: its own is that of the policy again after each update.

    With comparisons, their Bradley–Terry loss is added to PPO's: the trunk learns it, and the head stays.
    """

    def __init__(self, reward: RewardModel, comparisons: Sequence[Preference], batch_size: int = 16) -> None:
        self.reward = reward
        self.comparisons = comparisons
        self.batch_size = batch_size
        self.used = 0

    def begin(self, policy: LMActorCriticPolicy, env: TokenVectorEnv) -> None:
        self.policy = policy
        self.own = copy.copy(self.reward.model)  # the same head on the policy's trunk
        self.own._modules = dict(self.reward.model._modules)
        setattr(self.own, self.own.base_model_prefix, policy.model.base_model)

    def add_gradient(self, micro_batch_size: int | None) -> dict[str, Tensor]:
        if not self.comparisons:
            return {}
        places = [(self.used + i) % len(self.comparisons) for i in range(self.batch_size)]
        self.used += self.batch_size
        pairs = [self.comparisons[place] for place in places]
        texts = [p.chosen for p in pairs] + [p.rejected for p in pairs]
        rows = self.reward.encode([p.prompt for p in pairs] * 2, texts)
        ids, mask = map(torch.from_numpy, pad_rows(rows))  # (2B, L) each
        chosen, rejected = self.own(input_ids=ids, attention_mask=mask.long()).logits[:, 0].chunk(2)  # (B,) each
        loss = nn.functional.softplus(rejected - chosen).mean()
        loss.backward()
        return {"train/comparisons": loss.detach()}

    def after_iteration(self) -> None:
        self.reward.trunk.load_state_dict(self.policy.model.base_model.state_dict())


def shared_trunk(arm: str, seed: int, tokens: int) -> Figures:
    """A reward model on this trunk from comparisons, how it orders held-out responses, and PPO against it."""
    place = TRUNKS.index(arm)
    training = replace(R_PHI, epochs=12, learning_rate=0.03) if place else R_PHI  # for the head alone
    reward, said = trained("pairs", seed, training=training, head_alone=place > 0)
    learned = sum(p.numel() for p in reward.model.parameters() if p.requires_grad)
    moving = [OnPolicyTrunk(reward, said if place == 3 else ())] if place > 1 else []
    figures = ppo_against(reward, seed, tokens, *moving)
    trunk = sum(p.numel() for p in reward.trunk.parameters())
    head = sum(p.numel() for p in reward.model.parameters()) - trunk
    return figures | {"trained": learned / 1e3, "held": ((3 if place == 0 else 2) * trunk + head) / 1e3}


def draw_shared_trunk(axes: np.ndarray, found: Found) -> None:
    """Accuracy before and after PPO on SFT pairs and on the policy's own; gold."""
    for row, runs in enumerate(found.values()):
        for name, shape, colour in zip(("right", "later", "fresh"), "o^s", study.COLOURS, strict=False):
            mean, error = study.mean_and_error([run[name] for run in runs])
            label = {"right": "SFT's, before PPO", "later": "SFT's, after it", "fresh": "the new policy's own"}[name]
            axes[0].errorbar([mean], [row], xerr=[error], fmt=shape, color=colour, label="" if row else label)
        mean, error = study.mean_and_error([run["gold"] for run in runs])
        axes[1].errorbar([mean], [row], xerr=[error], fmt="o", color=study.INK)
    for axis in axes:
        axis.set(yticks=range(len(found)), ylim=(len(found) - 0.5, -0.5))
    axes[0].set_yticklabels([textwrap.fill(arm, 24) for arm in found])
    axes[1].set_yticklabels([])
    axes[0].set(xlabel="pairs ordered as gold does", xlim=(0.45, 0.95))
    axes[1].set(xlabel="gold after PPO")
    axes[0].legend(loc="lower left", bbox_to_anchor=(-0.5, 1), ncols=3, columnspacing=1, handletextpad=0.3)


# -- all of them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """One study: its arms, how a run of an arm is done, and where its table and picture are."""

    page: str
    """The page of docs/ that has its marks."""
    what: str
    """What the arms are."""
    arms: Sequence[str]
    """The rows."""
    measure: Callable[[str, int, int], Figures]
    """Does one run of an arm, with this seed and so many tokens."""
    columns: dict[str, tuple[str, str]]
    """For each column the name of its figure, and the format."""
    draw: Callable[[np.ndarray, Found], None]
    """Draws on the panels of the picture."""
    tokens: int
    """That PPO learns from, in each run."""
    seeds: Sequence[int] = (0, 1, 2)
    """The seeds of each arm."""
    panels: int = 2
    """Panels of the picture."""


REVIEWS = {"gold": ("gold", ".2f"), "KL, nats": ("kl", ".2f")}
EXACT = {"J* − J": ("gap", ".4f"), "mean of it on the way": ("mean", ".4f")}
CHOICES: dict[str, Choice] = {
    "normalisation": Choice(
        "loops.md",
        "normalised, r_φ times",
        tuple(NORMALISATION),
        normalisation,
        REVIEWS | {"ratios outside 1 ± .2": ("outside", ".1%")},
        draw_normalisation,
        6_000,
    ),
    "clip-range": Choice(
        "losses.md",
        "ε",
        tuple(CLIP_RANGES),
        clip_range,
        EXACT | {"KL(π_old‖π) after an update": ("kl_last", ".3f"), "ratios outside 1 ± ε": ("out", ".1%")},
        draw_clip_range,
        8_000,
        panels=3,
    ),
    "kl-at-the-end": Choice(
        "losses.md",
        "agent, KL penalty",
        tuple(f"{learner}, {place}" for learner in LEARNERS for place in PLACES),
        kl_at_the_end,
        EXACT,
        draw_kl_at_the_end,
        30_000,
        seeds=(0, 1, 2, 3, 4),
        panels=3,
    ),
    "labels": Choice(
        "preferences.md",
        "labels",
        tuple(LABELS),
        labels,
        {"pairs": ("pairs", ",.0f"), "r_φ right": ("right", ".1%")} | REVIEWS,
        draw_labels,
        6_000,
    ),
    "shared-trunk": Choice(
        "reward_models.md",
        "r_φ is",
        TRUNKS,
        shared_trunk,
        {
            "thousand weights trained for r_φ": ("trained", ".1f"),
            "thousand held in PPO": ("held", ".0f"),
            "r_φ right before PPO": ("right", ".1%"),
            "after it": ("later", ".1%"),
            "about the new policy's responses": ("fresh", ".1%"),
        }
        | REVIEWS,
        draw_shared_trunk,
        6_000,
    ),
}
Name = Literal[tuple(CHOICES)]  # type: ignore[valid-type]


def main(
    studies: tuple[Name, ...] = tuple(CHOICES),
    arms: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    tokens: int | None = None,
    results: Path = Path("runs/choices_compared"),
    docs: Path = study.DOCS,
) -> None:
    """Do these studies, by default with all their arms, seeds and tokens; `docs` has the pages and the pictures."""
    for name in studies:
        choice = CHOICES[name]
        chosen = [arm for arm in choice.arms if not arms or arm in arms]
        found: Found = {}
        for arm in chosen:
            budget = tokens or choice.tokens
            found[arm] = compare_losses.kept(choice.measure, results / f"{name}-", arm, seeds or choice.seeds, budget)
            print(" | ".join(row(choice, arm, found[arm])), flush=True)
        header = [choice.what, *(f"{column}:" for column in choice.columns)]
        table = study.markdown_table(header, [row(choice, arm, runs) for arm, runs in found.items()])
        study.put_into_page(docs / choice.page, name, "compare_choices.py", table)
        path = docs / "images" / f"{name.replace('-', '_')}.png"
        with study.picture(path, 1, choice.panels, (4.4 * choice.panels, 3.8)) as axes:
            choice.draw(axes[0], found)


def row(choice: Choice, arm: str, runs: Sequence[Figures]) -> list[str]:
    """An arm's cells: means ± standard errors over the seeds; what is the same for all seeds stands alone."""
    values = [[run[name] for run in runs] for name, _ in choice.columns.values()]
    values = [each[:1] if len(set(each)) == 1 else each for each in values]
    return [arm, *map(study.spread, values, (form for _, form in choice.columns.values()))]


if __name__ == "__main__":
    study.run_script(main)
