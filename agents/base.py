"""What the token agents share: whole-episode rollouts, their rewards, minibatches, logs, saving and resuming."""

from __future__ import annotations

import time
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import gymnasium as gym
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
from rlhf_gym.agents.buffer import EpisodeBatch, EpisodeBuffer
from rlhf_gym.agents.interrupts import finish_before_interrupt
from rlhf_gym.agents.kl_control import FixedKL, KLController
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.agents.rollout import collect_episodes
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.functional.kl import full_kl, k2
from rlhf_gym.functional.whitening import masked_mean
from rlhf_gym.lm.loading import quiet_transformers
from rlhf_gym.lm.shared import Shared

KLLoss = Literal["full", "k2"]


class MinibatchLoss(NamedTuple):
    """A micro-batch's share of the loss, and its share of what is logged."""

    loss: Tensor
    """Scalar, differentiable; the shares of a minibatch add up to its loss."""
    metrics: dict[str, Tensor]
    """Detached scalars under their names in the log; the shares add up too."""


class TokenAlgorithm(OnPolicyAlgorithm):
    """Learners on whole episodes of a `TokenVectorEnv`. Abstract: a subclass says what its loss is.

    A rollout is the first `n_episodes` episodes *started*, all of them finished (the first to finish would favour
    short ones). A timestep is a token. `learn`, callbacks, logger, `predict` are SB3's; `save` writes safetensors and
    JSON in a zip, and what is loaded goes on bit for bit.
    """

    policy: LMActorCriticPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LMPolicy": LMActorCriticPolicy}
    uses_critic: ClassVar[bool] = True

    def _init_token_algorithm(
        self,
        policy: str | type[LMActorCriticPolicy],
        env: TokenVectorEnv | SB3VecEnv | str | None,
        *,
        learning_rate: float | Schedule,
        n_episodes: int,
        batch_size: int,
        n_epochs: int,
        micro_batch_size: int | None,
        gamma: float,
        gae_lambda: float,
        normalize_advantage: bool,
        ent_coef: float,
        vf_coef: float,
        max_grad_norm: float,
        target_kl: float | None,
        kl_controller: KLController | None,
        kl_loss: KLLoss,
        n_envs: int,
        stats_window_size: int,
        tensorboard_log: str | None,
        policy_kwargs: dict[str, Any] | None,
        verbose: int,
        seed: int | None,
        device: torch.device | str,
        _init_setup_model: bool,
    ) -> None:
        """What every subclass's `__init__` calls; the arguments are documented in `TokenPPO`."""
        check_counts(n_episodes=n_episodes, batch_size=batch_size, n_epochs=n_epochs, micro_batch_size=micro_batch_size)
        if kl_loss not in get_args(KLLoss):
            raise ValueError(f"expected kl_loss to be one of {get_args(KLLoss)}, got {kl_loss!r}")
        if isinstance(env, str):
            env = gym.make_vec(env, num_envs=n_envs, reward_timing="deferred")  # type: ignore[assignment]
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
        self.n_episodes, self.batch_size, self.n_epochs = n_episodes, batch_size, n_epochs
        self.micro_batch_size = micro_batch_size
        self.normalize_advantage, self.target_kl, self.kl_loss = normalize_advantage, target_kl, kl_loss
        self.kl_controller = kl_controller or FixedKL(self.engine.kl_coef if self.env is not None else 0.0)
        self.buffer: EpisodeBuffer | None = None
        self.mean_kl = float("nan")
        self._snapshot: dict[str, Any] | None = None
        self._rng = np.random.default_rng(seed)
        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Take a `TokenVectorEnv` as it is."""
        if isinstance(env, SB3VecEnv):
            return env
        if isinstance(env, TokenVectorEnv):
            return SB3VecEnv(env)
        raise TypeError(
            f"expected a TokenVectorEnv or the id of one, got {type(env).__name__}; make it by "
            "gym.make_vec('rlhf_gym/…', num_envs=…). SB3's own agents take SB3VecEnv(env) and gym.make's environments"
        )

    @property
    def engine(self) -> TokenVectorEnv:
        """The environment itself."""
        assert isinstance(self.env, SB3VecEnv), "set an environment first: set_env(env)"
        return self.env.engine

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        kwargs = dict(self.policy_kwargs)
        if "model" not in kwargs:
            reference = self.engine.token_reward.reference
            if reference is None:
                raise ValueError(
                    "expected policy_kwargs={'model': folder, name or Shared(model)}: the environment has no reference "
                    "to start the policy from"
                )
            kwargs["model"] = Shared(reference.model)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **kwargs)  # type: ignore[assignment]
        self.policy = self.policy.to(self.device)

    # -- learning ---------------------------------------------------------------------------------------------------

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """As in SB3; the reset it makes draws no prompts: rollouts reset by themselves."""
        self._restore_snapshot()
        self._snapshot = None
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
        try:
            self._learn_until(total_timesteps, callback, log_interval)
        finally:
            if self._snapshot is not None:  # an iteration that was cut short is taken back, and what was logged of it
                self._restore_snapshot()
                for pending in (self.logger.name_to_value, self.logger.name_to_count, self.logger.name_to_excluded):
                    pending.clear()
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
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            with finish_before_interrupt():
                self.train()
            tokens = self.num_timesteps - before
            self.logger.record("time/tokens_per_second", tokens / (time.perf_counter() - started))
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)

    rollout_buffer = None  # type: ignore[assignment]  # SB3's is per step; ours is `buffer`

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any = None, n_rollout_steps: int | None = None
    ) -> bool:
        """Play `n_episodes` whole episodes and work out their rewards and advantages; False if a callback stopped."""
        engine = self.engine
        self._restore_snapshot()
        self._take_snapshot()
        engine.kl_coef = self.kl_controller.kl_coef
        engine.attach(self.policy)
        self.policy.set_training_mode(False)
        self.policy.invalidate()
        callback.on_rollout_start()
        started = time.perf_counter()
        rollout = collect_episodes(self, engine, callback, n_rollout_steps or self.n_episodes)
        if rollout is None:
            return False
        self.logger.record("time/rollout_seconds", time.perf_counter() - started)
        buffer = EpisodeBuffer(rollout.episodes, rollout.log_probs, rollout.values)
        buffer.set_rewards(rollout.rewards.rewards, rollout.rewards.ref_log_probs)
        self.compute_advantages(buffer)
        self.buffer = buffer
        self._log_rollout(buffer, rollout.rewards.scores, rollout.rewards.log_ratios)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """Fill the buffer's advantages and returns."""
        buffer.compute_advantages(gamma=self.gamma, gae_lambda=self.gae_lambda, normalize=self.normalize_advantage)

    def train(self) -> None:
        """Epochs over the rollout's minibatches; each minibatch is one optimizer step, however many micro-batches."""
        assert self.buffer is not None, "collect_rollouts() comes first"
        started = time.perf_counter()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        totals: dict[str, list[float]] = {}
        stopped = False
        for _ in range(self.n_epochs):
            for rows in self.buffer.minibatches(self.batch_size, self._rng):
                metrics = self._minibatch_gradient(rows)
                for name, value in metrics.items():
                    totals.setdefault(name, []).append(value)
                # SB3's rule: stop before the step that would go too far
                if self.target_kl is not None and metrics["train/approx_kl"] > 1.5 * self.target_kl:
                    stopped = True
                    break
                norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                totals.setdefault("train/grad_norm", []).append(float(norm))
                self.policy.optimizer.step()
                self._n_updates += 1
            if stopped:
                break
        self.policy.optimizer.zero_grad(set_to_none=True)
        for name, values in totals.items():
            self.logger.record(name, float(np.mean(values)))
        self.logger.record("train/explained_variance", self._explained_variance())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/stopped_early", float(stopped))
        self.logger.record("time/update_seconds", time.perf_counter() - started)
        self.policy.set_training_mode(False)
        self.kl_controller.update(self.mean_kl, len(self.buffer))
        self._snapshot = None  # the iteration is complete

    def _minibatch_gradient(self, rows: np.ndarray) -> dict[str, float]:
        """Gradient of one minibatch, accumulated over micro-batches weighted by their tokens; what is logged of it."""
        assert self.buffer is not None
        self.policy.optimizer.zero_grad(set_to_none=True)
        tokens = int(self.buffer.response_lengths[torch.from_numpy(rows)].sum())
        parts = -(-len(rows) // (self.micro_batch_size or len(rows)))
        totals: dict[str, Tensor] = {}
        for part in np.array_split(rows, parts):
            batch = self.buffer.batch(part, self.device)
            evaluation = self.policy.evaluate_episodes(
                batch.input_ids, batch.prompt_lengths, batch.lengths, with_entropy=self.ent_coef != 0
            )
            result = self.minibatch_loss(batch, evaluation, denominator=tokens)
            loss = result.loss
            metrics = dict(result.metrics)
            mean_entropy = masked_mean(evaluation.entropy, batch.mask, tokens)
            metrics["rlhf/entropy"] = mean_entropy.detach()
            if self.ent_coef != 0:
                loss = loss - self.ent_coef * mean_entropy
            if self.engine.token_reward.kl_in == "loss":
                kl = self._kl_loss(batch, evaluation, tokens)
                metrics["train/kl_loss"] = kl.detach()
                loss = loss + self.kl_controller.kl_coef * kl
            loss.backward()
            metrics["train/loss"] = loss.detach()
            for name, value in metrics.items():
                totals[name] = totals.get(name, torch.zeros((), device=value.device)) + value
        return {name: float(value) for name, value in totals.items()}

    @abstractmethod
    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, *, denominator: int) -> MinibatchLoss:
        """The loss of a micro-batch, its token means taken over `denominator` (the minibatch's tokens)."""

    def _kl_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, denominator: int) -> Tensor:
        """Mean over tokens of KL(π‖π_ref): over the vocabulary (`full`), or k2, whose gradient is the KL's."""
        if self.kl_loss == "k2":
            return masked_mean(k2(evaluation.log_probs, batch.ref_log_probs), batch.mask, denominator)
        reference = self.engine.token_reward.reference
        assert reference is not None
        with torch.no_grad():
            hidden = reference.hidden_states(batch.input_ids.to(reference.device))  # (B, L, H)
            column = torch.arange(batch.input_ids.shape[1] - 1, device=batch.lengths.device)
            acts = (column >= batch.prompt_lengths[:, None] - 1) & (column < batch.lengths[:, None] - 1)  # (B, L - 1)
            ref_logits = reference.logits(hidden[:, :-1][acts.to(hidden.device)])  # (n, V)
            ref_logits = ref_logits.to(evaluation.logits.device)
        return full_kl(evaluation.logits, ref_logits).sum() / denominator

    # -- logs -------------------------------------------------------------------------------------------------------

    def _log_rollout(self, buffer: EpisodeBuffer, scores: np.ndarray, log_ratios: np.ndarray) -> None:
        lengths = buffer.response_lengths.numpy()
        kl = log_ratios.sum(axis=1)  # (E,)
        returns = buffer.rewards.sum(dim=1).numpy()  # (E,)
        stopped = np.mean([e.finish_reason == "stop" for e in buffer.episodes])
        record = self.logger.record
        record("rlhf/score", float(scores.mean()))
        record("rlhf/score_std", float(scores.std()))
        record("rlhf/kl", float(kl.mean()))
        record("rlhf/kl_per_token", float(kl.sum() / lengths.sum()))
        record("rlhf/kl_coef", self.kl_controller.kl_coef)
        record("rlhf/return", float(returns.mean()))
        record("rlhf/response_length", float(lengths.mean()))
        record("rlhf/stopped", float(stopped))
        for total, length in zip(returns, lengths, strict=True):
            self.ep_info_buffer.append({"r": float(total), "l": int(length), "t": time.time() - self.start_time / 1e9})  # type: ignore[union-attr]
        self.mean_kl = float(kl.mean())

    def _explained_variance(self) -> float:
        """1 − Var[return − value] / Var[return] over the real tokens; NaN without a critic."""
        assert self.buffer is not None
        if not self.uses_critic:
            return float("nan")
        returns, values = self.buffer.returns[self.buffer.mask], self.buffer.values[self.buffer.mask]
        spread = float(returns.var())
        return float("nan") if spread == 0 else 1 - float((returns - values).var()) / spread

    # -- state ------------------------------------------------------------------------------------------------------

    def _take_snapshot(self) -> None:
        """What an unfinished iteration must be begun again from."""
        self._snapshot = saving.host_state(self)

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
        self.n_envs = env.num_envs
        self.observation_space = self.policy.observation_space = env.observation_space
        BaseAlgorithm.set_env(self, env, force_reset)

    def set_random_seed(self, seed: int | None = None) -> None:
        """As in SB3; a saved random state that `learn` was to go on from is given up."""
        super().set_random_seed(seed)
        if seed is not None:
            self._rng = np.random.default_rng(seed)
            self._snapshot = None

    def save_pretrained(self, folder: str | Path) -> None:
        """The actor as a Transformers folder, with the environment's tokenizer."""
        with quiet_transformers():
            self.policy.model.save_pretrained(folder)
        if self.env is not None:
            self.engine.tokenizer.save_pretrained(folder)


def check_counts(**counts: int | None) -> None:
    """Each is at least 1, or None.

    Raises:
        ValueError: naming the one that is not.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"expected {name} >= 1, got {value}")
