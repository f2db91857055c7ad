"""An environment small enough to enumerate, whose optimum is known in closed form.

    task = tabular_task(seed=0)                  # 4 tokens, 3 steps: 64 responses; π_ref a table
    agent = TokenPPO("LMPolicy", task.env(128), policy_kwargs={"use_cache": False})
    agent.learn(36_000)
    task.best - task.objective(agent.policy.model)        # J* − J
    task.total_variation(agent.policy.model)              # from π*

The objective is that of any token environment, J(π) = E_π[r] − β·KL(π‖π_ref). Its maximum is at π*(y) ∝
π_ref(y)·e^{r(y)/β}, with J* = β·log E_ref[e^{r/β}] (Ziebart 2010; Rafailov et al. 2023, arXiv:2305.18290, appendix
A.1). An agent whose signs, masks or indices are wrong misses it. With several turns (`with_replies`) the optimum is
found by backward recursion: a mean over what the other side says, a soft maximum over what the policy says.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_gym.envs.respondents import Reply, Turn
from rlhf_gym.envs.turns import Turns
from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.loading import Shared
from rlhf_gym.lm.tabular import tabular_lm

LETTERS = string.ascii_lowercase


@dataclass(frozen=True, eq=False)
class EnumerableTask:
    """One prompt, V tokens, T places, no stop token, a reward for each of the V^T responses.

    At some places another side may speak (`others`), with known probabilities: its tokens are no actions of the policy.

    A *policy* is given as a causal LM or as the probability of each response, (V^T,), in the order of `strings`.
    """

    reference: PreTrainedModel
    """The reference policy π_ref."""
    strings: torch.Tensor
    """All responses, (V^T, T), in the order of `all_responses`."""
    rewards: np.ndarray
    """The score of each response, (V^T,)."""
    beta: float
    """The coefficient β > 0 of the KL."""
    others: Mapping[int, np.ndarray] = field(default_factory=dict)
    """The other side: at place t the probability of each token behind each t tokens, (V^t, V). The policy speaks first
    and last, and as many tokens at each of its turns."""

    def __post_init__(self) -> None:
        vocab_size = self.reference.config.vocab_size
        count = vocab_size ** self.strings.shape[1]
        if len(self.strings) != count or np.shape(self.rewards) != (count,):
            raise ValueError(
                f"expected V^T = {count} responses and as many rewards, got {len(self.strings)} and "
                f"{np.shape(self.rewards)}"
            )
        if not self.beta > 0:
            raise ValueError(f"expected beta > 0, got {self.beta}")
        for t, table in self.others.items():
            if np.shape(table) != (vocab_size**t, vocab_size) or not np.allclose(np.sum(table, axis=1), 1):
                raise ValueError(f"expected the probabilities ({vocab_size**t}, {vocab_size}) of others at place {t}")
        if len({len(turn) for turn in self._turns}) != 1 or not self._turns[0]:
            raise ValueError(f"expected turns of the policy of one length, got others at places {sorted(self.others)}")

    # -- the optimum ------------------------------------------------------------------------------------------------

    @cached_property
    def optimum(self) -> np.ndarray:
        """The probability of each response under the optimal policy π*(a|s) ∝ π_ref(a|s)·e^{V*(s,a)/β}, (V^T,).

        Without others that is π* ∝ π_ref·e^{r/β}.
        """
        gained = np.zeros(len(self.strings))  # Σ V*(s, a) − V*(s) over actions, (V^T,)
        for t in self._acted:
            gained += self._at_place(self._values[t + 1], t + 1) - self._at_place(self._values[t], t)
        return np.exp(self._reference_log_probs + gained / self.beta)

    @cached_property
    def best(self) -> float:
        """J* = V*(prompt), the objective of π*, which no other policy reaches.

        Without others that is β·log Σ_y π_ref(y)·e^{r(y)/β}.
        """
        return float(self._values[0][0])

    @cached_property
    def state_values(self) -> np.ndarray:
        """V*(s) of every prefix s, (Σ_{t<T} V^t,), in the order of `TabularLM`'s rows.

        The first is J*. Without others V*(s) = β·log E_ref[e^{r/β} | s]. At any action of any response
        V*(s_{t+1}) − β·log(π*/π_ref)(a_t|s_t) = V*(s_t).
        """
        return np.concatenate(self._values[:-1])

    @property
    def mode(self) -> int:
        """The place in `strings` of π*'s likeliest response, which the best *deterministic* policy gives."""
        return int(self.optimum.argmax())

    def best_of(self, n: int) -> np.ndarray:
        """The distribution of the best of n responses of π_ref, (V^T,): F(r)^n − F(r−)^n.

        F is the distribution function of π_ref's rewards. Responses with the same reward share their mass as in π_ref.
        """
        if n < 1:
            raise ValueError(f"expected n >= 1, got {n}")
        prior = np.exp(self._reference_log_probs)  # (V^T,)
        levels, level_of = np.unique(self.rewards, return_inverse=True)  # (R,), (V^T,)
        mass = np.bincount(level_of, weights=prior, minlength=len(levels))  # (R,)
        chosen = np.diff(np.cumsum(mass / mass.sum()) ** n, prepend=0.0)  # (R,)
        return chosen[level_of] * prior / mass[level_of]

    # -- a policy ---------------------------------------------------------------------------------------------------

    def log_probs(self, model: PreTrainedModel) -> np.ndarray:
        """The log-probability of every response when the policy and the others speak, (V^T,), float64."""
        total = self._token_log_probs(model)[:, self._acted].sum(axis=1)  # (V^T,)
        with np.errstate(divide="ignore"):  # what the others never say
            for t, table in self.others.items():
                total += np.log(self._at_place(np.asarray(table, dtype=np.float64).reshape(-1), t + 1))
        return total

    def probabilities(self, policy: PreTrainedModel | np.ndarray) -> np.ndarray:
        """π(y|x) of every response, (V^T,), float64."""
        return policy if isinstance(policy, np.ndarray) else np.exp(self.log_probs(policy))

    def kl(self, policy: PreTrainedModel | np.ndarray) -> float:
        """KL(π‖π_ref) in nats, exactly."""
        p = self.probabilities(policy)
        said = p > 0  # (V^T,)
        return float((p[said] * (np.log(p[said]) - self._reference_log_probs[said])).sum())

    def objective(self, policy: PreTrainedModel | np.ndarray) -> float:
        """J(π) = E_π[r] − β·KL(π‖π_ref), exactly."""
        p = self.probabilities(policy)
        return float((p * self.rewards).sum()) - self.beta * self.kl(p)

    def total_variation(self, policy: PreTrainedModel | np.ndarray) -> float:
        """½·Σ_y|π(y) − π*(y)|: 0 at the optimum, at most 1."""
        return float(0.5 * np.abs(self.probabilities(policy) - self.optimum).sum())

    # -- the environment --------------------------------------------------------------------------------------------

    def env(self, num_envs: int, **overrides: Any) -> TokenVectorEnv:
        """The environment; deferred rewards unless told otherwise.

        Args:
            num_envs: N.
            overrides: any argument of `TokenVectorEnv`.
        """
        tokenizer = letter_tokenizer(self.reference.config.vocab_size)
        table = {" ".join(LETTERS[i] for i in s): r for s, r in zip(self.strings.tolist(), self.rewards, strict=True)}
        settings: dict[str, Any] = {
            "prompts": [[0]],
            "reward": lambda prompts, responses: [table[response] for response in responses],
            "reference": Shared(self.reference),
            "tokenizer": tokenizer,
            "max_new_tokens": len(self._acted),
            "kl_coef": self.beta,
            "stop_token_ids": (),
            "reward_timing": "deferred",
        }
        if self.others:
            settings["turns"] = Turns(
                self._answer,
                max_turns=len(self._turns),
                max_turn_tokens=len(self._turns[0]),
                max_reply_tokens=len(self.others),
            )
        return TokenVectorEnv(num_envs, **(settings | overrides))

    def _answer(self, turn: Turn) -> Reply:
        """What the others say, drawn from their probabilities."""
        vocab_size = self.reference.config.vocab_size
        said: list[int] = turn.input_ids[1:].tolist()
        first = len(said)
        while len(said) in self.others:
            prefix = int(np.dot(said, vocab_size ** np.arange(len(said))[::-1]))
            said.append(int(turn.rng.choice(vocab_size, p=self.others[len(said)][prefix])))
        return Reply(ids=tuple(said[first:]))

    # -- places -----------------------------------------------------------------------------------------------------

    @property
    def _acted(self) -> list[int]:
        """The places at which the policy speaks."""
        return [t for t in range(self.strings.shape[1]) if t not in self.others]

    @property
    def _turns(self) -> list[list[int]]:
        """The places of each turn of the policy."""
        turns: list[list[int]] = [[]]
        for t in range(self.strings.shape[1]):
            if t not in self.others:
                turns[-1].append(t)
            elif t == 0 or t - 1 not in self.others:
                turns.append([])
        return turns

    def _at_place(self, table: np.ndarray, t: int) -> np.ndarray:
        """What a table (V^t,) over the first t tokens says of every response, (V^T,)."""
        return np.repeat(table, len(self.strings) // len(table))

    @cached_property
    def _values(self) -> list[np.ndarray]:
        """V* of every prefix of 0 … T tokens, (V^t,) each, by backward recursion.

        At an action V(s) = β·log Σ_a π_ref(a|s)·e^{V(s,a)/β}, at a token of the others V(s) = Σ_o P(o|s)·V(s,o).
        """
        vocab_size = self.reference.config.vocab_size
        log_ref = self._token_log_probs(self.reference)  # (V^T, T)
        values = [np.asarray(self.rewards, dtype=np.float64)]
        for t in reversed(range(self.strings.shape[1])):
            behind = values[0].reshape(-1, vocab_size)  # (V^t, V)
            if t in self.others:
                values.insert(0, (self.others[t] * behind).sum(axis=1))
                continue
            stride = len(self.strings) // vocab_size ** (t + 1)
            prior = log_ref[::stride, t].reshape(-1, vocab_size)  # (V^t, V)
            values.insert(0, self.beta * np.logaddexp.reduce(prior + behind / self.beta, axis=1))
        return values

    def _token_log_probs(self, model: PreTrainedModel) -> np.ndarray:
        """The model's log-probability of each token behind those before it, (V^T, T), float64."""
        ids = torch.cat([torch.zeros(len(self.strings), 1, dtype=torch.int64), self.strings], dim=1)  # (V^T, 1 + T)
        lengths = torch.full((len(ids),), ids.shape[1])
        return token_log_probs(model, ids, lengths, batch_size=4096)[:, 1:].double().numpy()

    @cached_property
    def _reference_log_probs(self) -> np.ndarray:
        return self.log_probs(self.reference)


def tabular_task(seed: int, *, vocab_size: int = 4, horizon: int = 3, beta: float = 0.5) -> EnumerableTask:
    """r ~ U[0, 2] for each response; π_ref a `TabularLM`, Dirichlet(2, …, 2) at each prefix."""
    generator = np.random.default_rng([seed, 1])
    probabilities = np.ones(1)
    for t in range(horizon):
        step = generator.dirichlet(np.full(vocab_size, 2.0), size=vocab_size**t)  # (V^t, V)
        probabilities = (probabilities[:, None] * step).reshape(-1)  # (V^{t+1},)
    reference = tabular_lm(probabilities, vocab_size, horizon)
    return EnumerableTask(reference, all_responses(vocab_size, horizon), _rewards(seed, vocab_size, horizon), beta)


def gpt2_task(seed: int, *, vocab_size: int = 4, horizon: int = 3, beta: float = 0.5, **config: Any) -> EnumerableTask:
    """r ~ U[0, 2] for each response, the same as `tabular_task`'s; π_ref a random GPT-2, 2 layers and 32 wide.

    Args:
        seed: of rewards and weights; the global generator is left as it was.
        vocab_size: V.
        horizon: T.
        beta: β.
        config: other arguments of `GPT2Config`. Weights are drawn wide, so that π_ref is far from uniform.
    """
    settings: dict[str, Any] = {
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 2,
        "n_positions": 8,
        "initializer_range": 0.2,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **(settings | config))).eval()
    return EnumerableTask(reference, all_responses(vocab_size, horizon), _rewards(seed, vocab_size, horizon), beta)


def with_replies(task: EnumerableTask, seed: int) -> EnumerableTask:
    """The same task with two turns: at its second place another side speaks, Dirichlet(2, …, 2) behind each token.

    Args:
        task: of 3 places, so that both turns of the policy are one token.
        seed: of the other side's probabilities.
    """
    vocab_size = task.reference.config.vocab_size
    table = np.random.default_rng([seed, 2]).dirichlet(np.full(vocab_size, 2.0), size=vocab_size)  # (V, V)
    return dataclasses.replace(task, others={1: table})


def all_responses(vocab_size: int, horizon: int) -> torch.Tensor:
    """Every response of T tokens, (V^T, T) int64, the last token running fastest."""
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=horizon)))


def letter_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """The letters a, b, c … as tokens 0, 1, 2 …, without any special token."""
    if not 1 <= vocab_size <= len(LETTERS):
        raise ValueError(f"expected vocab_size in 1 … {len(LETTERS)} (letters), got {vocab_size}")
    inner = Tokenizer(WordLevel({letter: i for i, letter in enumerate(LETTERS[:vocab_size])}, unk_token="a"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=None)


def _rewards(seed: int, vocab_size: int, horizon: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 2, size=vocab_size**horizon)
