"""What can be added to an agent's objective: entropy, the KL to π_ref, likelihood of texts, a π_ref that follows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.agents.rollout import EpisodeBatch, LossTerm, MinibatchSize, Rollout
from rlhf_gym.envs.episode import at_actions, stack_rows
from rlhf_gym.envs.token_reward import TokenReward
from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.functional.kl import importance_k3, k2, k3, straight_through_k3
from rlhf_gym.functional.masks import masked_mean
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.lora import merged
from rlhf_gym.lm.parts import LMParts, in_chunks
from rlhf_gym.lm.sampling import token_log_prob
from rlhf_gym.lm.tokens import encode_prompts, pad_rows
from rlhf_gym.ranges import Count, NonNegative, PositiveShare, Seed, Several, check_arguments
from rlhf_gym.ranks import ranks


class Regulariser:
    """Something added to an agent's objective. Each method does nothing, unless a subclass says what.

    An agent calls `begin`, then in each iteration `after_rollout`, for each minibatch `loss` and `add_gradient`, and
    `after_iteration`; when `learn` is over, `end`. What `state_dict` and `weights` give is saved with the agent.
    """

    is_kl: ClassVar[bool] = False
    """Whether it is the KL to π_ref, for environments with `kl_in="loss"`."""
    reads_entropy: bool = False
    """Whether its loss wants a gradient through the entropy."""
    takes_forward_pass: ClassVar[bool] = False
    """Whether its `add_gradient`, if it has one, goes through `policy.forward_pass`, equally often on all ranks."""

    def begin(self, policy: LMActorCriticPolicy, env: TokenVectorEnv) -> None:
        """Called when learning begins or continues."""

    def end(self) -> None:
        """Called when learning is over or was interrupted."""

    def after_rollout(self, rollout: Rollout) -> Rollout:
        """Called after each rollout; returns it, with what this regulariser adds to it."""
        return rollout

    def loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm | None:
        """A term on a micro-batch of the rollout; None for no such term."""
        return None

    def add_gradient(self, micro_batch_size: int | None) -> dict[str, Tensor]:
        """Add the gradient of a term on other data, once a minibatch; returns what is logged of it, detached.

        Of several ranks each adds its share (`rlhf_gym.ranks`): gradients and what is logged are then added up.
        """
        return {}

    def after_iteration(self) -> None:
        """Called after each update of the policy."""

    def settings(self) -> dict[str, Any] | None:
        """The constructor's arguments, for JSON; None where they cannot be saved and must be given again to `load`."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What it keeps from one iteration to the next besides weights, for JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict()` gave."""

    def weights(self) -> dict[str, Tensor]:
        """The regulariser's own weights, by name."""
        return {}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restore what `weights()` gave."""


class EntropyBonus(Regulariser):
    """The loss less c times the policy's mean entropy a token, Ê[H(π(·|s_t))].

    Args:
        coef: c ≥ 0.
    """

    @check_arguments
    def __init__(self, coef: NonNegative) -> None:
        self.coef = coef
        self.reads_entropy = coef > 0

    def loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm | None:
        """The term −c·Ê[H]."""
        if not self.coef:
            return None
        return LossTerm(-self.coef * masked_mean(evaluation.entropy, batch.mask, size.tokens), {})

    def settings(self) -> dict[str, Any]:
        """The coefficient c, by its name."""
        return {"coef": self.coef}


# -- the KL to π_ref -----------------------------------------------------------------------------------------------


def vocabulary_kl(
    batch: EpisodeBatch, evaluation: EpisodeEvaluation, policy: LMActorCriticPolicy, reference: LMParts
) -> Tensor:
    """KL(π‖π_ref) over the vocabulary at each real action, (n,), differentiable."""
    with torch.no_grad(), policy.autocast():
        hidden = reference.hidden_states(batch.input_ids.to(reference.device))  # (B, L, H)
        acted_from = batch.action_mask[:, 1:].to(hidden.device)  # (B, L - 1)
        ref_states = hidden[:, :-1][acted_from]  # (n, H')
    return policy.vocabulary_kl(evaluation.states, reference, ref_states)


def taken_k2(
    batch: EpisodeBatch, evaluation: EpisodeEvaluation, policy: LMActorCriticPolicy, reference: LMParts
) -> Tensor:
    """k2 of each action taken, (n,), differentiable: its gradient is the KL's on the policy's own samples."""
    return k2(evaluation.log_probs[batch.mask], batch.ref_log_probs[batch.mask])


def taken_k3(
    batch: EpisodeBatch, evaluation: EpisodeEvaluation, policy: LMActorCriticPolicy, reference: LMParts
) -> Tensor:
    """k3 of each action taken, (n,), differentiable: its gradient is that of KL(π_ref‖π), with another optimum."""
    return k3(evaluation.log_probs[batch.mask], batch.ref_log_probs[batch.mask])


def taken_importance_k3(
    batch: EpisodeBatch, evaluation: EpisodeEvaluation, policy: LMActorCriticPolicy, reference: LMParts
) -> Tensor:
    """k3 of each action taken times π/π_old, (n,), differentiable: its gradient is the KL's after every step."""
    mask = batch.mask
    return importance_k3(evaluation.log_probs[mask], batch.ref_log_probs[mask], batch.log_probs[mask])


def taken_straight_through_k3(
    batch: EpisodeBatch, evaluation: EpisodeEvaluation, policy: LMActorCriticPolicy, reference: LMParts
) -> Tensor:
    """k3's value and k2's gradient of each action taken, (n,): the KL's gradient on the policy's own samples."""
    return straight_through_k3(evaluation.log_probs[batch.mask], batch.ref_log_probs[batch.mask])


KLEstimator = Callable[[EpisodeBatch, EpisodeEvaluation, LMActorCriticPolicy, LMParts], Tensor]
"""A KL to π_ref at each real action of a micro-batch, row by row, (n,), differentiable."""
KL_ESTIMATORS: dict[str, KLEstimator] = {
    "full": vocabulary_kl,
    "k2": taken_k2,
    "k3": taken_k3,
    "k3_importance": taken_importance_k3,
    "k3_straight_through": taken_straight_through_k3,
}
"""The estimators by the names that `KLInLoss` knows them by."""


class KLInLoss(Regulariser):
    """β times the mean KL(π‖π_ref) a token, in the loss. It wants an environment with `kl_in="loss"`, whose β it is.

    Without one in its `regularisers` an agent takes `KLInLoss("full")` in such an environment.

    Args:
        kind: `"full"` over the vocabulary, `"k2"` of the actions taken, `"k3"`, which GRPO's paper takes and whose
            gradient is that of KL(π_ref‖π), `"k3_importance"`, k3 times π/π_old, or `"k3_straight_through"`, k3's
            value with k2's gradient.

    A KL in the loss is biased, whatever its kind. It is differentiated token by token, at the states that the rollout
    met, and so knows nothing of what an action does to the KL of later tokens. In the reward it is the whole KL's
    gradient. docs/losses.md has the policy that each goes to. On samples of another policy than π, after the first step
    on a rollout, `"k2"`, `"k3"` and `"k3_straight_through"` have a further bias; the other two have none.
    """

    is_kl: ClassVar[bool] = True

    def __init__(self, kind: str = "full") -> None:
        if kind not in KL_ESTIMATORS:
            raise ValueError(f"expected kind to be one of {tuple(KL_ESTIMATORS)}, got {kind!r}")
        self.kind = kind
        self._policy: LMActorCriticPolicy | None = None
        self._reward: TokenReward | None = None

    def begin(self, policy: LMActorCriticPolicy, env: TokenVectorEnv) -> None:
        """Take π from the policy, π_ref and β from the environment."""
        self._policy = policy
        self._reward = env.token_reward

    def loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm:
        """The term β·Ê[KL]."""
        assert self._policy is not None and self._reward is not None, "call begin() first"
        reference = self._reward.reference
        assert reference is not None, 'kl_in="loss" has a reference'
        kl = KL_ESTIMATORS[self.kind](batch, evaluation, self._policy, reference)  # (n,)
        mean = (kl * size.weights(batch).expand_as(batch.mask)[batch.mask]).sum() / size.tokens
        return LossTerm(self._reward.kl_coef * mean, {"train/kl_loss": mean.detach()})

    def settings(self) -> dict[str, Any]:
        """The kind of estimator, by its name."""
        return {"kind": self.kind}


# -- texts ---------------------------------------------------------------------------------------------------------


class PretrainingMix(Regulariser):
    """The "ptx" of InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, eq. 2): gradients of pretraining mixed into those
    of RL, to keep what the policy can do besides pleasing the reward model. Each minibatch's loss becomes

        L + γ·L_LM,   L_LM = −Ê[log π(x_t | x_<t)]

    The mean is over all tokens (but the first) of the next `batch_size` texts. π is here the language model itself, at
    temperature 1 and without masks. (The paper's γ is 27.8, at other scales of the loss.)

    The texts are gone through in a new order at every pass. An agent's file holds how far they were read, not the
    texts: give them again to `load`.

    Args:
        texts: D_pretrain: texts, each closed by the tokenizer's EOS where it has one, or token ids as they are.
        coef: γ ≥ 0; 0 for nothing at all.
        batch_size: texts to a minibatch.
        max_length: longer texts are cut into pieces of so many tokens; by default the model's context.
        seed: of the texts' order.
    """

    takes_forward_pass: ClassVar[bool] = True

    @check_arguments
    def __init__(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]],
        coef: NonNegative,
        *,
        batch_size: Count = 32,
        max_length: Several | None = None,
        seed: Seed = 0,
    ) -> None:
        if not len(texts):
            raise ValueError("expected at least one text, got none")
        self.texts = texts
        self.coef = coef
        self.batch_size = batch_size
        self.max_length = max_length
        self.seed = seed
        self.used = 0
        """Texts read so far. Nothing was learned from those of minibatches whose step `target_kl` stopped."""
        self._rows: list[list[int]] = []
        self._policy: LMActorCriticPolicy | None = None

    def begin(self, policy: LMActorCriticPolicy, env: TokenVectorEnv) -> None:
        """Encode and check the texts, once.

        Raises:
            ValueError: one has a token that the model does not know, or none has two tokens.
        """
        self._policy = policy
        if self._rows:
            return
        room = self.max_length or policy.parts.context_length
        rows = _encoded(self.texts, env.tokenizer)
        pieces = [row[i : i + room] for row in rows for i in range(0, len(row), room)] if room else rows
        self._rows = [piece for piece in pieces if len(piece) > 1]
        if not self._rows:
            raise ValueError("expected texts of at least two tokens (one to predict), got none")
        highest = max(max(row) for row in self._rows)
        vocab_size = policy.parts.vocab_size
        if highest >= vocab_size:
            raise ValueError(
                f"expected token ids below {vocab_size} (the model's vocabulary) in the texts, got {highest}"
            )

    def add_gradient(self, micro_batch_size: int | None) -> dict[str, Tensor]:
        """Add γ·∇L_LM on the next texts to the policy's gradients."""
        if not self.coef:
            return {}
        assert self._policy is not None, "call begin() first"
        places = walk(self.used, self.batch_size, len(self._rows), seed=self.seed)
        self.used += self.batch_size
        rows = sorted((self._rows[place] for place in places), key=len)  # micro-batches of like length
        tokens = sum(len(row) - 1 for row in rows)
        total = torch.zeros((), device=self._policy.device)
        group = ranks()
        most = -(-len(rows) // group.size)  # on a rank
        own = np.arange(len(rows))[group.rank :: group.size]
        for part in np.array_split(own, -(-most // (micro_batch_size or most))):
            texts = [rows[i] for i in (part if len(part) else [0])]  # without a text left one is read, and not counted
            loss = self._policy.forward_pass(language_model_loss, self._policy, texts, denominator=tokens)
            loss = loss * float(len(part) > 0)
            (self.coef * loss).backward()
            total += loss.detach()
        return {"train/ptx_loss": total, "train/loss": self.coef * total}

    def state_dict(self) -> dict[str, Any]:
        """How many texts there are, and how many were read."""
        return {"texts": len(self.texts), "used": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict()` gave.

        Raises:
            ValueError: the texts are others.
        """
        if state["texts"] != len(self.texts) and self.coef > 0:
            raise ValueError(f"expected the {state['texts']} texts that learning began with, got {len(self.texts)}")
        self.used = int(state["used"])


def walk(start: int, n: int, count: int, *, seed: int) -> list[int]:
    """Steps `start` … `start + n − 1` of an endless walk through 0 … count − 1, in a new order at every pass."""
    found: list[int] = []
    while len(found) < n:
        number, first = divmod(start + len(found), count)
        order = np.random.default_rng((seed, number)).permutation(count)
        found += order[first : first + n - len(found)].tolist()
    return found


def language_model_loss(policy: LMActorCriticPolicy, rows: Sequence[Sequence[int]], *, denominator: float) -> Tensor:
    """−Σ log π(x_t | x_<t) over all but the first token of each row, divided by `denominator`; differentiable."""
    parts = policy.parts
    table, mask = pad_rows(rows)  # (B, L) each
    ids = torch.from_numpy(table).to(parts.device)
    predicted = torch.from_numpy(mask[:, 1:].astype(bool)).to(parts.device)  # (B, L - 1)
    with policy.autocast():
        states = parts.hidden_states(ids[:, :-1])[predicted]  # (n, H)

    def log_probs(states: Tensor, targets: Tensor) -> tuple[Tensor]:
        with policy.autocast():
            logits = parts.logits(states)  # (n, V)
        return (token_log_prob(logits, targets),)

    (found,) = in_chunks(log_probs, states, ids[:, 1:][predicted], vocab_size=parts.vocab_size)  # (n,)
    return -found.sum() / denominator


def _encoded(texts: Sequence[str] | Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    words = [text for text in texts if isinstance(text, str)]
    if not words:
        return [list(row) for row in texts]  # type: ignore[arg-type]
    if len(words) != len(texts):
        raise TypeError(f"expected texts or token ids, got {len(words)} texts among {len(texts)} entries")
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return [[*row, *end] for row in encode_prompts(tokenizer, words)]


# -- a π_ref that follows ------------------------------------------------------------------------------------------


class MovingReference(Regulariser):
    """θ_ref ← (1 − μ)·θ_ref + μ·θ after each iteration.

    A π_ref that stays decides how far the policy gets. One that follows lets it go on, and μ sets the speed. This is
    the moving anchor of WARP (Ramé et al. 2024, arXiv:2406.16768, section 3.1, there at every step). Noukhovitch et
    al. 2023 ("Elastic Reset", arXiv:2312.07551) fall back on averages of the policy.

    It is a copy in fp32, since smaller formats would round a step of μ away. The environment's own π_ref is not
    changed, and is that of the environment again when `learn` is over.

    Args:
        rate: μ in (0, 1]; 1 is the policy of the iteration before.
    """

    @check_arguments
    def __init__(self, rate: PositiveShare) -> None:
        self.rate = rate
        self._parts: LMParts | None = None
        self._loaded: dict[str, Tensor] | None = None
        self._policy: LMActorCriticPolicy | None = None
        self._initial: LMParts | None = None
        self._reward: TokenReward | None = None

    def begin(self, policy: LMActorCriticPolicy, env: TokenVectorEnv) -> None:
        """Let the moving average be the environment's π_ref.

        Raises:
            ValueError: the environment has no π_ref to begin from, or the policy has other weights than it.
        """
        reward = env.token_reward
        if reward.reference is None:
            raise ValueError("expected an environment with a reference for MovingReference to begin from, got none")
        if self._parts is None:
            self._parts = self._copied(reward.reference, policy)
        self._policy = policy
        self._initial = reward.reference
        self._reward = reward
        reward.use_reference(self._parts)

    def end(self) -> None:
        """Give the environment its own π_ref back."""
        if self._reward is not None:
            self._reward.use_reference(self._initial)
        self._policy = None
        self._initial = None
        self._reward = None

    @torch.no_grad()
    def after_rollout(self, rollout: Rollout) -> Rollout:
        """The rollout, with log π_ref of the π_ref that the average began from."""
        assert self._initial is not None and self._policy is not None, "call begin() first"
        group = ranks()
        own = rollout.episodes[group.rank :: group.size]
        found: list[np.ndarray] = []  # (T_e,) each
        if own:
            rows = stack_rows(own)
            with self._policy.autocast():
                table = token_log_probs(self._initial, rows.input_ids, rows.lengths, mask=rows.action_mask)  # (E, L)
            found = at_actions(table, own)
        parts = group.gather(found, "log π_ref of a rollout")
        each = [parts[row % group.size][row // group.size] for row in range(len(rollout.episodes))]
        return rollout._replace(first_ref_log_probs=each)

    @torch.no_grad()
    def after_iteration(self) -> None:
        """A step of the average towards the policy, its adapter merged."""
        assert self._parts is not None and self._policy is not None and self._reward is not None, "call begin() first"
        theirs = dict(merged(self._policy.model).named_parameters())
        for name, own in self._parts.model.named_parameters():
            # lerp leaves what is equal exactly as it is, so that frozen layers stay the same below
            own.lerp_(theirs[name].to(own.device, own.dtype), self.rate)
        self._reward.invalidate()

    def settings(self) -> dict[str, Any]:
        """The rate μ, by its name."""
        return {"rate": self.rate}

    def weights(self) -> dict[str, Tensor]:
        """The average, by the names of π_ref's parameters; empty before learning has begun."""
        if self._parts is None:
            return self._loaded or {}
        return {name: value.detach().cpu() for name, value in self._parts.model.named_parameters()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restore what `weights()` gave."""
        self._loaded = weights or None
        self._parts = None

    def _copied(self, initial: LMParts, policy: LMActorCriticPolicy) -> LMParts:
        model = copy.deepcopy(merged(initial.model)).float().requires_grad_(False).eval()
        ours = _shapes(model)
        theirs = _shapes(merged(policy.model))
        if ours != theirs:
            odd = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            raise ValueError(
                f"expected a policy with the weights of π_ref for MovingReference, got one that differs in {odd[0]}: "
                f"{ours.get(odd[0])} there, {theirs.get(odd[0])} in the policy"
            )
        if self._loaded is not None:
            if {name: tuple(value.shape) for name, value in self._loaded.items()} != ours:
                raise ValueError("expected the saved reference to have the weights of the environment's, got others")
            with torch.no_grad():
                for name, own in model.named_parameters():
                    own.copy_(self._loaded[name])
            self._loaded = None
        return LMParts(model)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


SAVED_WHOLE: dict[str, type[Regulariser]] = {kind.__name__: kind for kind in (EntropyBonus, KLInLoss, MovingReference)}
"""Those that an agent's file can make again from their settings, by their class's name."""
