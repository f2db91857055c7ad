"""`SB3VecEnv`: a `TokenVectorEnv` as a `VecEnv` of Stable-Baselines3."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from rlhf_gym.envs.shortlist import ShortlistVectorActions
from rlhf_gym.envs.vector_env import TokenVectorEnv


class SB3VecEnv(VecEnv):
    """An SB3 `VecEnv`: SAME_STEP autoreset, one info dict a slot at every step, `terminal_observation` at the end.

    Each ending info also has `episode` = {r, l, t}, as SB3's Monitor writes it. The policy of a stock agent is attached
    by `model.get_env().env_method("attach", model.policy)` or `rlhf_gym.agents.AttachPolicy()` as a callback.

    Steps give their rewards here even where the environment defers them, as nobody asks for them afterwards.
    So `evaluate_policy(agent, agent.get_env())` works; it goes on in the order of the agent's own prompts.

    Args:
        env: one with `autoreset_mode` SAME_STEP, bare or with the actions of a shortlist.
    """

    def __init__(self, env: TokenVectorEnv | ShortlistVectorActions) -> None:
        if not isinstance(env, TokenVectorEnv | ShortlistVectorActions):
            raise TypeError(f"expected a TokenVectorEnv, got {type(env).__name__}")
        engine = env.unwrapped
        assert isinstance(engine, TokenVectorEnv)
        if engine.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"expected autoreset_mode SAME_STEP, as SB3 resets, got {engine.autoreset_mode.name}")
        self.engine = engine
        self._outer = env
        super().__init__(engine.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: np.ndarray | None = None
        self._returns = np.zeros(self.num_envs)
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._born = time.time()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """One seed for the engine: the order of prompts begins anew at once, not at the next reset."""
        self.engine.seed(seed)
        return [seed] * self.num_envs

    def reset(self) -> VecEnvObs:
        """Start a new episode in every slot."""
        options = self._options[0] if self._options else None
        observation, infos = self.engine.reset(options=options)
        self.reset_infos = self._per_slot(infos)
        self._reset_options()
        self._returns[:] = 0
        self._steps[:] = 0
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Return observations, rewards, dones and infos."""
        assert self._actions is not None, "call step_async() first"
        timing = self.engine.reward_timing
        self.engine.reward_timing = "step"
        try:
            observation, rewards, terminated, _, batch = self._outer.step(np.asarray(self._actions).reshape(-1))
        finally:
            self.engine.reward_timing = timing
        self._returns += rewards
        self._steps += 1
        final = batch.pop("final_info", {})
        infos = self._per_slot({key: batch[key] for key in batch if not key.endswith(("final_info", "final_obs"))})
        for info in infos:
            info["TimeLimit.truncated"] = False
        ended = self._per_slot(final) if final else infos
        for slot in np.flatnonzero(terminated):
            infos[slot] |= ended[slot]
            infos[slot]["terminal_observation"] = batch["final_obs"][slot]
            infos[slot]["episode"] = {
                "r": float(self._returns[slot]),
                "l": int(self._steps[slot]),
                "t": round(time.time() - self._born, 6),
            }
            self._returns[slot] = 0
            self._steps[slot] = 0
        return observation, rewards, terminated, infos  # type: ignore[return-value]

    def _per_slot(self, batch: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """Arrays of information as one dict a slot, of Python's own numbers and texts."""
        columns = {key: values.tolist() for key, values in batch.items() if not key.startswith("_")}
        return [{key: values[slot] for key, values in columns.items()} for slot in range(self.num_envs)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Each slot's response so far as an image, of an environment made with `render_mode="rgb_array"`."""
        if self.render_mode != "rgb_array":
            raise ValueError(f'expected an environment made with render_mode="rgb_array", got {self.render_mode!r}')
        return self.engine.render() or ()

    def close(self) -> None:
        """Close the environment."""
        self.engine.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the engine, once a slot."""
        value = self._find(attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the engine; it is one for all slots."""
        self._all_slots(indices, f"set {attr_name}")
        setattr(self.engine, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the engine, once for all slots; of `action_masks` each slot gets its own row."""
        if method_name == "action_masks":  # the name MaskablePPO asks for
            masks = self._outer.action_masks()
            return [masks[slot] for slot in self._get_indices(indices)]
        self._all_slots(indices, f"call {method_name}")
        result = self._find(method_name)(*method_args, **kwargs)
        return [result] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor`, whose infos these are and which `evaluate_policy` asks for; False for any other."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def _find(self, name: str) -> Any:
        """The shortlist's own attribute where it has it, else the engine's."""
        own = isinstance(self._outer, ShortlistVectorActions) and name in vars(ShortlistVectorActions)
        return getattr(self._outer if own else self.engine, name)

    def _all_slots(self, indices: VecEnvIndices, what: str) -> None:
        if indices is not None and len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"cannot {what} for some slots only: expected indices=None, got {indices}")
