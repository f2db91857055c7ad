"""The settings of each agent: one frozen record an agent, with what applies to it and nothing else.

A new agent needs its class, a record here, and an entry in `AGENTS`, which the command line reads. In Python a record
of your own does: `run(RunConfig(agent=MySettings()))`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from annotated_types import Gt

from rlhf_gym.files import absolute_path
from rlhf_gym.ranges import (
    Count,
    NonNegative,
    Positive,
    Several,
    Share,
    Whole,
    check_ranges,
)
from rlhf_gym.settings.defaults import row

KLControl = Literal["fixed", "adaptive", "constraint"]
KLPlace = Literal["reward", "loss"]
SurrogateKind = Literal["none", "clip", "sequence", "cispo"]


class AgentParts(Protocol):
    """Makes what an agent's constructor takes besides plain values; the pipeline implements it for a run and a seed."""

    def preferences(self) -> Any:
        """The comparisons that the round's reward model was trained on; None where there are none."""

    def kl_controller(self, settings: PolicyGradientSettings) -> Any:
        """The controller of β that these settings ask for."""

    def surrogate(self, settings: SurrogateSettings) -> Any:
        """What is done with the policy's ratio; None for nothing."""

    def gae_lambda(self, settings: PPOSettings) -> Any:
        """λ of the advantages."""

    def regularisers(self, settings: PolicyGradientSettings) -> Any:
        """What is added to the objective, in order."""

    def score_terms(self, settings: PolicyGradientSettings) -> Any:
        """What is done to the reward model's scores, in order."""

    def check_verifier(self, name: str) -> None:
        """Raise a ValueError where the verifier cannot be asked."""

    def check_adapter(self, rank: int) -> None:
        """Raise an ImportError where an adapter cannot be trained."""


@dataclass(frozen=True)
class AgentSettings:
    """What the pipeline asks the settings of any agent."""

    name: ClassVar[str]
    """The agent's name on the command line (`agent:NAME`) and in config.json."""
    agent: ClassVar[str]
    """The agent's class, as "module:name"."""

    def label(self, label: str) -> str:
        """What tables and reports call the agent, from the label that its class has."""
        return label

    def check_reference(self, reference: str) -> None:
        """Raise a ValueError where the agent cannot learn with this π_ref."""

    def check(self, parts: AgentParts) -> None:
        """Raise an error where something that the settings name is not there. Called before any work."""

    def learner(self) -> LearnerSettings | None:
        """These settings, where the agent learns; None where it does not."""
        return None

    def without_kl(self) -> LearnerSettings | None:
        """The same settings without anything that holds the policy to π_ref; None where the agent cannot do without."""
        return None

    @property
    def best_of(self) -> int | None:
        """Responses of which the agent takes the best; None where it answers each prompt once."""
        return None

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's files that the agent reads."""
        return ()

    def with_absolute_paths(self) -> Self:
        """The same settings, the paths in them absolute."""
        return self


@dataclass(frozen=True)
class LearnerSettings(AgentSettings):
    """The settings of every agent that learns."""

    passed_on: ClassVar[tuple[str, ...]] = (
        "n_episodes",
        "batch_size",
        "micro_batch_size",
        "n_epochs",
        "max_grad_norm",
    )
    """Settings of this class that the agent's constructor takes under the same names; each class names its own."""

    total_tokens: Count = 48_000
    """Response tokens generated in training (DPO: read), for each seed and round."""
    learning_rate: Positive = row("ppo", "scratch").learning_rate
    """Adam's learning rate, at the start."""
    schedule: Literal["constant", "linear"] = "linear"
    """Whether the learning rate stays or falls to 0."""
    n_episodes: Count = 128
    """How many responses a rollout has."""
    batch_size: Count = 32
    """Responses a minibatch; each minibatch is one optimizer step."""
    micro_batch_size: Count | None = None
    """Responses in one forward; fewer take less memory and give the same update."""
    n_epochs: Count = 1
    """Passes over a rollout."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    num_envs: Count = 64
    """Responses written at once."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a response that never ends."""
    freeze_layers: Whole = 0
    """Lower layers of the policy that stay as they are, and the embeddings: quicker and smaller updates."""
    lora_r: Whole = 0
    """Rank of a LoRA adapter that is trained in place of the policy's weights (it needs the extra `lora`); 0: none. The
    folder holds the policy whole, the adapter merged. Learning rates are ten times higher: docs/settings.md."""
    bf16: bool = False
    """Forward passes in bfloat16, weights in float32: for a GPU, or a CPU that has it."""
    checkpoint_every: Count = 10
    """Iterations between the checkpoints an interrupted run goes on from."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def learner(self) -> LearnerSettings:
        """These settings, as those of an agent that learns."""
        return self

    def check(self, parts: AgentParts) -> None:
        """Raise an error where something that the settings name is not there."""
        if self.lora_r:
            parts.check_adapter(self.lora_r)

    @property
    def kl_limit(self) -> tuple[float, int] | None:
        """The KL that ends training, and the rollouts in a row beyond it; None for no limit."""
        return None

    @property
    def gold_interval(self) -> int | None:
        """Iterations between two looks at gold; None where the agent writes no responses to look at."""
        return None

    def env_arguments(self, parts: AgentParts) -> dict[str, Any]:
        """Arguments of the environment that these settings choose."""
        return {"num_envs": self.num_envs, "missing_eos_penalty": self.missing_eos_penalty}

    def policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy that these settings choose."""
        return {"freeze_layers": self.freeze_layers, "bf16": self.bf16}

    def arguments(self, parts: AgentParts) -> dict[str, Any]:
        """Arguments of the agent's constructor that these settings choose, but for the learning rate."""
        names = [name for kind in type(self).__mro__ for name in vars(kind).get("passed_on", ())]
        return {name: getattr(self, name) for name in names}

    def loading_arguments(self, parts: AgentParts) -> dict[str, Any]:
        """Arguments that the agent's file does not hold, for `load`."""
        return {}


@dataclass(frozen=True)
class PolicyGradientSettings(LearnerSettings):
    """What every policy-gradient agent is asked."""

    passed_on: ClassVar[tuple[str, ...]] = ("mask_truncated", "target_kl")

    kl_coef: NonNegative = 0.1
    """β of the KL penalty (with a controller, the first one)."""
    kl_control: KLControl = "fixed"
    """Who sets β: "fixed", "adaptive" towards kl_target (Ziegler et al.), or "constraint" KL ≤ kl_target."""
    kl_target: Positive = 6.0
    """KL per response, in nats, that a controller steers to."""
    kl_horizon: Count = 10_000
    """Responses over which "adaptive" moves β by a fifth, at most; Ziegler et al.'s is long for a short run."""
    kl_in: KLPlace = "reward"
    """Where the KL penalty is: in the reward of each token, or a term of the loss."""
    kl_loss: str = "full"
    """The estimator of the KL in the loss: "full" over the vocabulary, "k2", "k3" (GRPO's), "k3_importance",
    "k3_straight_through" (docs/losses.md), or one added to `rlhf_gym.agents.regularisers.KL_ESTIMATORS`."""
    samples_per_prompt: Count = 1
    """Responses in a row to the same prompt."""
    ent_coef: NonNegative = 0.0
    """Weight of an entropy bonus; the KL penalty has one already."""
    mask_truncated: bool = False
    """Learn nothing from responses cut off at the horizon (DAPO)."""
    target_kl: Positive | None = None
    """A rollout's epochs stop once KL(π_old‖π) exceeds 1.5 times this."""
    stop_kl: Positive | None = None
    """Training ends once a rollout's KL to its first π_ref, per response in nats, is over this; what is kept is the
    last policy that was not. From the second round on a policy begins where the last round left it, near the limit."""
    stop_kl_patience: Count = 1
    """Rollouts in a row beyond stop_kl that end training; more let single noisy ones pass."""
    ptx_coef: NonNegative = 0.0
    """γ of a pretraining loss mixed into every minibatch's (InstructGPT's ptx), to keep the language; 0: none."""
    ptx_batch_size: Count = 32
    """How many texts a minibatch of ptx has."""
    ptx_texts: Path | None = None
    """The texts, JSONL of {"text"} or one a line; by default the task's for pretraining, else its demonstrations."""
    ema_reference: Share = 0.0
    """Rate of a π_ref that follows the policy, θ_ref ← (1 − rate)·θ_ref + rate·θ after each iteration; 0: it stays."""
    length_penalty: float = 0.0
    """Subtracted from the score for each token past length_penalty_after; negative rewards length."""
    length_penalty_after: Whole = 0
    """How many of a response's first tokens cost nothing."""
    repetition_penalty: float = 0.0
    """Subtracted from the score of a response that repeats one n-gram alone; of others, by their share of repeats."""
    repetition_ngram: Count = 3
    """The number of tokens in an n-gram that counts as a repeat."""
    clip_score: tuple[float, float] | None = None
    """Scores are clipped to the range LOW HIGH."""
    normalize_score: bool = False
    """Scores in units of their running standard deviation, around their running mean."""
    verifier: str | None = None
    """A function's score beside r_φ's, "module:function": what (prompts, responses) -> scores returns is added."""
    verifier_coef: float = 1.0
    """What it is multiplied by, r_φ having standard deviation 1 over the SFT policy's responses."""
    gold_every: Count = 1
    """Iterations between two looks at gold; nothing learns from it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_control != "fixed" and not (self.kl_coef > 0 and self.kl_target > 0):
            raise ValueError(
                f"expected kl_coef and kl_target > 0 with kl_control={self.kl_control!r}, "
                f"got {self.kl_coef} and {self.kl_target}"
            )
        if self.ptx_texts is not None and not self.ptx_coef:
            raise ValueError(f"expected ptx_coef > 0 to mix {self.ptx_texts} in, got {self.ptx_coef}")
        if self.stop_kl is None and self.stop_kl_patience != 1:
            raise ValueError(f"expected a stop_kl for stop_kl_patience={self.stop_kl_patience}, got None")
        if self.verifier is not None and not all(self.verifier.partition(":")):
            raise ValueError(f'expected verifier to be "module:function", got {self.verifier!r}')
        if self.n_episodes % self.samples_per_prompt:
            raise ValueError(
                f"expected n_episodes to be a multiple of samples_per_prompt={self.samples_per_prompt}, "
                f"got {self.n_episodes}"
            )

    def check(self, parts: AgentParts) -> None:
        """Raise an error where something that the settings name is not there."""
        super().check(parts)
        if self.verifier is not None:
            parts.check_verifier(self.verifier)
        parts.score_terms(self)
        parts.regularisers(self)

    def without_kl(self) -> Self:
        """The same settings without anything that holds the policy to π_ref."""
        return replace(self, kl_coef=0.0, kl_control="fixed", ema_reference=0.0, stop_kl=None, stop_kl_patience=1)

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's texts for ptx."""
        return () if self.ptx_texts is None else (self.ptx_texts,)

    def with_absolute_paths(self) -> Self:
        """The same settings, the texts' path absolute."""
        return self if self.ptx_texts is None else replace(self, ptx_texts=absolute_path(self.ptx_texts))

    @property
    def kl_limit(self) -> tuple[float, int] | None:
        """The KL to stop at, and its patience."""
        return None if self.stop_kl is None else (self.stop_kl, self.stop_kl_patience)

    @property
    def gold_interval(self) -> int | None:
        """Iterations between two measurements of gold."""
        return self.gold_every

    def env_arguments(self, parts: AgentParts) -> dict[str, Any]:
        """Arguments of the environment that these settings choose."""
        return super().env_arguments(parts) | {
            "kl_coef": self.kl_coef,
            "kl_in": self.kl_in,
            "samples_per_prompt": self.samples_per_prompt,
            "shaping": parts.score_terms(self),
        }

    def arguments(self, parts: AgentParts) -> dict[str, Any]:
        """Arguments of the agent's constructor that these settings choose, but for the learning rate."""
        return super().arguments(parts) | {
            "kl_controller": parts.kl_controller(self),
            "regularisers": parts.regularisers(self),
        }

    def loading_arguments(self, parts: AgentParts) -> dict[str, Any]:
        """What is added to the objective, whose texts the agent's file does not hold."""
        return {"regularisers": parts.regularisers(self)}


@dataclass(frozen=True)
class CriticSettings(PolicyGradientSettings):
    """What agents with a critic are asked besides."""

    passed_on: ClassVar[tuple[str, ...]] = ("vf_coef",)

    vf_coef: NonNegative = 0.1
    """Weight of the value loss."""
    critic: Literal["shared", "separate"] = "shared"
    """Where the value head sits: on the policy's trunk, or on a copy of it."""

    def policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy that these settings choose."""
        return super().policy_arguments() | {"critic": self.critic}


@dataclass(frozen=True)
class SurrogateSettings(PolicyGradientSettings):
    """What agents are asked that can clip the policy's ratio (docs/losses.md)."""

    surrogate: SurrogateKind = "none"
    """What is done with the ratio: nothing, "none", "clip" (PPO), "sequence" (GSPO) or "cispo" (docs/losses.md)."""
    clip_range: Positive | None = None
    """ε of the ratio, below 1 alone with clip_range_high. By default .2; of "sequence" 3e-4; of "cispo" no bound."""
    clip_range_high: Positive | None = None
    """ε above 1, if it is another; "cispo" needs it."""
    dual_clip: Annotated[float, Gt(1)] | None = None
    """c > 1 of "clip": no gradient beyond a ratio of c where the advantage is negative."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dual_clip is not None and self.surrogate != "clip":
            raise ValueError(f'expected surrogate="clip" with a dual_clip, got {self.surrogate!r}')
        if self.surrogate == "cispo" and self.clip_range_high is None:
            raise ValueError("expected a clip_range_high with surrogate='cispo', got None")
        if self.surrogate == "none" and (self.clip_range is not None or self.clip_range_high is not None):
            raise ValueError(
                f"expected a surrogate for clip_range={self.clip_range} and clip_range_high={self.clip_range_high}, "
                "got 'none'"
            )

    def arguments(self, parts: AgentParts) -> dict[str, Any]:
        """Arguments of the agent's constructor that these settings choose, but for the learning rate."""
        return super().arguments(parts) | {"surrogate": parts.surrogate(self)}


@dataclass(frozen=True)
class GroupSettings(SurrogateSettings):
    """What agents are asked that compare responses to one prompt."""

    passed_on: ClassVar[tuple[str, ...]] = ("max_refills",)

    samples_per_prompt: Several = 4
    """Responses to the same prompt, which are compared with each other."""
    max_refills: Whole = 0
    """Prompts whose responses all earn the same are left out, and others played in their place, at most so many times a
    rollout (DAPO's dynamic sampling); 0: never."""


@dataclass(frozen=True)
class PPOSettings(SurrogateSettings, CriticSettings):
    """PPO: clipped ratios, a critic, several epochs a rollout."""

    name: ClassVar[str] = "ppo"
    agent: ClassVar[str] = "rlhf_gym.agents:TokenPPO"
    passed_on: ClassVar[tuple[str, ...]] = ("critic_lambda", "critic_warmup", "clip_range_vf")

    n_epochs: Count = 4
    """Passes over a rollout."""
    surrogate: SurrogateKind = "clip"
    """What is done with the ratio: "clip" (PPO), "sequence" (GSPO), "cispo", or nothing, "none" (docs/losses.md)."""
    gae_lambda: Share = 0.95
    """λ of the advantages (γ is 1)."""
    gae_lambda_alpha: Positive | None = None
    """α of a λ by length in gae_lambda's place, 1 − 1/(α·T) (VAPO: .05)."""
    critic_lambda: Share | None = None
    """λ of the critic's targets, if it is another (VC-PPO: 1)."""
    critic_warmup: Whole = 0
    """First iterations that train the critic alone (VC-PPO)."""
    clip_range_vf: Positive | None = 0.2
    """ε of the value; None not to clip."""

    def arguments(self, parts: AgentParts) -> dict[str, Any]:
        """Arguments of the agent's constructor that these settings choose, but for the learning rate."""
        return super().arguments(parts) | {"gae_lambda": parts.gae_lambda(self)}


@dataclass(frozen=True)
class A2CSettings(CriticSettings):
    """Advantage actor-critic: a critic, one epoch a rollout, no clipping."""

    name: ClassVar[str] = "a2c"
    agent: ClassVar[str] = "rlhf_gym.agents:TokenA2C"


@dataclass(frozen=True)
class ReinforceSettings(SurrogateSettings):
    """REINFORCE with a baseline, without a critic. With reward_to_go, normalize_advantage and "clip", REINFORCE++."""

    name: ClassVar[str] = "reinforce"
    agent: ClassVar[str] = "rlhf_gym.agents:TokenReinforce"
    passed_on: ClassVar[tuple[str, ...]] = ("reward_to_go", "normalize_advantage")

    reward_to_go: bool = False
    """A token's advantage is what was earned from it on, not the whole response's return."""
    normalize_advantage: bool = False
    """Advantages are whitened over all tokens of a rollout."""


@dataclass(frozen=True)
class RLOOSettings(GroupSettings):
    """RLOO: each response is measured by the others to its prompt."""

    name: ClassVar[str] = "rloo"
    agent: ClassVar[str] = "rlhf_gym.agents:TokenRLOO"


@dataclass(frozen=True)
class GRPOSettings(GroupSettings):
    """GRPO: as RLOO, in units of the group's standard deviation, with clipped ratios."""

    name: ClassVar[str] = "grpo"
    agent: ClassVar[str] = "rlhf_gym.agents:TokenGRPO"
    passed_on: ClassVar[tuple[str, ...]] = ("scale_by_std", "aggregation")

    n_epochs: Count = 4
    """Passes over a rollout."""
    surrogate: SurrogateKind = "clip"
    """What is done with the ratio: "clip" (PPO), "sequence" (GSPO), "cispo", or nothing, "none" (docs/losses.md)."""
    scale_by_std: bool = True
    """Divide by the standard deviation of the prompt's returns; without it, "Dr. GRPO"."""
    aggregation: Literal["token", "sequence"] = "token"
    """Whether all tokens of a minibatch count alike, or all responses (GRPO's and GSPO's papers)."""


@dataclass(frozen=True)
class DPOSettings(LearnerSettings):
    """DPO: learns from the preferences alone, at a third of the other agents' learning rate."""

    name: ClassVar[str] = "dpo"
    agent: ClassVar[str] = "rlhf_gym.agents:DPO"
    passed_on: ClassVar[tuple[str, ...]] = ("beta",)

    learning_rate: Positive = row("dpo", "scratch").learning_rate
    """Adam's learning rate, at the start."""
    beta: Positive = 0.1
    """β of the KL-regularised objective that the preferences stand for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_episodes", "batch_size", "micro_batch_size"):
            if (vars(self)[name] or 0) % 2:
                raise ValueError(f"expected an even {name} (two responses a pair), got {vars(self)[name]}")

    def env_arguments(self, parts: AgentParts) -> dict[str, Any]:
        """Arguments of the environment that these settings choose."""
        return super().env_arguments(parts) | {"kl_coef": self.beta}

    def arguments(self, parts: AgentParts) -> dict[str, Any]:
        """Arguments of the agent's constructor that these settings choose, but for the learning rate."""
        return super().arguments(parts) | {"preferences": parts.preferences()}

    def loading_arguments(self, parts: AgentParts) -> dict[str, Any]:
        """The preferences that it learns from."""
        return {"preferences": parts.preferences()}


@dataclass(frozen=True)
class BestOfNSettings(AgentSettings):
    """Best of n: does not learn. It takes the best of n SFT responses by r_φ."""

    name: ClassVar[str] = "best_of_n"
    agent: ClassVar[str] = "rlhf_gym.agents:BestOfN"

    n: Count = 16
    """Responses of which the best is taken."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def label(self, label: str) -> str:
        """What tables and reports call the agent."""
        return f"best of {self.n}"

    @property
    def best_of(self) -> int:
        """The n of best-of-n."""
        return self.n

    def check_reference(self, reference: str) -> None:
        """Raise a ValueError where π_ref is not the SFT policy."""
        if reference != "sft":
            raise ValueError(f"expected reference=sft with the best of n, got {reference}: it draws from SFT")


AGENTS: tuple[type[AgentSettings], ...] = (
    PPOSettings,
    A2CSettings,
    ReinforceSettings,
    RLOOSettings,
    GRPOSettings,
    DPOSettings,
    BestOfNSettings,
)
"""The agents that the command line offers."""


def settings_class(name: str) -> type[AgentSettings]:
    """The settings of the agent of this name, among those that have been defined.

    Raises:
        ValueError: no agent has this name.
    """
    found: dict[str, type[AgentSettings]] = {}
    waiting: list[type[AgentSettings]] = [AgentSettings]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if "name" in vars(kind):
                found[kind.name] = kind
    if name not in found:
        raise ValueError(
            f"expected an agent among {', '.join(found)}, got {name!r}: import the module that defines its settings"
        )
    return found[name]
