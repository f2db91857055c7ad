"""`TokenAlgorithm`: what the agents share. Rollouts of whole episodes, updates on their minibatches, resuming."""

from __future__ import annotations

import inspect
import itertools
import math
import signal
import threading
import time
import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, Unpack

import numpy as np
import torch
from annotated_types import Ge
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import set_random_seed, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from rlhf_gym.agents.arguments import (
    PLUMBING,
    LearnsFrom,
    Plumbing,
    check_no_critic,
    check_regularisers,
    check_sharding,
    check_words,
    make_env,
    spell_out,
    unwrap_env,
)
from rlhf_gym.agents.kl_control import FixedKL, KLController, kl_controller_from
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.agents.regularisers import SAVED_WHOLE, KLInLoss, Regulariser
from rlhf_gym.agents.replicas import begin_equal, check_equal_weights, sum_gradients, whole_rollout
from rlhf_gym.agents.rollout import (
    Aggregation,
    EpisodeBatch,
    EpisodeBuffer,
    LossTerm,
    MinibatchSize,
    OnStep,
    Rollout,
    collect_groups,
    collect_rollout,
)
from rlhf_gym.agents.saving import (
    AgentState,
    Kept,
    device_rng_state,
    load_named_weights,
    named_weights,
    policy_from_json,
    policy_to_json,
    read_state,
    schedule_from_json,
    schedule_to_json,
    set_device_rng_state,
    write_state,
)
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.envs.arguments import check_prompts, resolve_prompts
from rlhf_gym.envs.prompts import Prompts
from rlhf_gym.files import reading
from rlhf_gym.functional.masks import masked_mean
from rlhf_gym.lm.finite import REMEDY, check_weights
from rlhf_gym.lm.generation import Generation, generate
from rlhf_gym.lm.loading import Shared, quiet_transformers
from rlhf_gym.lm.lora import has_adapter, save_model
from rlhf_gym.lm.tensors import check_names, load_optimizer
from rlhf_gym.lm.tokens import decode
from rlhf_gym.ranges import Count, NonNegative, Positive, Range, check_arguments
from rlhf_gym.ranks import ranks
from rlhf_gym.settings.defaults import OTHER_AGENT, SMALL_WIDTH, row

MinibatchLoss = Callable[[EpisodeBatch, EpisodeEvaluation, MinibatchSize], LossTerm]
"""A micro-batch's share of an agent's loss, its means taken over the whole minibatch's size."""


class Responses(NamedTuple):
    """An agent's responses to B prompts."""

    prompts: list[Any]
    """The prompts, as they were given."""
    responses: list[str]
    """The response to each, as text."""
    generations: list[Generation]
    """The same as tokens, with their log-probabilities."""


class TokenAlgorithm(OnPolicyAlgorithm):
    """Learners on whole episodes of a `TokenVectorEnv`. Abstract: a subclass says what its loss is.

    A rollout is the first `n_episodes` episodes *started*, all of them finished (the first to finish would favour
    short ones). A timestep is a token. `learn`, callbacks, logger, `predict` are SB3's; `save` writes safetensors and
    JSON in a zip, and what is loaded goes on bit for bit.

    As one of N ranks (`torchrun`, see docs/scaling.md) an agent plays `n_episodes`/N of the episodes. Every rank then
    has the whole rollout and works on its share of each minibatch. All of them have the same weights at every step.
    """

    policy: LMActorCriticPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LMPolicy": LMActorCriticPolicy}
    label: ClassVar[str]
    """What tables and reports call the agent."""
    defaults: ClassVar[str] = OTHER_AGENT
    """The agent's rows in the table of defaults, `rlhf_gym.settings.defaults`."""
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
    saved_arguments: ClassVar[tuple[str, ...]] = ()
    """A subclass's own arguments that its file holds as they are."""
    saved_schedules: ClassVar[tuple[str, ...]] = ()
    """A subclass's own arguments that may be functions of the remaining progress, or records."""
    episodes_together: ClassVar[int] = 1
    """Consecutive episodes that one minibatch holds all of."""
    aggregation: Aggregation = "token"
    max_refills: int = 0
    """How often groups without spread are replaced in a rollout, at most."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """The constructor shows all its arguments, those too that every agent takes."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            base = inspect.signature(TokenAlgorithm.__init__).parameters
            defaults = {name: each.default for name, each in base.items() if each.default is not each.empty}
            spell_out(cls.__init__, {**defaults, **PLUMBING})

    @check_arguments
    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy],
        env: TokenVectorEnv | SB3VecEnv | str | None,
        learning_rate: NonNegative | Schedule | None,
        n_episodes: Count,
        batch_size: Count | None,
        n_epochs: Count,
        *,
        micro_batch_size: Count | None = None,
        max_grad_norm: Positive = 1.0,
        target_kl: Positive | None = None,
        mask_truncated: bool = False,
        kl_controller: KLController | None = None,
        regularisers: Sequence[Regulariser] = (),
        **plumbing: Unpack[Plumbing],
    ) -> None:
        """What a subclass's `__init__` calls; the arguments are documented there and in `TokenArguments`."""
        ranks()  # before anything is put on a device, of which each rank has one
        check_words(type(self).__name__, plumbing, Plumbing)
        check_regularisers(regularisers)
        plumbing = {**PLUMBING, **plumbing}
        check_sharding(plumbing["sharding"], regularisers)
        policy_kwargs = dict(plumbing["policy_kwargs"] or {})
        if not self.uses_critic:
            check_no_critic(type(self).__name__, policy_kwargs)
        if isinstance(env, str):
            slots = -(-plumbing["n_envs"] // ranks().size)
            env = make_env(env, n_envs=slots, **self._env_settings())
        self.n_episodes = n_episodes
        self.batch_size = batch_size or n_episodes
        self.n_epochs = n_epochs
        self.micro_batch_size = micro_batch_size
        self.target_kl = target_kl
        self.mask_truncated = mask_truncated
        self.regularisers = tuple(regularisers)
        self.sharding = plumbing["sharding"]
        self._chooses_rate = learning_rate is None
        OnPolicyAlgorithm.__init__(
            self,
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=0.0 if learning_rate is None else learning_rate,
            n_steps=n_episodes,
            gamma=1.0,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=plumbing["stats_window_size"],
            tensorboard_log=plumbing["tensorboard_log"],
            policy_kwargs=policy_kwargs,
            verbose=plumbing["verbose"] if ranks().leads else 0,
            seed=plumbing["seed"],
            device=plumbing["device"],
            _init_setup_model=False,
            supported_action_spaces=(spaces.Discrete,),
        )
        self.buffer: EpisodeBuffer | None = None
        self.rollout: Rollout | None = None
        """The last rollout played; None before the first, and where none is played."""
        self._active: tuple[Regulariser, ...] = ()  # while learning
        self._kept: dict[str, Kept] = {type(regulariser).__name__: regulariser for regulariser in regularisers}
        self._unclaimed: dict[str, dict[str, Any]] = {}  # states in a loaded file that nothing was given for yet
        self._unclaimed_weights: dict[str, dict[str, Tensor]] = {}
        self._not_given: list[str] = []  # regularisers in a loaded file that it cannot make again
        self._finished = False
        self._learning = False
        self._playing = False
        self._to_save: list[Path] = []  # files that were asked for while the ranks stepped, each at its own pace
        self._waited = 0.0  # seconds in meetings of the ranks, until the last update
        self._own_random = False  # whether each rank draws random numbers of its own
        self._broken = ""  # why the last update was not completed, and the weights are half new
        self._snapshot: dict[str, Any] | None = None
        self._rng = np.random.default_rng(self.seed)
        if self.env is not None:
            self._check_env(self.engine)
            if kl_controller is None:
                self.engine.kl_controller = None  # that of an earlier agent
                kl_controller = FixedKL(self.engine.kl_coef)
        self.kl_controller = kl_controller or FixedKL(0.0)
        if plumbing["_init_setup_model"]:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Accept a `TokenVectorEnv` as it is."""
        return env if isinstance(env, SB3VecEnv) else SB3VecEnv(unwrap_env(env))

    @property
    def engine(self) -> TokenVectorEnv:
        """The environment behind the SB3 wrapper."""
        if not isinstance(self.env, SB3VecEnv):
            raise ValueError("expected an agent with an environment, got none: set_env(env)")
        return self.env.engine

    @property
    def mean_kl(self) -> float:
        """KL(π‖π_ref) of the last rollout, the mean over its responses, in nats; NaN before the first."""
        return float("nan") if self.rollout is None else self.rollout.mean_kl

    @property
    def kl_controller(self) -> KLController:
        """The owner of β: the environment's rewards and the KL in the loss read it. Another one may be set."""
        return self._kl_controller

    @kl_controller.setter
    def kl_controller(self, controller: KLController) -> None:
        self._kl_controller = controller
        if self.env is not None:
            self._own_kl_coef()

    def _own_kl_coef(self) -> None:
        if self.learns_from == "rewards":
            self.engine.kl_controller = self.kl_controller

    def _env_settings(self) -> dict[str, Any]:
        """What an environment that is made from an id is made with."""
        return {}

    def _check_env(self, env: TokenVectorEnv) -> None:
        """The environment is one this agent can learn in."""
        kls = [type(regulariser).__name__ for regulariser in self.regularisers if regulariser.is_kl]
        if kls and env.token_reward.kl_in != "loss":
            raise ValueError(
                f'expected an environment with kl_in="loss" for {kls[0]}, got one with kl_in={env.token_reward.kl_in!r}'
                ": the KL would count twice"
            )

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        kwargs = dict(self.policy_kwargs)
        if "model" not in kwargs:
            kwargs["model"] = _start_of(self.engine)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **kwargs)  # type: ignore[assignment]
        self.policy = self.policy.to(self.device)
        if self.sharding == "full" and ranks().size > 1:
            self.policy.shard()
        if self._chooses_rate:
            made_up = isinstance(kwargs["model"], PretrainedConfig)
            self.learning_rate = default_learning_rate(self.defaults, self.policy, random_weights=made_up)
            self._setup_lr_schedule()
            update_learning_rate(self.policy.optimizer, self.learning_rate)
        if self.env is not None:
            self.engine.follow(self.device)
            self.engine.attach(self.policy)

    # -- learning ---------------------------------------------------------------------------------------------------

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """As in SB3; the reset it makes draws no prompts: rollouts reset by themselves."""
        if self._not_given:
            raise ValueError(
                f"expected regularisers=[{', '.join(f'{name}(…)' for name in self._not_given)}, …], as learning began "
                "with, got none: what they hold is not saved, give all regularisers again when loading ([] to go on "
                "without)"
            )
        self._restore_snapshot()
        self._snapshot = None
        self._finished = False
        self._own_kl_coef()
        group = ranks()
        if not (group.leads or self._custom_logger):
            self.set_logger(Logger(None, []))
        state = self.engine.state_dict()
        self.engine.discard_episodes()
        result = super()._setup_learn(*args, **kwargs)
        self.engine.load_state_dict(state)
        if group.size > 1:
            self._begin_as_rank(result[0])
        reference = self.engine.token_reward.reference
        if reference is not None:
            self.policy.share_frozen(reference)
        self._begin_regularisers()
        return result

    def _begin_as_rank(self, total_timesteps: int) -> None:
        """Let all ranks begin with the weights, counters and prompts of rank 0, each with random numbers of its own."""
        group = ranks()
        together = group.size * max(self.engine.samples_per_prompt, self.episodes_together)
        if self.n_episodes % together:
            raise ValueError(
                f"expected n_episodes to be a multiple of {together}, got {self.n_episodes}: each of {group.size} "
                "ranks plays as many of them, in whole groups"
            )
        same = ("n_episodes", "batch_size", "n_epochs", "micro_batch_size", "max_grad_norm", "target_kl")
        settings = {name: vars(self)[name] for name in same} | {
            "class": type(self).__name__,
            "total_timesteps": total_timesteps,
            "number of prompts": self.engine.num_prompts,
            "number of weights": sum(parameter.numel() for parameter in self.policy.parameters()),
        }
        begin_equal(self.policy, self.engine, settings)
        if not self._own_random:
            base = group.broadcast(torch.initial_seed(), "the seed of rank 0")
            if not group.leads:
                seed = np.random.SeedSequence([base, self.num_timesteps, group.rank]).generate_state(1)
                set_random_seed(int(seed[0]), using_cuda=self.device.type == "cuda")
            self._own_random = True
        self._restore_host_state(group.broadcast(self._host_state(), "the counters of rank 0"))
        self.engine.share = (group.rank, group.size)

    def _check_whole(self) -> None:
        """Raise where an update broke off: the weights are those of no iteration."""
        if self._broken:
            raise FloatingPointError(
                f"expected an agent whose last update was completed, got one whose update broke off ({self._broken}): "
                f"go on from what was saved before, by {type(self).__name__}.load(FILE, env=…)"
            )

    def _begin_regularisers(self) -> None:
        kl_in_loss = self.learns_from == "rewards" and self.engine.token_reward.kl_in == "loss"
        known = any(regulariser.is_kl for regulariser in self.regularisers)
        self._active = self.regularisers if known or not kl_in_loss else (*self.regularisers, KLInLoss("full"))
        try:
            for regulariser in self._active:
                regulariser.begin(self.policy, self.engine)
        except BaseException:
            self._end_regularisers()
            raise

    def _end_regularisers(self) -> None:
        for regulariser in self._active:
            regulariser.end()

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

        Of several ranks all learn until they have generated so many tokens together. Where a callback stops one, all of
        them stop at the end of their rollouts.
        """
        self._check_whole()
        number = isinstance(total_timesteps, Real) and not isinstance(total_timesteps, bool)
        least = 0 if reset_num_timesteps else -math.inf  # the last rollout may have passed what a total leaves to do
        if not (number and total_timesteps >= least):
            raise ValueError(f"expected total_timesteps, a number of tokens >= 0, got {total_timesteps!r}")
        progress_bar = progress_bar and ranks().leads
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        self._learning = True
        try:
            with ranks().failing_together():
                callback.on_training_start(locals(), globals())
                self._learn_until(total_timesteps, callback, log_interval)
                check_equal_weights(self.policy, "at the end")
        finally:
            self._learning = False
            if self._snapshot is not None:  # an iteration cut short is taken back, and what was logged of it
                self._restore_snapshot()
                _forget_pending(self.logger)
            self._end_regularisers()
            self._to_save = []
            self.engine.share = (0, 1)
        callback.on_training_end()
        return self

    def _learn_until(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        """Rollout and update, in turn, until so many tokens or until a callback says stop."""
        iteration = 0
        while self.num_timesteps < total_timesteps:
            started = time.perf_counter()
            before = self.num_timesteps
            played = self.collect_rollouts(self.env, callback)  # type: ignore[arg-type]
            if self.policy.sharded:
                self._write(ranks().broadcast(self._to_save, "the files of a rollout"))
                self._to_save = []
            if not played:
                return
            iteration += 1
            if ranks().any(self._finished, "the end of a rollout's callbacks"):
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

    def dump_logs(self, iteration: int = 0) -> None:
        """As in SB3, on rank 0 alone."""
        if ranks().leads:
            super().dump_logs(iteration)
        else:
            _forget_pending(self.logger)

    def finish(self) -> None:
        """For callbacks at the end of a rollout: let `learn` end here, without an update on this rollout."""
        self._finished = True

    rollout_buffer = None  # type: ignore[assignment]  # SB3's is per step; ours is `buffer`

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any = None, n_rollout_steps: int | None = None
    ) -> bool:
        """Play `n_episodes` whole episodes and work out their rewards and advantages; False if a callback stopped."""
        engine = self.engine
        n_episodes = n_rollout_steps or self.n_episodes
        self._begin_iteration()
        self._own_kl_coef()
        engine.attach(self.policy)
        callback.on_rollout_start()
        callback.update_locals({"self": self, "env": engine, "n_episodes": n_episodes})
        started = time.perf_counter()

        def on_step(*, acting: int, **seen: Any) -> bool:
            self.num_timesteps += acting
            callback.update_locals(seen)
            return callback.on_step()

        self._playing = True
        try:
            rollout = self.play(n_episodes, on_step)
        finally:
            self._playing = False
        if rollout is None:
            return False
        self.logger.record("time/rollout_seconds", time.perf_counter() - started)
        rollout.check_finite()
        for regulariser in self._active:
            rollout = regulariser.after_rollout(rollout)
        buffer = rollout.buffer()
        if self.mask_truncated:
            buffer.learned &= torch.tensor([episode.finish_reason != "length" for episode in buffer.episodes])
        self.compute_advantages(buffer)
        if not buffer.learned.all():
            self.logger.record("rlhf/learned", float(buffer.learned.float().mean()))
        self.buffer = buffer
        self.rollout = rollout
        _record_rollout(self.logger, rollout, buffer, kl_coef=self.kl_controller.kl_coef)
        if engine.token_reward.shaping and rollout.rewards.raw_scores is not None:
            self.logger.record("rlhf/raw_score", float(rollout.rewards.raw_scores.mean()))
        for total, length in zip(buffer.rewards.sum(dim=1).tolist(), buffer.response_lengths.tolist(), strict=True):
            self.ep_info_buffer.append({"r": total, "l": length, "t": time.time() - self.start_time / 1e9})  # type: ignore[union-attr]
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def play(self, n_episodes: int, on_step: OnStep) -> Rollout | None:
        """Play the episodes of a rollout, with `max_refills` more of them; None if `on_step` said stop.

        Of several ranks each plays its share, in whole groups, and has the episodes of all in the end.
        """
        group = ranks()
        k = self.engine.samples_per_prompt

        def collect(count: int) -> Rollout | None:
            before = self.num_timesteps
            share = count if group.size == 1 else -(-count // (k * group.size)) * k
            rollout = collect_rollout(self.policy, self.engine, share, critic=self.uses_critic, on_step=on_step)
            if group.size > 1:
                rollout = whole_rollout(rollout, self.engine)
            if group.size > 1 and rollout is not None:
                self.num_timesteps = before + sum(episode.response_length for episode in rollout.episodes)
            return rollout

        if not self.max_refills:
            return collect(n_episodes)
        return collect_groups(collect, n_episodes, samples_per_prompt=k, max_refills=self.max_refills)

    def _begin_iteration(self) -> None:
        """Keep what the iteration must be begun again from if it is cut short; the policy is to act."""
        self._restore_snapshot()
        check_equal_weights(self.policy, f"after {self.num_timesteps} tokens")
        self._snapshot = self._host_state()
        self.policy.set_training_mode(False)
        self.policy.invalidate()

    def compute_advantages(self, buffer: EpisodeBuffer) -> None:
        """Fill the buffer's advantages, and the returns where there is a critic: nothing, unless a subclass does."""

    @abstractmethod
    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm:
        """A micro-batch's share of the loss, its means taken over the whole minibatch's `size`."""

    def train(self) -> None:
        """Epochs over the rollout's minibatches; each minibatch is one optimizer step, however many micro-batches."""
        assert self.buffer is not None, "collect_rollouts() comes first"
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        started = time.perf_counter()
        settings = self.update_settings
        try:
            done = update(self.policy, self.buffer, self.minibatch_loss, self._active, settings, self._rng)
        except BaseException as error:
            if isinstance(error, FloatingPointError) or self.policy.sharded:
                self._broken = str(error)
            raise
        self._n_updates += done.steps
        for name, value in done.metrics.items():
            self.logger.record(name, value)
        if self.uses_critic:
            self.logger.record("train/explained_variance", self.buffer.explained_variance())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/stopped_early", float(done.stopped))
        self.logger.record("time/update_seconds", time.perf_counter() - started)
        if ranks().size > 1:
            self.logger.record("time/meeting_seconds", ranks().waited - self._waited)
            self._waited = ranks().waited
        self.policy.set_training_mode(False)
        if self.rollout is not None and not settings.critic_alone:
            self.kl_controller.update(self.mean_kl, len(self.buffer))
        for regulariser in self._active:
            regulariser.after_iteration()
        self._snapshot = None  # the iteration is complete

    @property
    def update_settings(self) -> UpdateSettings:
        """How the agent goes through a rollout."""
        return UpdateSettings(
            n_epochs=self.n_epochs,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            max_grad_norm=self.max_grad_norm,
            target_kl=self.target_kl,
            aggregation=self.aggregation,
            together=self.episodes_together,
        )

    # -- state ------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """What an agent keeps from one iteration to the next besides weights, β and the counters, for JSON."""
        return {}

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """Restore what `own_state()` gave."""

    def keep(self, name: str, kept: Kept) -> None:
        """For callbacks when training begins: save this with the agent, and let it go on from what was saved.

        It is taken back with an iteration that is cut short. Another one kept under the same name is replaced, and
        its state handed on.
        """
        before = self._kept.get(name)
        if before is not None and before is not kept:
            kept.load_state_dict(before.state_dict())
            kept.load_weights(before.weights())
        if name in self._unclaimed:
            kept.load_state_dict(self._unclaimed.pop(name))
            kept.load_weights(self._unclaimed_weights.pop(name, {}))
        self._kept[name] = kept

    def _host_state(self) -> dict[str, Any]:
        """Counters, random states and the prompts' position: what an iteration begins with, besides weights and β.

        It is the same on all ranks, and has the random states of all of them.
        """
        group = ranks()
        random = {"torch_rng": torch.get_rng_state().tolist(), "device_rng": device_rng_state(self.device)}
        first, *others = [random] if group.parted else group.gather(random, "the random states of all ranks")
        return {
            "num_timesteps": self.num_timesteps,
            "n_updates": self._n_updates,
            **first,
            **({"ranks": others} if others else {}),
            "minibatch_rng": self._rng.bit_generator.state,
            "env": self.engine.state_dict() if self.env is not None else None,
            "agent": self.own_state(),
            "kept": self._unclaimed | {name: kept.state_dict() for name, kept in self._kept.items()},
            "ep_infos": None if self.ep_info_buffer is None else list(self.ep_info_buffer),  # of SB3's rolling means
        }

    def _restore_host_state(self, state: dict[str, Any]) -> None:
        """Go on from `_host_state()`. An environment with other prompts begins their order anew, and says so."""
        for name in ("num_timesteps", "n_updates"):
            Range(int, Ge(0)).check(f"{name} of an agent", state[name])
        self.num_timesteps = state["num_timesteps"]
        self._n_updates = state["n_updates"]
        group = ranks()
        others = state.get("ranks", [])
        self._own_random = len(others) == group.size - 1
        random = others[group.rank - 1] if self._own_random and group.rank else state
        torch.set_rng_state(torch.tensor(random["torch_rng"], dtype=torch.uint8))
        set_device_rng_state(self.device, random["device_rng"])
        self._rng.bit_generator.state = state["minibatch_rng"]
        self.restore_own_state(state["agent"])
        for name, own in state["kept"].items():
            if name in self._kept:
                self._kept[name].load_state_dict(own)
            else:
                self._unclaimed[name] = own
        if state["ep_infos"] is not None:
            numbers = Range(float)
            for info in state["ep_infos"]:
                check_names("an episode's return, length and time", info, ("r", "l", "t"))
                for name, value in info.items():
                    numbers.check(name, value)
            self.ep_info_buffer = deque(state["ep_infos"], maxlen=self._stats_window_size)
            self.ep_success_buffer = deque(maxlen=self._stats_window_size)  # SB3 looks for both; this one stays empty
        if state["env"] is None or self.env is None:
            return
        known = state["env"]["prompts"]["num_prompts"]
        given = self.engine.num_prompts
        if known == given:
            self.engine.load_state_dict(state["env"])
            return
        warnings.warn(
            f"expected an environment with {known} prompts, got {given}: their order begins anew", stacklevel=3
        )
        state["env"] = None

    def _restore_snapshot(self) -> None:
        """Go back to the start of an iteration that was cut short, so that it plays the same episodes again."""
        if self._snapshot is not None:
            self.engine.discard_episodes()
            self._restore_host_state(self._snapshot)

    @classmethod
    def _saved_names(cls) -> tuple[str, ...]:
        """The arguments that a file holds as they are. Where logs are written to is not for a file to say."""
        names = ("n_episodes", "batch_size", "n_epochs", "micro_batch_size", "max_grad_norm", "seed", "verbose")
        return (
            *names,
            *cls.saved_arguments,
            *(("target_kl", "mask_truncated") if cls.learns_from == "rewards" else ()),
        )

    @classmethod
    def _schedule_names(cls) -> tuple[str, ...]:
        """The arguments that may be functions of the remaining progress, or records."""
        return ("learning_rate", *cls.saved_schedules)

    def get_state(self) -> AgentState:
        """What `save` writes. In the middle of a rollout it is the start of the iteration."""
        optimizer = self.policy.optimizer_state()
        data = {
            "class": type(self).__name__,
            "arguments": {name: vars(self)[name] for name in self._saved_names()},
            "schedules": {name: schedule_to_json(vars(self)[name]) for name in self._schedule_names()},
            "kl_controller": self.kl_controller.state_dict(),
            "regularisers": {type(own).__name__: own.settings() for own in self.regularisers}
            | dict.fromkeys(self._not_given),
            "policy_class": type(self.policy).__name__,
            "policy": policy_to_json(self.policy),
            "observation_length": self.observation_space["input_ids"].shape[0],  # type: ignore[index]
            "vocab_size": int(self.action_space.n),  # type: ignore[attr-defined]
            "optimizer_groups": optimizer["param_groups"],
            "total_timesteps": self._total_timesteps,
            "state": self._snapshot if self._snapshot is not None else self._host_state(),
        }
        kept = self._unclaimed_weights | {name: own.weights() for name, own in self._kept.items()}
        return AgentState(data, named_weights(self.policy), optimizer["state"], kept)

    def save(self, path: str | Path, exclude: Any = None, include: Any = None) -> None:  # type: ignore[override]
        """Write policy, optimizer, random states, β and the prompts' position to a zip of safetensors and JSON.

        In the middle of a rollout what is saved is the start of the iteration. Nothing is pickled. Of several ranks
        rank 0 writes the file, with the random states of all; outside `learn` the others wait until it has. With
        `sharding="full"` the ranks meet for it: a file that `on_step` of a callback asks for is written at the end of
        the rollout.

        Raises:
            FloatingPointError: an update broke off, or a weight is not finite. The file at `path` stays as it is.
        """
        self._check_whole()
        check_weights(self.policy, f"the policy after {self.num_timesteps} tokens", advice=REMEDY)
        if self._playing and self.policy.sharded:
            self._to_save.append(Path(path))
            return
        self._write([Path(path)])
        self._wait_for_file()

    def _write(self, paths: Sequence[Path]) -> None:
        """Write the present state to these files; on all ranks, as each may hold a part of it."""
        everywhere = self._snapshot is None or self.policy.sharded  # without a snapshot all say their random states
        if paths and (ranks().leads or everywhere):
            state = self.get_state()
        if ranks().leads:
            for path in paths:
                write_state(state, path)

    def _wait_for_file(self) -> None:
        """Outside `learn`, wait until rank 0 has written: the next line of a script may read the file."""
        if not self._learning and not ranks().parted:
            ranks().meet("a file that rank 0 writes")

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: str | Path,
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        device: torch.device | str = "auto",
        **kwargs: Any,
    ) -> Self:
        """What `save` wrote. `kwargs` replace constructor arguments; an environment can also be set later.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file holds another kind of agent, or is none of ours.
        """
        state = read_state(Path(path))
        data = state.data
        seed = kwargs.get("seed")
        with reading(f"a saved {cls.__name__}", path):
            if data["class"] != cls.__name__:
                raise ValueError(f"expected a saved {cls.__name__}, {path} holds a {data['class']}")
            if "policy" not in kwargs and data["policy_class"] != LMActorCriticPolicy.__name__:
                raise ValueError(
                    f"expected the class of the saved policy: pass policy={data['policy_class']} when loading"
                )
            check_names(f"the arguments of a {cls.__name__} in {path}", data["arguments"], cls._saved_names())
            check_names(f"the schedules of a {cls.__name__} in {path}", data["schedules"], cls._schedule_names())
            arguments = dict(data["arguments"])
            lost: list[str] = []
            if cls.learns_from == "rewards":
                if "kl_controller" not in kwargs:
                    arguments["kl_controller"] = kl_controller_from(data["kl_controller"])
                if "regularisers" not in kwargs:
                    saved = {name: own for name, own in data["regularisers"].items() if own is not None}
                    lost = [name for name in data["regularisers"] if name not in saved or name not in SAVED_WHOLE]
                    arguments["regularisers"] = [
                        SAVED_WHOLE[name](**own) for name, own in saved.items() if name not in lost
                    ]
            for name, value in data["schedules"].items():
                arguments[name] = kwargs.pop(name) if name in kwargs else schedule_from_json(name, value)
            policy = kwargs.pop("policy", "LMPolicy")
            kind = LMActorCriticPolicy if isinstance(policy, str) else policy
            arguments["policy_kwargs"] = policy_from_json(
                data["policy"], kwargs.pop("policy_kwargs", {}), kind, state.policy
            )
        arguments |= {"device": device, "_init_setup_model": False, **kwargs}
        agent = cls(policy, env, **arguments)  # type: ignore[call-arg]
        agent._not_given = lost
        if env is None:
            agent.observation_space, agent.action_space = _spaces(data["observation_length"], data["vocab_size"])
            agent.n_envs = 1
        # Random weights are drawn and then replaced; the random state they come from is restored below.
        agent._setup_model()
        with reading(f"a saved {cls.__name__}", path):
            load_named_weights(agent.policy, state.policy)
            taken = data["state"]["n_updates"]
            load_optimizer(agent.policy.optimizer, state.optimizer, data["optimizer_groups"], steps=taken)
        agent.policy.invalidate()
        dropped = data["regularisers"].keys() - agent._kept.keys() - set(lost)
        for name, weights in state.kept.items():
            if name in agent._kept:
                agent._kept[name].load_weights(weights)
            elif name not in dropped:
                agent._unclaimed_weights[name] = weights
        for name in dropped:
            data["state"]["kept"].pop(name, None)
        agent._total_timesteps = data["total_timesteps"]
        agent._snapshot = data["state"]  # `learn` begins from here, whatever is drawn until then
        with reading(f"a saved {cls.__name__}", path):
            Range(float, Ge(0), infinite=True).check("total_timesteps", agent._total_timesteps)
            agent._restore_host_state(data["state"])
        if ranks().leads and not agent._own_random:
            warnings.warn(
                f"expected {1 + len(data['state'].get('ranks', []))} ranks, as {path} was saved with, got "
                f"{ranks().size}: what follows is that of a run without a break in distribution, not number by number",
                stacklevel=2,
            )
        if seed is not None:
            agent.set_random_seed(seed)
        return agent

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """As in SB3, for a `TokenVectorEnv`; only the vocabulary must be that of the one before."""
        env = self._wrap_env(env, self.verbose)
        if env.action_space != self.action_space:
            raise ValueError(f"expected an environment with actions {self.action_space}, got {env.action_space}")
        self._check_env(env.engine)
        if self.env is not None and self.engine.kl_controller is self.kl_controller:
            self.engine.kl_controller = None
        self.n_envs = env.num_envs
        self.observation_space = self.policy.observation_space = env.observation_space
        BaseAlgorithm.set_env(self, env, force_reset)
        self.engine.follow(self.device)
        self.engine.attach(self.policy)
        self._own_kl_coef()

    def set_random_seed(self, seed: int | None = None) -> None:
        """As in SB3; a saved random state that `learn` was to go on from is given up."""
        super().set_random_seed(seed)
        if seed is not None:
            self._rng = np.random.default_rng(seed)
            self._snapshot = None
            self._own_random = False

    def generate(self, prompts: Prompts, *, seed: int = 0, deterministic: bool = False) -> Responses:
        """The policy's response to each prompt, drawn as it acts: with its temperature and its filters.

        Where an environment has several turns it is the first one, to which nobody replies; whole dialogues are
        episodes of the environment. What is drawn does not reach the training.

        Args:
            prompts: texts, conversations, or token ids; repeat one to have several responses to it.
            seed: the same seed draws the same responses.
            deterministic: the likeliest token each time instead of a draw.

        Raises:
            ValueError: a prompt is empty or too long, or the agent has no environment, which says how long answers are.
        """
        if self.env is None:
            raise ValueError("expected an agent with an environment, got one without: set_env(env), or load(FILE, env)")
        if isinstance(prompts, str):
            raise ValueError("expected a sequence of prompts, got one text: put it in a list")
        engine = self.engine
        rows = resolve_prompts(prompts, engine.tokenizer)
        check_prompts(rows, max_prompt_length=engine.max_prompt_length, vocab_size=engine.vocab_size)
        written = generate(
            self.policy.parts,
            rows,
            max_new_tokens=engine.max_turn_tokens,
            stop_token_ids=engine.stop_token_ids,
            params=self.policy.sampling,
            greedy_decoding=deterministic,
            generator=torch.Generator(self.policy.parts.device).manual_seed(seed),
        )
        texts = decode(engine.tokenizer, [generation.response_ids for generation in written])
        return Responses(list(prompts), texts, written)

    def save_pretrained(self, folder: str | Path, *, merge: bool = False) -> None:
        """The actor as a Transformers folder, with the environment's tokenizer.

        Args:
            merge: of a policy with an adapter, write the whole model with the adapter merged into its weights; by
                default the adapter alone, as peft does, with the name of its base.

        Raises:
            FloatingPointError: as `save`.
        """
        self._check_whole()
        check_weights(self.policy, f"the policy after {self.num_timesteps} tokens", advice=REMEDY)
        if ranks().leads:
            with quiet_transformers():
                save_model(self.policy.model, folder, merge=merge)
            if self.env is not None:
                self.engine.tokenizer.save_pretrained(folder)
        self._wait_for_file()


# -- updating ------------------------------------------------------------------------------------------------------


class UpdateSettings(NamedTuple):
    """How an update goes through a rollout."""

    n_epochs: int
    """Passes over the rollout."""
    batch_size: int
    """Episodes a minibatch; each minibatch is one optimizer step."""
    micro_batch_size: int | None = None
    """Episodes in one forward; None for the whole minibatch."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    target_kl: float | None = None
    """The update ends when KL(π_old‖π) exceeds 1.5 times this."""
    aggregation: Aggregation = "token"
    """Whether all tokens of a minibatch count alike, or all its episodes."""
    together: int = 1
    """Consecutive episodes that one micro-batch holds all of."""
    critic_alone: bool = False
    """Whether the policy's weights stay as they are, and what is added to its objective is left out."""


class UpdateResult(NamedTuple):
    """The result of an update."""

    metrics: dict[str, float]
    """Means over the minibatches, under their names in the log."""
    steps: int
    """The number of optimizer steps."""
    stopped: bool
    """Whether `target_kl` ended it."""


def update(
    policy: LMActorCriticPolicy,
    buffer: EpisodeBuffer,
    loss: MinibatchLoss,
    regularisers: Sequence[Regulariser],
    settings: UpdateSettings,
    rng: np.random.Generator,
) -> UpdateResult:
    """`n_epochs` over the rollout's minibatches, or fewer if `target_kl` ends them.

    Raises:
        FloatingPointError: a loss, a gradient or a weight is not finite. It names which, and the optimizer step.
    """
    if settings.critic_alone:
        regularisers = ()
    totals: dict[str, list[float]] = {}
    steps = 0
    stopped = False
    odd = ""  # the first figure that is not finite
    with policy.updating(), without_gradient(policy.model if settings.critic_alone else None):
        passes = (
            buffer.minibatches(settings.batch_size, rng, together=settings.together) for _ in range(settings.n_epochs)
        )
        for rows in itertools.chain.from_iterable(passes):
            metrics = minibatch_gradient(policy, buffer, rows, loss, regularisers, settings)
            for name, value in metrics.items():
                totals.setdefault(name, []).append(value)
            # SB3's rule: stop before the step that would go too far
            stopped = settings.target_kl is not None and metrics["train/approx_kl"] > 1.5 * settings.target_kl
            if stopped:
                break
            norm = policy.clip_gradients(settings.max_grad_norm)
            figures = {"loss": metrics["train/loss"], "gradient norm": norm}
            odd = next((f"{what}, got {value}" for what, value in figures.items() if not math.isfinite(value)), "")
            if odd:
                break
            totals.setdefault("train/grad_norm", []).append(norm)
            policy.optimizer.step()
            steps += 1
        policy.optimizer.zero_grad(set_to_none=True)
    # those of the steps before would have shown in the next minibatch's loss
    check_weights(policy, f"the policy after {steps} optimizer steps of this update", advice=REMEDY)
    if odd:
        raise FloatingPointError(f"expected a finite {odd} at optimizer step {steps + 1} of this update: {REMEDY}")
    return UpdateResult({name: float(np.mean(values)) for name, values in totals.items()}, steps, stopped)


@contextmanager
def without_gradient(module: torch.nn.Module | None) -> Iterator[None]:
    """Hold every parameter of the module still, if one is given: none has a gradient, no optimizer touches it."""
    held = [] if module is None else [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def minibatch_gradient(
    policy: LMActorCriticPolicy,
    buffer: EpisodeBuffer,
    rows: np.ndarray,
    loss: MinibatchLoss,
    regularisers: Sequence[Regulariser],
    settings: UpdateSettings,
) -> dict[str, float]:
    """Gradient of one minibatch, accumulated over micro-batches weighted by their tokens; what is logged of it.

    Of several ranks each takes every N-th row, and gradient and what is logged are then those of all. All of them work
    in as many micro-batches, those without a row left on one that counts nothing.
    """
    policy.optimizer.zero_grad(set_to_none=True)
    tokens = int(buffer.response_lengths[torch.from_numpy(rows)].sum())
    size = MinibatchSize(tokens, len(rows), settings.aggregation)
    totals: dict[str, Tensor] = {}
    group = ranks()
    units = rows.reshape(-1, settings.together)
    most = -(-len(units) // group.size)  # on a rank
    parts = -(-most // ((settings.micro_batch_size or len(rows)) // settings.together))
    for part in np.array_split(units[group.rank :: group.size], parts):
        batch = buffer.batch((part if len(part) else units[:1]).reshape(-1), policy.device)
        evaluation = policy.forward_pass(
            policy.evaluate_episodes,
            batch.input_ids,
            batch.action_mask,
            with_entropy=any(regulariser.reads_entropy for regulariser in regularisers),
            lower_states=batch.lower_states,
        )
        terms = [loss(batch, evaluation, size)]
        terms += [term for own in regularisers if (term := own.loss(batch, evaluation, size)) is not None]
        total = torch.stack([term.loss for term in terms]).sum()
        entropy = masked_mean(evaluation.entropy.detach(), batch.mask, size.tokens)
        metrics = [*(term.metrics for term in terms), {"rlhf/entropy": entropy, "train/loss": total.detach()}]
        if not len(part):
            total = total * 0
            metrics = [{name: torch.zeros_like(value) for name, value in each.items()} for each in metrics]
        total.backward()
        for each in metrics:
            _add(totals, each)
    for regulariser in regularisers:
        _add(totals, regulariser.add_gradient(settings.micro_batch_size))
    if group.size > 1:
        # of sharded weights FSDP has added up the gradients
        totals = sum_gradients(() if policy.sharded else policy.parameters(), totals)
    return {name: float(value) for name, value in totals.items()}


def _add(totals: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Add the metrics of a micro-batch to their sums."""
    for name, value in more.items():
        totals[name] = totals.get(name, torch.zeros((), device=value.device)) + value


@contextmanager
def finish_before_interrupt() -> Iterator[None]:
    """Hold SIGINT back until the block is done, then send it again: half an update is no state to save.

    So are SIGTERM and SIGHUP, where a function of Python handles them. Only the main thread can (Python's rule for
    signals); elsewhere this does nothing.
    """
    previous = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    for name in ("SIGTERM", "SIGHUP"):  # Windows lacks one
        number = getattr(signal, name, None)
        if number is not None and callable(handler := signal.getsignal(number)):
            previous[number] = handler
    # None: a handler that Python did not install and could not put back
    if threading.current_thread() is not threading.main_thread() or previous[signal.SIGINT] is None:
        yield
        return
    caught: list[int] = []
    for number in previous:
        signal.signal(number, lambda signum, frame: caught.append(signum))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])  # whatever handles it, Python's KeyboardInterrupt or the system's end


# -- small parts ---------------------------------------------------------------------------------------------------


def default_learning_rate(agent: str, policy: LMActorCriticPolicy, *, random_weights: bool) -> float:
    """The learning rate that docs/settings.md has for an agent, by what its policy begins with.

    A model narrower than `SMALL_WIDTH` is learned as one from scratch, whoever trained it.
    """
    width = policy.parts.hidden_size
    if random_weights or width < SMALL_WIDTH:
        return row(agent, "scratch").rate(width)
    return row(agent, "lora" if has_adapter(policy.model) else "pretrained").rate(width)


def _record_rollout(logger: Logger, rollout: Rollout, buffer: EpisodeBuffer, *, kl_coef: float) -> None:
    """Log a rollout's means over its episodes and tokens. Each name is defined in docs/metrics.md."""
    lengths = buffer.response_lengths.numpy()  # (E,)
    kl = rollout.rewards.log_ratios.sum(axis=1)  # (E,)
    scores = rollout.rewards.scores  # (E,)
    logger.record("rlhf/score", float(scores.mean()))
    logger.record("rlhf/score_std", float(scores.std()))
    if rollout.rewards.dense is not None:
        logger.record("rlhf/dense_reward", float(rollout.rewards.dense.sum(axis=1, dtype=np.float64).mean()))
    logger.record("rlhf/kl", rollout.mean_kl)
    logger.record("rlhf/kl_per_token", float(kl.sum() / lengths.sum()))
    logger.record("rlhf/kl_coef", kl_coef)
    logger.record("rlhf/return", float(buffer.rewards.sum(dim=1).mean()))
    logger.record("rlhf/response_length", float(lengths.mean()))
    logger.record("rlhf/stopped", float(np.mean([e.finish_reason == "stop" for e in buffer.episodes])))
    if rollout.first_ref_log_probs is not None:
        logger.record("rlhf/kl_initial", rollout.mean_kl_from_first)


def _forget_pending(logger: Logger) -> None:
    """Take back what was logged since the last line was written."""
    for pending in (logger.name_to_value, logger.name_to_count, logger.name_to_excluded):
        pending.clear()


def _start_of(env: TokenVectorEnv) -> Shared[PreTrainedModel]:
    """The environment's π_ref, for a policy to start as a copy of."""
    reference = env.token_reward.reference
    if reference is None:
        raise ValueError(
            "expected policy_kwargs={'model': folder, name or Shared(model)}: the environment has no reference to "
            "start the policy from"
        )
    return Shared(reference.model)


def _spaces(length: int, vocab_size: int) -> tuple[spaces.Space, spaces.Space]:
    observation = spaces.Dict(
        input_ids=spaces.Box(0, vocab_size - 1, (length,), np.int64),
        attention_mask=spaces.Box(0, 1, (length,), np.int8),
    )
    return observation, spaces.Discrete(vocab_size)
