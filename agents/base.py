"""What the token agents share: whole-episode rollouts, their rewards, minibatches, logs, saving and resuming."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents import saving
from rlhf_gym.agents.arguments import (
    SAVED,
    KLLoss,
    LearnsFrom,
    check_counts,
    check_groups,
    check_kl_loss,
    check_no_critic,
    make_env,
    unwrap_env,
)
from rlhf_gym.agents.buffer import EpisodeBatch, EpisodeBuffer
from rlhf_gym.agents.interrupts import finish_before_interrupt
from rlhf_gym.agents.kl_control import FixedKL, KLController
from rlhf_gym.agents.logs import forget_pending, record_rollout
from rlhf_gym.agents.losses import MinibatchLoss, MinibatchSize
from rlhf_gym.agents.moving_reference import MovingReference
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.agents.pretraining_mix import PretrainingMix
from rlhf_gym.agents.reference import start_of
from rlhf_gym.agents.rollout import collect_episodes
from rlhf_gym.agents.update import update
from rlhf_gym.envs import EpisodeRewards, SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.losses import PolicyLoss, ppo_policy_loss
from rlhf_gym.lm.loading import quiet_transformers
from rlhf_gym.lm.lora import save_model


class TokenAlgorithm(OnPolicyAlgorithm):
    """Learners on whole episodes of a `TokenVectorEnv`. Abstract: a subclass says what its loss is.

    A rollout is the first `n_episodes` episodes *started*, all of them finished (the first to finish would favour
    short ones). A timestep is a token. `learn`, callbacks, logger, `predict` are SB3's; `save` writes safetensors and
    JSON in a zip, and what is loaded goes on bit for bit.
    """

    policy: LMActorCriticPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LMPolicy": LMActorCriticPolicy}
    label: ClassVar[str]
    """What tables and reports call the agent."""
    learns_from: ClassVar[LearnsFrom] = "rewards"
    """What the agent learns from."""
    plays_rollouts: ClassVar[bool] = True
    """Whether the policy that learns writes the responses that it learns from."""
    uses_critic: ClassVar[bool] = True
    """Whether a value head is trained beside the policy."""
    compares_groups: ClassVar[bool] = False
    """Whether the agent needs k > 1 responses to each prompt."""
    default_group: ClassVar[int] = 1
    """Responses to each prompt, where nobody says how many."""
    saved_arguments: ClassVar[tuple[str, ...]] = SAVED
    """Constructor arguments that its file holds, the learning rate aside."""

    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy],
        env: TokenVectorEnv | SB3VecEnv | str | None,
        *,
        learning_rate: float | Schedule,
        n_episodes: int,
        batch_size: int | None,
        n_epochs: int,
        micro_batch_size: int | None = None,
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        normalize_advantage: bool = False,
        ent_coef: float = 0.0,
        vf_coef: float = 0.0,
        max_grad_norm: float = 1.0,
        target_kl: float | None = None,
        kl_controller: KLController | None = None,
        kl_loss: KLLoss = "full",
        ptx: PretrainingMix | None = None,
        ema_reference: float = 0.0,
        samples_per_prompt: int | None = None,
        n_envs: int = 64,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        """What a subclass's `__init__` calls; the arguments are documented there and in `TokenArguments`."""
        check_counts(n_episodes=n_episodes, batch_size=batch_size, n_epochs=n_epochs, micro_batch_size=micro_batch_size)
        check_kl_loss(kl_loss)
        if not self.uses_critic:
            check_no_critic(type(self).__name__, policy_kwargs or {})
        if isinstance(env, str):
            k = (samples_per_prompt or self.default_group) if self.compares_groups else None
            env = make_env(env, n_envs=n_envs, samples_per_prompt=k)
        self.n_episodes, self.batch_size, self.n_epochs = n_episodes, batch_size or n_episodes, n_epochs
        self.micro_batch_size, self.samples_per_prompt = micro_batch_size, samples_per_prompt
        OnPolicyAlgorithm.__init__(
            self,
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=n_episodes,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=dict(policy_kwargs or {}),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Discrete,),
        )
        self.normalize_advantage, self.target_kl, self.kl_loss = normalize_advantage, target_kl, kl_loss
        self.kl_controller = kl_controller or FixedKL(self.engine.kl_coef if self.env is not None else 0.0)
        self.buffer: EpisodeBuffer | None = None
        self.earned: EpisodeRewards | None = None  # by the buffer's episodes, where they were played and scored
        self.ptx, self.ema_reference, self.began_with_ptx = ptx, ema_reference, False
        self.moving_reference = MovingReference(ema_reference) if ema_reference else None
        self.mean_kl = self.mean_kl_initial = float("nan")  # the latter to where a moving π_ref began
        self.notes: dict[str, Any] = {}
        """What callbacks want saved and taken back with an iteration, under names of theirs, for JSON."""
        self.kept_weights: dict[str, dict[str, Tensor]] = {}
        """Weights that callbacks want saved, by name."""
        self._finished = False
        self._snapshot: dict[str, Any] | None = None
        self._rng = np.random.default_rng(seed)
        if self.env is not None:
            self._check_env(self.engine)
        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Take a `TokenVectorEnv` as it is."""
        return env if isinstance(env, SB3VecEnv) else SB3VecEnv(unwrap_env(env))

    @property
    def engine(self) -> TokenVectorEnv:
        """The environment itself."""
        assert isinstance(self.env, SB3VecEnv), "set an environment first: set_env(env)"
        return self.env.engine

    def _check_env(self, env: TokenVectorEnv) -> None:
        """The environment is one this agent can learn in."""
        if self.compares_groups:
            check_groups(
                type(self).__name__,
                env,
                n_episodes=self.n_episodes,
                samples_per_prompt=self.samples_per_prompt,
                default=self.default_group,
            )

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        kwargs = dict(self.policy_kwargs)
        if "model" not in kwargs:
            kwargs["model"] = start_of(self.engine)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **kwargs)  # type: ignore[assignment]
        self.policy = self.policy.to(self.device)

    # -- learning ---------------------------------------------------------------------------------------------------

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """As in SB3; the reset it makes draws no prompts: rollouts reset by themselves."""
        self._restore_snapshot()
        self._snapshot, self._finished = None, False
        saving.check_ptx(self)
        if self.ptx is not None:
            self.ptx.prepare(self.engine.tokenizer, self.policy.parts)
        state = self.engine.state_dict()
        self.engine.discard_episodes()
        result = super()._setup_learn(*args, **kwargs)
        self.engine.load_state_dict(state)
        return result

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learn until `total_timesteps` tokens have been generated.

        As SB3's `learn`, but each line of the log has the update of its own rollout, and an interrupt (Ctrl-C) in the
        middle of an update waits until it is finished. Stopped at any other point, by a callback or an exception, the
        agent goes back to the start of the iteration: `save` it, or call `learn(rest, reset_num_timesteps=False)`.
        """
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        callback.on_training_start(locals(), globals())
        moving = self.moving_reference
        with nullcontext() if moving is None else moving.at_work(self.engine.token_reward, self.policy):
            try:
                self._learn_until(total_timesteps, callback, log_interval)
            finally:
                if self._snapshot is not None:  # an iteration cut short is taken back, and what was logged of it
                    self._restore_snapshot()
                    forget_pending(self.logger)
        callback.on_training_end()
        return self

    def _learn_until(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        """Rollout and update, in turn, until so many tokens or until a callback says stop."""
        iteration = 0
        while self.num_timesteps < total_timesteps:
            started, before = time.perf_counter(), self.num_timesteps
            if not self.collect_rollouts(self.env, callback):  # type: ignore[arg-type]
                return
            iteration += 1
            if self._finished:
                self._snapshot = None
                self.dump_logs(iteration)
                return
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            with finish_before_interrupt():
                self.train()
            tokens = self.num_timesteps - before
            self.logger.record("time/tokens_per_second", tokens / (time.perf_counter() - started))
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)

    def finish(self) -> None:
        """For callbacks at the end of a rollout: let `learn` end here, without an update on this rollout."""
        self._finished = True

    rollout_buffer = None  # type: ignore[assignment]  # SB3's is per step; ours is `buffer`

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any = None, n_rollout_steps: int | None = None
    ) -> bool:
        """Play `n_episodes` whole episodes and work out their rewards and advantages; False if a callback stopped."""
        engine = self.engine
        self._begin_iteration()
        engine.kl_coef = self.kl_controller.kl_coef
        engine.attach(self.policy)
        callback.on_rollout_start()
        started = time.perf_counter()
        rollout = collect_episodes(self, engine, callback, n_rollout_steps or self.n_episodes)
        if rollout is None:
            return False
        self.logger.record("time/rollout_seconds", time.perf_counter() - started)
        buffer = rollout.buffer()
        self.compute_advantages(buffer)
        self.buffer, self.earned = buffer, rollout.rewards
        scores, log_ratios = rollout.rewards.scores, rollout.rewards.log_ratios
        self.mean_kl = record_rollout(self.logger, buffer, scores, log_ratios, kl_coef=self.kl_controller.kl_coef)
        if engine.token_reward.shaping and (raw := rollout.rewards.raw_scores) is not None:
            self.logger.record("rlhf/raw_score", float(raw.mean()))
        self.mean_kl_initial = self.mean_kl
        if self.moving_reference is not None:
            self.mean_kl_initial = self.moving_reference.kl_from_start(rollout.episodes, rollout.log_probs)
            self.logger.record("rlhf/kl_initial", self.mean_kl_initial)
        for total, length in zip(buffer.rewards.sum(dim=1).tolist(), buffer.response_lengths.tolist(), strict=True):
            self.ep_info_buffer.append({"r": total, "l": length, "t": time.time() - self.start_time / 1e9})  # type: ignore[union-attr]
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _begin_iteration(self) -> None:
        """Keep what the iteration must be begun again from if it is cut short; the policy is to act."""
        self._restore_snapshot()
        self._snapshot = saving.host_state(self)
        self.policy.set_training_mode(False)
        self.policy.invalidate()

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """Fill the buffer's advantages and returns."""
        buffer.compute_advantages(gamma=self.gamma, gae_lambda=self.gae_lambda, normalize=self.normalize_advantage)

    def train(self) -> None:
        """Epochs over the rollout's minibatches; each minibatch is one optimizer step, however many micro-batches."""
        assert self.buffer is not None, "collect_rollouts() comes first"
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        update(self)
        self.policy.set_training_mode(False)
        self.kl_controller.update(self.mean_kl, len(self.buffer))
        if self.moving_reference is not None:
            self.moving_reference.follow(self.policy)
        self._snapshot = None  # the iteration is complete

    def minibatches(self) -> Iterator[np.ndarray]:
        """Rows of the buffer, a minibatch at a time."""
        assert self.buffer is not None
        return self.buffer.minibatches(self.batch_size, self._rng)

    def micro_batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """A minibatch's rows in parts of at most `micro_batch_size`, as equal as can be."""
        return np.array_split(rows, -(-len(rows) // (self.micro_batch_size or len(rows))))

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL term."""
        return self.engine.token_reward.kl_in == "loss"

    @abstractmethod
    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> MinibatchLoss:
        """A micro-batch's share of the loss, its means taken over the whole minibatch's `size`."""

    def token_weights(self, batch: EpisodeBatch, size: MinibatchSize) -> Tensor:
        """How much each episode's tokens count in the loss, (B, 1): all alike, unless a subclass says otherwise."""
        return batch.log_probs.new_ones(len(batch.mask), 1)

    def _policy_loss(
        self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize, *, clip_range: float = math.inf
    ) -> PolicyLoss:
        """−Ê[min(r·Â, clip(r, 1 − ε, 1 + ε)·Â)], and without ε −Ê[r·Â]: REINFORCE's gradient where r = 1, on the
        rollout's own policy, and importance-weighted after a step away from it."""
        return ppo_policy_loss(
            evaluation.log_probs,
            batch.log_probs,
            batch.advantages * self.token_weights(batch, size),
            batch.mask,
            clip_range=clip_range,
            denominator=size.tokens,
        )

    # -- state ------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """What an agent keeps from one iteration to the next besides weights, β and the counters, for JSON."""
        return {}

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """Go on from `own_state()`."""

    def _restore_snapshot(self) -> None:
        """Go back to the start of an iteration that was cut short, so that it plays the same episodes again."""
        if self._snapshot is not None:
            self.engine.discard_episodes()
            saving.restore_host_state(self, self._snapshot)

    def save(self, path: str | Path, exclude: Any = None, include: Any = None) -> None:  # type: ignore[override]
        """Write policy, optimizer, random states, β and the prompts' position to a zip of safetensors and JSON.

        In the middle of a rollout what is saved is the start of the iteration. Nothing is pickled.
        """
        saving.save(self, Path(path))

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: str | Path,
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        device: torch.device | str = "auto",
        **kwargs: Any,
    ) -> Self:
        """What `save` wrote. `kwargs` replace constructor arguments; an environment can also be set later."""
        return saving.load(cls, Path(path), env, device, kwargs)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """As in SB3, for a `TokenVectorEnv`; only the vocabulary must be that of the one before."""
        env = self._wrap_env(env, self.verbose)
        if env.action_space != self.action_space:
            raise ValueError(f"expected an environment with actions {self.action_space}, got {env.action_space}")
        self._check_env(env.engine)
        self.n_envs = env.num_envs
        self.observation_space = self.policy.observation_space = env.observation_space
        BaseAlgorithm.set_env(self, env, force_reset)

    def set_random_seed(self, seed: int | None = None) -> None:
        """As in SB3; a saved random state that `learn` was to go on from is given up."""
        super().set_random_seed(seed)
        if seed is not None:
            self._rng = np.random.default_rng(seed)
            self._snapshot = None

    def save_pretrained(self, folder: str | Path, *, merge: bool = False) -> None:
        """The actor as a Transformers folder, with the environment's tokenizer.

        Args:
            merge: of a policy with an adapter, write the whole model with the adapter merged into its weights; by
                default the adapter alone, as peft does, with the name of its base.
        """
        with quiet_transformers():
            save_model(self.policy.model, folder, merge=merge)
        if self.env is not None:
            self.engine.tokenizer.save_pretrained(folder)
