"""Training of a reward model on preferences: pairwise Bradley–Terry, rankings weighed by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_gym.functional.losses import bradley_terry_loss
from rlhf_gym.lm.chat import Prompt, Response
from rlhf_gym.lm.tokens import pad_rows
from rlhf_gym.preferences import Preference
from rlhf_gym.rewards import FunctionReward, ResponseTokens, RewardModel, RewardNormalizer, TokenRewardModel
from rlhf_gym.settings import RewardModelingConfig
from rlhf_gym.training.data import check_rows, described, fingerprint
from rlhf_gym.training.reward_evaluation import RewardMetrics, evaluate_reward_model
from rlhf_gym.training.stage import SupervisedStage, run_stage


class Pair(NamedTuple):
    """One comparison, as indices into the rows."""

    chosen: int
    """Row of prompt and chosen response."""
    rejected: int
    """Row of prompt and rejected response."""
    weight: float
    """Weight in the loss."""
    margin: float
    """The difference by which the chosen response should win."""
    draws: tuple[float, ...] = (1.0,)
    """How often each of k heads drew the pair; one number stands for all heads."""


class PairBatch(NamedTuple):
    """The distinct rows of some pairs, each of them once: K responses to a prompt make K rows, not K(K − 1)."""

    input_ids: Tensor
    """The token ids, (R, L) int64, right-padded."""
    attention_mask: Tensor
    """1 for real tokens, 0 for padding, (R, L) int8."""
    chosen: Tensor
    """Rows of the chosen responses, (P,) int64."""
    rejected: Tensor
    """Rows of the rejected responses, (P,) int64."""
    weight: Tensor
    """Weights in each head's loss, (P, k) with a bootstrap, else (P, 1)."""
    margin: Tensor
    """Differences by which the chosen responses should win, (P,)."""

    @property
    def total_weight(self) -> float:
        """The heads' mean of the pairs' weights, summed."""
        return float(self.weight.mean(dim=1).sum())

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on a device."""
        return PairBatch(*(x.to(device) for x in self))


def train_reward_model(
    reward_model: RewardModel,
    preferences: Sequence[Preference],
    *,
    heldout: Sequence[Preference],
    config: RewardModelingConfig | None = None,
    output_dir: str | Path,
    resume: bool = True,
) -> RewardMetrics:
    """Train `reward_model` in place by L = −(1/W) Σ w·log σ(r(x, y_chosen) − r(x, y_rejected)), W = Σ w.

    Pairs of one `group` (a ranking) stay in one batch and each of their responses is run once; with the weights
    1/C(K,2) that `rlhf_gym.preferences` gives them this is equation 1 of Ouyang et al. 2022 (arXiv 2203.02155). With
    `config.by_prompt` so do all pairs of a prompt, whoever compared them.

    Heads on a shared trunk are trained together by the mean of what each would be trained by alone. With
    `config.bootstrap` each head weighs an example (a preference, or a ranking) by how often it drew it; examples that
    no head drew are left out.

    The scores' unit changes, so the model's normalizer is set back to mean 0 and std 1: fit it anew afterwards.

    Args:
        reward_model: with a tokenizer; see `RewardModel.from_language_model` for where to begin.
        preferences: the comparisons.
        heldout: comparisons for the metrics, best of other prompts (`rlhf_gym.preferences.split_by_prompt`).
        config: `RewardModelingConfig()` by default.
        output_dir, resume: as in `train_sft`, whose result and errors these are.

    Raises:
        ValueError: before any work: all preferences are between identical responses.
    """
    config = config or RewardModelingConfig()
    rows, groups = _checked_pairs(reward_model, preferences, config.use_margin, "pair", by_prompt=config.by_prompt)
    heldout_rows, _ = _checked_pairs(reward_model, heldout, False, "held-out pair")
    if config.bootstrap:
        groups = bootstrapped(groups, heads=len(reward_model), seed=config.seed)
    micro_batch_size = config.micro_batch_size or config.batch_size
    reward_model.normalizers = [RewardNormalizer()] * len(reward_model)
    stage = SupervisedStage(
        name="reward modelling",
        model=reward_model,
        examples=groups,
        lengths=[max(len(rows[i]) for pair in group for i in (pair.chosen, pair.rejected)) for group in groups],
        collate=partial(collate_pairs, rows),
        loss=partial(_summed_loss, label_smoothing=config.label_smoothing, centering=config.centering),
        evaluate=lambda: evaluate_reward_model(MeanOfHeads(reward_model, batch_size=4 * micro_batch_size), heldout),
        metrics=RewardMetrics,
        identity={
            "model": described(reward_model.model),
            "data": fingerprint([*rows, *(pair[:4] for group in groups for pair in group)]),
            "heldout": fingerprint(heldout_rows),
        },
        save=reward_model.save_pretrained,
        load=partial(load_into, reward_model),
    )
    return run_stage(stage, config, output_dir, resume=resume)


def load_into(reward_model: RewardModel | TokenRewardModel, folder: Path) -> None:
    """Load a reward model that has been trained into one of the same kind."""
    finished = type(reward_model).from_pretrained(folder, dtype=reward_model.model.dtype)
    reward_model.model.load_state_dict(finished.model.state_dict())


def collate_pairs(rows: Sequence[list[int]], groups: Sequence[Sequence[Pair]]) -> PairBatch:
    """The batch of these groups' pairs."""
    pairs = [pair for group in groups for pair in group]
    place = {row: i for i, row in enumerate(dict.fromkeys(i for pair in pairs for i in (pair.chosen, pair.rejected)))}
    ids, mask = pad_rows([rows[row] for row in place])  # (R, L)
    return PairBatch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.tensor([place[pair.chosen] for pair in pairs]),
        torch.tensor([place[pair.rejected] for pair in pairs]),
        torch.tensor([[pair.weight * drawn for drawn in pair.draws] for pair in pairs]),
        torch.tensor([pair.margin for pair in pairs]),
    )


def bootstrapped(groups: Sequence[Sequence[Pair]], *, heads: int, seed: int) -> list[list[Pair]]:
    """The examples with how often each head drew them: as many draws as examples, with replacement (Efron 1979).

    What is drawn are groups, since the pairs of a ranking stand or fall together. Those that no head drew are left out,
    so that no batch weighs nothing.
    """
    rng = np.random.default_rng((seed, 31))
    counts = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=heads).T  # (groups, k)
    return [
        [pair._replace(draws=tuple(drawn.astype(float).tolist())) for pair in group]
        for group, drawn in zip(groups, counts, strict=True)
        if drawn.any()
    ]


class MeanOfHeads(FunctionReward):
    """The heads' mean before normalisation, whatever they are aggregated by: they have no common origin yet."""

    def __init__(self, reward: RewardModel, *, batch_size: int) -> None:
        """
        Args:
            reward: the model, which reads prompts and responses itself.
            batch_size: rows of a forward at most.
        """
        super().__init__(reward.score_texts)
        self._reward = reward
        self._batch_size = batch_size

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        tokens: Sequence[ResponseTokens] | None = None,
    ) -> np.ndarray:
        found = self._reward.scores_of_texts(prompts, responses, batch_size=self._batch_size, normalise=False)
        return found.members.mean(dim=0).numpy()


def _summed_loss(model: nn.Module, batch: PairBatch, *, label_smoothing: float, centering: float) -> Tensor:
    """Σ over pairs of the heads' mean loss: (1/k)·Σ_j Σ_p w_pj·loss(r_j of pair p)."""
    scores = model(batch.input_ids, batch.attention_mask).float()  # (R, k)
    chosen = scores[batch.chosen]  # (P, k)
    rejected = scores[batch.rejected]  # (P, k)
    return bradley_terry_loss(
        chosen.flatten(),
        rejected.flatten(),
        margin=batch.margin[:, None].expand_as(chosen).flatten(),
        label_smoothing=label_smoothing,
        centering=centering,
        weight=batch.weight.expand_as(chosen).flatten(),
        denominator=float(scores.shape[1]),
    )


def _checked_pairs(
    reward_model: RewardModel,
    preferences: Sequence[Preference],
    use_margin: bool,
    what: str,
    *,
    by_prompt: bool = False,
) -> tuple[list[list[int]], list[list[Pair]]]:
    """Distinct rows, and the pairs in their groups, after the checks that `train_reward_model` promises."""
    if not preferences:
        raise ValueError(f"expected at least one {what}, got none")
    if all(p.chosen == p.rejected for p in preferences):
        raise ValueError(
            f"expected responses that differ, got {len(preferences)} {what}s whose chosen and rejected are the same"
        )
    texts: dict[tuple[Prompt, Response], int] = {}
    first_pair: list[int] = []
    groups: dict[tuple[Prompt, str | int], list[Pair]] = {}
    for i, p in enumerate(preferences):
        for response in (p.chosen, p.rejected):
            if texts.setdefault((p.prompt, response), len(texts)) == len(first_pair):
                first_pair.append(i)
        margin = p.margin if use_margin and p.margin is not None else 0.0
        pair = Pair(texts[p.prompt, p.chosen], texts[p.prompt, p.rejected], p.weight, margin)
        groups.setdefault((p.prompt, "" if by_prompt else p.group or i), []).append(pair)
    rows = reward_model.encode([prompt for prompt, _ in texts], [response for _, response in texts])
    check_rows(
        rows, what=what, max_length=reward_model.max_length, vocab_size=reward_model.vocab_size, index=first_pair
    )
    return rows, [_weighing_one(group) for group in groups.values()] if by_prompt else list(groups.values())


def _weighing_one(pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs with weights that sum to 1."""
    total = sum(pair.weight for pair in pairs)
    return [pair._replace(weight=pair.weight / total) for pair in pairs]
