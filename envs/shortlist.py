"""Few actions instead of a vocabulary: an agent chooses among π_ref's k likeliest tokens of the state.

Agents that keep a number per action, such as DQN, do not get far with Discrete(V). With these wrappers an action is a
place in the shortlist, where 0 is the likeliest token. The reward still holds the exact log π_ref of the token chosen,
and π_ref is run once a step for both.
"""

from __future__ import annotations

from typing import Any, SupportsInt

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorWrapper
from gymnasium.vector.utils import batch_space

from rlhf_gym.envs.episode import Observation
from rlhf_gym.envs.token_env import TokenEnv
from rlhf_gym.envs.vector_env import TokenVectorEnv


class ShortlistActions(gym.ActionWrapper, RecordConstructorArgs):
    """`ShortlistActions(gym.make("rlhf_gym/…"), k)`: `Discrete(k)` over π_ref's k likeliest tokens at the state.

    Where the environment has an `action_mask`, they are the k likeliest of the tokens it allows. If it allows fewer,
    the places left over stand for the likeliest one, and `action_masks()` is False there.

    Args:
        env: a `TokenEnv` with a reference, in whatever Gymnasium wrapped it.
        k: 1 … V.
    """

    def __init__(self, env: gym.Env, k: int) -> None:
        RecordConstructorArgs.__init__(self, k=k)
        super().__init__(env)
        if not isinstance(env.unwrapped, TokenEnv):
            raise TypeError(
                f"expected a TokenEnv, got {type(env.unwrapped).__name__}; a vector: ShortlistVectorActions"
            )
        self._shortlist = _Shortlist(env.unwrapped.engine, k)
        self.action_space = spaces.Discrete(k)

    def shortlist(self) -> np.ndarray:
        """The tokens the actions stand for now, (k,), the likeliest first."""
        return self._shortlist.tokens()[0][0]

    def action_masks(self) -> np.ndarray:
        """Places that stand for a token of their own, (k,) bool."""
        return self._shortlist.tokens()[1][0]

    def action(self, action: SupportsInt) -> int:  # type: ignore[override]
        """The token at that place of the shortlist."""
        return int(self._shortlist.chosen(np.asarray(action).reshape(1))[0])

    def attach(self, policy: None) -> None:
        """Only None: see `_Shortlist.attach`."""
        self._shortlist.attach(policy)


class ShortlistVectorActions(VectorWrapper):
    """`ShortlistActions` of a `TokenVectorEnv`; `SB3VecEnv` takes it as it is.

    Args:
        env: a `TokenVectorEnv` with a reference.
        k: 1 … V.
    """

    def __init__(self, env: TokenVectorEnv, k: int) -> None:
        if not isinstance(env, TokenVectorEnv):
            raise TypeError(f"expected a TokenVectorEnv, got {type(env).__name__}; a single one: ShortlistActions")
        super().__init__(env)
        self._shortlist = _Shortlist(env, k)
        self.single_action_space = spaces.Discrete(k)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def shortlist(self) -> np.ndarray:
        """The tokens the actions stand for now, (N, k), the likeliest first."""
        return self._shortlist.tokens()[0]

    def action_masks(self) -> np.ndarray:
        """Places that stand for a token of their own, (N, k) bool."""
        return self._shortlist.tokens()[1]

    def step(self, actions: Any) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One token in every slot, from its shortlist."""
        return self.env.step(self._shortlist.chosen(np.asarray(actions)))

    def attach(self, policy: None) -> None:
        """Only None: see `_Shortlist.attach`."""
        self._shortlist.attach(policy)


class _Shortlist:
    """π_ref's k likeliest tokens in each slot of an engine, for both wrappers."""

    def __init__(self, engine: TokenVectorEnv, k: int) -> None:
        if not 1 <= k <= engine.vocab_size:
            raise ValueError(f"expected k in 1 … {engine.vocab_size} (the vocabulary), got {k}")
        if engine.token_reward.reference is None:
            raise ValueError("expected an environment with a reference, whose likeliest tokens these are, got None")
        self.engine = engine
        self.k = k

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Token of each place (N, k), and whether it is that place's own (N, k) bool."""
        logits = self.engine.reference_logits()  # (N, V)
        if self.engine.action_mask is not None:
            allowed = torch.from_numpy(self.engine.action_masks()).to(logits.device)
            logits = logits.masked_fill(~allowed, float("-inf"))
        likeliest = logits.topk(self.k, dim=-1)  # (N, k), descending
        own = likeliest.values > float("-inf")
        tokens = torch.where(own, likeliest.indices, likeliest.indices[:, :1])
        return tokens.cpu().numpy(), own.cpu().numpy()

    def chosen(self, places: np.ndarray) -> np.ndarray:
        """Tokens at these places, (N,) → (N,); where nothing can act, any token."""
        if places.shape != (self.engine.num_envs,):
            raise ValueError(f"expected actions of shape ({self.engine.num_envs},), got {places.shape}")
        if places.dtype.kind not in "iu":
            raise ValueError(f"expected integer actions (places in the shortlist), got {places.dtype}")
        wrong = ~self.engine.parked & ((places < 0) | (places >= self.k))
        if wrong.any():
            raise ValueError(f"expected actions in 0 … {self.k - 1} (places in the shortlist), got {places[wrong][0]}")
        return np.take_along_axis(self.tokens()[0], places.clip(0, self.k - 1)[:, None].astype(np.int64), axis=1)[:, 0]

    def attach(self, policy: None) -> None:
        """Refuse a policy: one over the shortlist does not say log π of a token."""
        if policy is not None:
            raise TypeError(
                f"expected no policy to attach, got {type(policy).__name__}: its actions are places in a shortlist, "
                "not tokens. Without one the agent is read as deterministic, log π = 0, as value-based agents are"
            )
        self.engine.attach(None)
