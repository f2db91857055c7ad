"""An agent of a run, from its settings: its environment, and its parts that are not plain values."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.utils import LinearSchedule

from rlhf_gym.agents import (
    CISPO,
    AdaptiveKL,
    BestOfN,
    Clip,
    ConstraintKL,
    EntropyBonus,
    FixedKL,
    KLController,
    KLInLoss,
    LengthAdaptive,
    MovingReference,
    PretrainingMix,
    Regulariser,
    SequenceClip,
    Surrogate,
    TokenAlgorithm,
)
from rlhf_gym.envs import (
    AddVerifier,
    ClipScore,
    LengthPenalty,
    NormalizeScore,
    RepetitionPenalty,
    ScoreTerm,
    TokenVectorEnv,
    turns_of,
)
from rlhf_gym.lm import LoRA, Shared, load_causal_lm
from rlhf_gym.lm.lora import check_peft
from rlhf_gym.pipeline.collect import all_preferences
from rlhf_gym.pipeline.context import Run
from rlhf_gym.preferences import Preference, read_texts
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import FunctionReward, ScoreError, function_scores, import_reward_function
from rlhf_gym.settings import (
    AgentSettings,
    LearnerSettings,
    PolicyGradientSettings,
    PPOSettings,
    StageName,
    SurrogateSettings,
)
from rlhf_gym.tasks import Task
from rlhf_gym.training.data import demonstration_rows

VERIFIER_SECONDS = 600.0
"""How long a verifier may take for the responses of a rollout."""


def agent_class(settings: AgentSettings) -> type[TokenAlgorithm] | type[BestOfN]:
    """The class of the agent that these settings are for."""
    return pkgutil.resolve_name(settings.agent)


def settings_label(settings: AgentSettings) -> str:
    """What tables and reports call the agent."""
    return settings.label(agent_class(settings).label)


@dataclass(frozen=True)
class Parts:
    """Makes what an agent of a run takes besides plain values; see `rlhf_gym.settings.agents.AgentParts`."""

    run: Run
    """The run that the agent belongs to."""
    round: int
    """The round of the run."""
    seed: int
    """The agent's seed."""

    def preferences(self) -> list[Preference] | None:
        """The pairs that the round's reward model was trained on; None where it was trained on none."""
        return all_preferences(self.run, self.round)[0] if self.run.config.task.compares else None

    def kl_controller(self, settings: PolicyGradientSettings) -> KLController:
        """The controller of β that the settings ask for."""
        if settings.kl_control == "adaptive":
            return AdaptiveKL(settings.kl_coef, settings.kl_target, settings.kl_horizon)
        if settings.kl_control == "constraint":
            return ConstraintKL(settings.kl_coef, settings.kl_target)
        return FixedKL(settings.kl_coef)

    def surrogate(self, settings: SurrogateSettings) -> Surrogate | None:
        """What is done with the policy's ratio; None for nothing."""
        low = settings.clip_range
        high = settings.clip_range_high
        if settings.surrogate == "clip":
            return Clip(0.2 if low is None else low, high, settings.dual_clip)
        if settings.surrogate == "sequence":
            return SequenceClip(3e-4 if low is None else low, high)
        if settings.surrogate == "cispo":
            assert high is not None, "its settings check that"
            return CISPO(high, 1.0 if low is None else low)
        return None

    def gae_lambda(self, settings: PPOSettings) -> float | LengthAdaptive:
        """λ of the advantages."""
        alpha = settings.gae_lambda_alpha
        return settings.gae_lambda if alpha is None else LengthAdaptive(alpha)

    def regularisers(self, settings: PolicyGradientSettings) -> list[Regulariser]:
        """What is added to the objective: an entropy bonus, the KL in the loss, other texts, a moving reference."""
        found: list[Regulariser] = []
        if settings.ent_coef:
            found.append(EntropyBonus(settings.ent_coef))
        if settings.kl_in == "loss":
            found.append(KLInLoss(settings.kl_loss))
        if settings.ptx_coef:
            texts = ptx_texts(settings, self.run.task, skip_bad=self.run.config.task.skip_bad)
            found.append(PretrainingMix(texts, settings.ptx_coef, batch_size=settings.ptx_batch_size, seed=self.seed))
        if settings.ema_reference:
            found.append(MovingReference(settings.ema_reference))
        return found

    def score_terms(self, settings: PolicyGradientSettings) -> tuple[ScoreTerm, ...]:
        """What is done to r_φ's scores, in order. Imports the verifier."""
        terms: list[ScoreTerm] = []
        if settings.normalize_score:
            terms.append(NormalizeScore())
        if settings.clip_score is not None:
            terms.append(ClipScore(*settings.clip_score))
        if settings.verifier is not None:
            verifier = FunctionReward(import_reward_function(settings.verifier), seconds=VERIFIER_SECONDS)
            terms.append(AddVerifier(verifier, settings.verifier_coef))
        if settings.length_penalty:
            terms.append(LengthPenalty(settings.length_penalty, after=settings.length_penalty_after))
        if settings.repetition_penalty:
            terms.append(RepetitionPenalty(settings.repetition_penalty, ngram=settings.repetition_ngram))
        return tuple(terms)

    def check_verifier(self, name: str) -> None:
        """Raise a ValueError where the verifier cannot be asked."""
        check_verifier(name, self.run.task)

    def check_adapter(self, rank: int) -> None:
        """The package that a LoRA adapter needs is installed.

        Raises:
            ImportError: it is not.
        """
        check_peft(f"lora_r={rank}")


def learner_settings(run: Run, stage: StageName) -> LearnerSettings:
    """The settings of the agent that a stage trains.

    Raises:
        ValueError: the run's agent does not learn, or not without KL penalty.
    """
    agent = run.config.agent
    settings = agent.without_kl() if stage == "without_kl" else agent.learner()
    if settings is None:
        raise ValueError(f"expected an agent to train in the stage {stage}, got {agent.name}")
    return settings


def make_env(run: Run, stage: StageName, round: int, seed: int, reward: Shared) -> TokenVectorEnv:
    """The token MDP of a seed: this round's r_φ, its π_ref, the task's prompts. Several ranks share its slots."""
    arguments = learner_settings(run, stage).env_arguments(Parts(run, round, seed))
    reference = run.load_policy(run.reference(round, seed)).requires_grad_(False)
    return TokenVectorEnv(
        prompts=list(run.task.prompts),
        tokenizer=run.task.tokenizer,
        reference=Shared(reference),
        reward=reward,
        max_new_tokens=run.task.max_new_tokens,
        max_prompt_length=run.task.max_prompt_length,
        turns=turns_of(run.task),
        reward_timing="deferred",
        **arguments | {"num_envs": -(-arguments["num_envs"] // ranks().size)},
    )


def make_agent(run: Run, stage: StageName, round: int, seed: int, env: TokenVectorEnv) -> TokenAlgorithm:
    """A fresh agent, its policy that of the round before."""
    settings = learner_settings(run, stage)
    start = load_causal_lm(run.policy(round - 1, seed), dtype=torch.float32)
    policy: dict[str, Any] = {"model": Shared(start), **settings.policy_arguments()}
    if settings.lora_r:
        policy["lora"] = LoRA(r=settings.lora_r, alpha=2 * settings.lora_r)
    rate = settings.learning_rate
    make: Any = agent_class(settings)
    return make(
        "LMPolicy",
        env,
        policy_kwargs=policy,
        learning_rate=LinearSchedule(rate, 0.0, 1.0) if settings.schedule == "linear" else rate,
        seed=seed,
        device=run.device,
        **settings.arguments(Parts(run, round, seed)),
    )


def check_agent(run: Run) -> None:
    """What the agent's settings name is there, its episodes can be shared among the ranks, and the alarms that are to
    end its training can fire.

    Raises:
        ValueError: something is missing.
    """
    agent = agent_class(run.config.agent)
    settings = run.config.agent
    for alarm in run.config.monitor.stop_on:
        if not agent.plays_rollouts and (agent.learns_from == "nothing" or alarm != "held_out"):
            which = "no alarm" if agent.learns_from == "nothing" else "held_out alone"
            raise ValueError(f"expected {which} to stop on with the agent {settings.name} (no rollouts), got {alarm}")
        if alarm == "critic" and not agent.uses_critic:
            raise ValueError(f"expected an agent with a critic to stop on it, got the agent {settings.name}")
    settings.check(Parts(run, 1, run.config.seed))
    learner = settings.learner()
    if learner is not None and issubclass(agent, TokenAlgorithm):
        group = learner.samples_per_prompt if isinstance(learner, PolicyGradientSettings) else 1
        together = ranks().size * max(agent.episodes_together, group)
        if learner.n_episodes % together:
            raise ValueError(
                f"expected n_episodes to be a multiple of {together}, got {learner.n_episodes}: each of {ranks().size} "
                "ranks plays as many of them, in whole groups"
            )


def check_verifier(name: str, task: Task) -> None:
    """The verifier is there, and gives finite scores to empty responses, which a policy may write.

    Raises:
        ValueError: it is not, or does not.
    """
    verifier = import_reward_function(name)
    prompts = list(task.prompts[:2])
    try:
        asked = FunctionReward(verifier, seconds=VERIFIER_SECONDS)
        function_scores(asked, prompts, [""] * len(prompts), source=f"the verifier {name!r}")
    except ScoreError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise ValueError(f"the verifier {name!r} failed on empty responses: {error!r}") from error


def ptx_texts(
    settings: PolicyGradientSettings, task: Task, *, skip_bad: bool = False
) -> Sequence[str] | list[list[int]]:
    """What ptx learns from: the file of the settings, else the task's texts, else its demonstrations (as token ids).

    Args:
        settings: the agent's.
        task: the run's.
        skip_bad: whether rows of the file that cannot be used are left out.

    Raises:
        ValueError: there are none.
    """
    if settings.ptx_texts is not None:
        return read_texts(settings.ptx_texts, skip_bad=skip_bad)
    if task.pretraining_texts:
        return task.pretraining_texts
    if task.demonstrations:
        return [row.ids for row in demonstration_rows(task.tokenizer, task.demonstrations)]
    raise ValueError(
        f"expected texts for ptx_coef={settings.ptx_coef}, but the task {task.name!r} has neither texts for "
        "pretraining nor demonstrations: give --agent.ptx-texts FILE"
    )
