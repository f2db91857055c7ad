"""The settings of the agent that learns against r_φ, and of what is done to its score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from rlhf_gym.envs import AddVerifier, ClipScore, LengthPenalty, NormalizeScore, RepetitionPenalty, ScoreTerm
from rlhf_gym.rewards import import_reward_function

KLControl = Literal["fixed", "adaptive", "constraint"]
AgentName = Literal["ppo", "a2c", "reinforce", "rloo", "grpo", "dpo", "best_of_n"]


@dataclass(frozen=True)
class PPOConfig:
    """PPO on the token environment, or another agent in its place."""

    agent: Annotated[AgentName, arg(prefix_name=False)] = "ppo"
    """Who learns. "a2c", "reinforce", "rloo" and "grpo" do by RL as PPO does; "dpo" learns from the preferences alone,
    without reward model; "best_of_n" does not learn: it takes the best of n SFT responses by r_φ."""
    total_tokens: int = 48_000
    """Response tokens generated in training (dpo: read), for each seed and round."""
    kl_coef: float = 0.1
    """β of the KL penalty (with a controller, the first one)."""
    kl_control: KLControl = "fixed"
    """Who sets β: "fixed", "adaptive" towards kl_target (Ziegler et al.), or "constraint" KL ≤ kl_target."""
    kl_target: float = 6.0
    """KL per response, in nats, that a controller steers to."""
    kl_horizon: int = 10_000
    """Responses over which "adaptive" moves β by a fifth, at most; Ziegler et al.'s is long for a short run."""
    learning_rate: float = 1e-3
    """Adam's, at the start. dpo wants about a third of what the others do."""
    schedule: Literal["constant", "linear"] = "linear"
    """Whether the learning rate stays or falls to 0."""
    n_episodes: int = 128
    """Responses a rollout."""
    batch_size: int = 32
    """Responses a minibatch; each minibatch is one optimizer step."""
    micro_batch_size: int | None = None
    """Responses in one forward; fewer take less memory and give the same update."""
    n_epochs: int | None = None
    """Passes over a rollout; by default 4 where ratios are clipped (ppo, grpo), else 1."""
    num_envs: int = 64
    """Responses written at once."""
    samples_per_prompt: int | None = None
    """Responses in a row to the same prompt; by default 1, and 4 where they are compared (rloo, grpo). The n of
    best_of_n: by default 16."""
    gae_lambda: float = 0.95
    """λ of the advantages (γ is 1)."""
    clip_range: float = 0.2
    """ε of the policy's ratio."""
    clip_range_vf: float | None = 0.2
    """ε of the value; None not to clip."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    ent_coef: float = 0.0
    """Weight of an entropy bonus; the KL penalty has one already."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    target_kl: float | None = None
    """A rollout's epochs stop once KL(π_old‖π) exceeds 1.5 times this."""
    stop_kl: float | None = None
    """Training ends once a rollout's KL to its first π_ref, per response in nats, is over this; what is kept is the
    last policy that was not. From the second round on a policy begins where the last round left it, near the limit."""
    stop_kl_patience: int = 1
    """Rollouts in a row beyond stop_kl that end training; more let single noisy ones pass."""
    ptx_coef: float = 0.0
    """γ of a pretraining loss mixed into every minibatch's (InstructGPT's ptx), to keep the language; 0: none."""
    ptx_batch_size: int = 32
    """Texts to a minibatch."""
    ptx_texts: Path | None = None
    """The texts, JSONL of {"text"} or one a line; by default the task's for pretraining, else its demonstrations."""
    ema_reference: float = 0.0
    """Rate of a π_ref that follows the policy, θ_ref ← (1 − rate)·θ_ref + rate·θ after each iteration; 0: it stays."""
    critic: Literal["shared", "separate"] = "shared"
    """Where the value head sits: on the policy's trunk, or on a copy of it."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a response that never ends."""
    length_penalty: float = 0.0
    """Subtracted from the score for each token past length_penalty_after; negative rewards length."""
    length_penalty_after: int = 0
    """Tokens that cost nothing."""
    repetition_penalty: float = 0.0
    """Subtracted from the score of a response that says one thing for ever; of others, by their share of repeats."""
    repetition_ngram: int = 3
    """Tokens that make a repeat."""
    clip_score: tuple[float, float] | None = None
    """Scores outside LOW HIGH count as these."""
    normalize_score: bool = False
    """Scores in units of their running standard deviation, around their running mean."""
    verifier: str | None = None
    """A program's word beside r_φ's, "module:function": what (prompts, responses) -> scores says is added."""
    verifier_coef: float = 1.0
    """What it is multiplied by, r_φ having standard deviation 1 over the SFT policy's responses."""
    freeze_layers: int = 0
    """Lower layers of the policy that stay as they are, and the embeddings: quicker and smaller updates."""
    lora_r: int = 0
    """Rank of a LoRA adapter that is trained in place of the policy's weights (the rlhf-gym[lora] extra); 0: none. The
    folder holds the policy whole, the adapter merged. Learning rates are usually some ten times higher."""
    bf16: bool = False
    """Forward passes in bfloat16, weights in float32: for a GPU, or a CPU that has it."""
    gold_every: int = 1
    """Iterations between two looks at gold; nothing learns from it."""
    checkpoint_every: int = 10
    """Iterations between the checkpoints an interrupted run goes on from."""

    @property
    def epochs(self) -> int:
        """`n_epochs`, or the agent's own."""
        return self.n_epochs or (4 if self.agent in ("ppo", "grpo") else 1)

    @property
    def group(self) -> int:
        """`samples_per_prompt`, or the agent's own."""
        return self.samples_per_prompt or {"rloo": 4, "grpo": 4, "best_of_n": 16}.get(self.agent, 1)

    @property
    def shaping(self) -> tuple[ScoreTerm, ...]:
        """What is done to r_φ's scores, in order. Imports the verifier."""
        if self.verifier is None:
            return self._terms()
        return self._terms(AddVerifier(import_reward_function(self.verifier), self.verifier_coef))

    def _terms(self, *verifier: ScoreTerm) -> tuple[ScoreTerm, ...]:
        terms: list[ScoreTerm] = []
        if self.normalize_score:
            terms.append(NormalizeScore())
        if self.clip_score is not None:
            terms.append(ClipScore(*self.clip_score))
        terms += verifier
        if self.length_penalty:
            terms.append(LengthPenalty(self.length_penalty, after=self.length_penalty_after))
        if self.repetition_penalty:
            terms.append(RepetitionPenalty(self.repetition_penalty, ngram=self.repetition_ngram))
        return tuple(terms)

    @property
    def label(self) -> str:
        """What tables and reports call the agent."""
        names = {"reinforce": "REINFORCE", "best_of_n": f"best of {self.group}"}
        return names.get(self.agent, self.agent.upper())

    def __post_init__(self) -> None:
        counts = ("total_tokens", "n_episodes", "batch_size", "n_epochs", "num_envs", "samples_per_prompt")
        for name in (*counts, "micro_batch_size", "kl_horizon", "gold_every", "checkpoint_every"):
            at_least(self, name, 1)
        at_least(self, "freeze_layers", 0)
        at_least(self, "lora_r", 0)
        if self.lora_r and self.agent == "best_of_n":
            raise ValueError(f"expected lora_r=0 with agent=best_of_n, which does not learn, got {self.lora_r}")
        self._check_agent()
        self._check_remedies()
        if self.verifier is not None and not all(self.verifier.partition(":")):
            raise ValueError(f'expected verifier to be "module:function", got {self.verifier!r}')
        if not math.isfinite(self.verifier_coef):
            raise ValueError(f"expected a finite verifier_coef, got {self.verifier_coef}")
        terms = [*map(str, self._terms()), *([] if self.verifier is None else [f"verifier={self.verifier}"])]
        if self.agent in ("dpo", "best_of_n") and terms:
            raise ValueError(f"expected no terms on the scores with agent={self.agent}, got {', '.join(terms)}")
        if not self.kl_coef >= 0 or not self.learning_rate > 0:
            raise ValueError(f"expected kl_coef >= 0 and learning_rate > 0, got {self.kl_coef}, {self.learning_rate}")
        if self.kl_control not in get_args(KLControl):
            raise ValueError(f"expected kl_control to be one of {get_args(KLControl)}, got {self.kl_control!r}")
        if self.kl_control != "fixed" and not (self.kl_coef > 0 and self.kl_target > 0):
            raise ValueError(
                f"expected kl_coef and kl_target > 0 with kl_control={self.kl_control!r}, "
                f"got {self.kl_coef} and {self.kl_target}"
            )

    def _check_remedies(self) -> None:
        """What holds the policy back is in range, and the agent has a use for it."""
        at_least(self, "ptx_batch_size", 1)
        if not 0 <= self.ptx_coef < math.inf:
            raise ValueError(f"expected ptx_coef >= 0 and finite, got {self.ptx_coef}")
        if self.ptx_texts is not None and not self.ptx_coef:
            raise ValueError(f"expected ptx_coef > 0 to mix {self.ptx_texts} in, got {self.ptx_coef}")
        if not 0 <= self.ema_reference <= 1:
            raise ValueError(f"expected ema_reference in [0, 1], got {self.ema_reference}")
        if self.stop_kl is not None and not self.stop_kl > 0:
            raise ValueError(f"expected stop_kl > 0, got {self.stop_kl}")
        at_least(self, "stop_kl_patience", 1)
        if self.stop_kl is None and self.stop_kl_patience != 1:
            raise ValueError(f"expected a stop_kl for stop_kl_patience={self.stop_kl_patience}, got None")
        if self.agent in ("dpo", "best_of_n"):
            for name, off in (("ptx_coef", 0), ("ema_reference", 0), ("stop_kl", None)):
                if vars(self)[name] != off:
                    why = f"agent={self.agent}, which plays no rollouts"
                    raise ValueError(f"expected {name}={off} with {why}, got {vars(self)[name]}")

    def _check_agent(self) -> None:
        """The agent is one there is, and the rest suits it."""
        agent = self.agent
        if agent not in get_args(AgentName):
            raise ValueError(f"expected agent to be one of {', '.join(get_args(AgentName))}, got {agent!r}")
        if agent in ("rloo", "grpo") and self.group < 2:
            raise ValueError(f"expected samples_per_prompt >= 2 with agent={agent}, got {self.group}")
        if agent in ("rloo", "grpo") and self.n_episodes % self.group:
            raise ValueError(
                f"expected n_episodes to be a multiple of samples_per_prompt={self.group}, got {self.n_episodes}"
            )
        if agent != "dpo":
            return
        for name in ("n_episodes", "batch_size", "micro_batch_size"):
            if (vars(self)[name] or 0) % 2:
                raise ValueError(f"expected an even {name} with agent=dpo (two a pair), got {vars(self)[name]}")
        if not self.kl_coef > 0 or self.kl_control != "fixed":
            raise ValueError(
                f"expected a fixed kl_coef > 0 with agent=dpo (its β), got {self.kl_coef}, {self.kl_control}"
            )


def at_least(config: object, name: str, least: int) -> None:
    """A setting is at least so much, or None.

    Raises:
        ValueError: naming it.
    """
    value = vars(config)[name]
    if value is not None and value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
