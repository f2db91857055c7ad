"""`BestOfN`: an agent without training, as the baseline of those that learn."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch

from rlhf_gym.agents.arguments import LearnsFrom, make_env, unwrap_env
from rlhf_gym.envs import Episode, EpisodeRewards, SB3VecEnv, TokenVectorEnv
from rlhf_gym.envs.episode import prompts_of
from rlhf_gym.envs.prompts import Prompts
from rlhf_gym.functional.best_of_n import best_of_n_kl
from rlhf_gym.lm.chat import Prompt
from rlhf_gym.lm.sampling import sample
from rlhf_gym.lm.tokens import decode
from rlhf_gym.ranges import Count, Seed, check_arguments


class BestResponses(NamedTuple):
    """The best of n responses to each of B prompts."""

    prompts: list[Prompt]
    """The prompts: texts, or conversations."""
    responses: list[str]
    """The best response to each, as text."""
    scores: np.ndarray
    """The score of each best response, (B,)."""
    all_scores: np.ndarray
    """The scores of all n, in the order they were drawn, (B, n): column 0 is what π_ref gets without choosing."""
    episodes: list[Episode]
    """The best responses as tokens."""
    tokens: int
    """Tokens generated in all B·n responses."""


class BestOfNFigures(NamedTuple):
    """Mean scores with and without choosing, on some prompts."""

    score: float
    """Mean score of the best of n."""
    reference_score: float
    """Mean score of all n, which is that of π_ref."""
    kl: float
    """log n − (n − 1)/n, in nats: the KL from π_ref, exact where no two samples tie, else an upper bound."""
    n: int
    """Responses to each prompt."""
    tokens: int
    """Tokens that were generated for these figures."""


class BestOfN:
    """Of n responses that π_ref draws to a prompt, the one that the environment's reward scores highest (Stiennon et
    al. 2020, arXiv:2009.01325; Nakano et al. 2021, arXiv:2112.09332).

    It trains nothing; each response costs the generation of n. Its KL from π_ref is at most log n − (n − 1)/n, whatever
    the reward. It is the baseline for trained agents at the same KL.

    The score is the environment's, the missing-EOS penalty included; β is not used.

    Args:
        policy: ignored; an argument so that `BestOfN("LMPolicy", env)` takes the place of any other agent.
        env: a `TokenVectorEnv` with a reference, or the id of one (made with `n_envs` slots).
        n: responses to each prompt.
        n_envs: slots, where `env` is an id.
        seed: seed of the draws, which continue from call to call.
    """

    label: ClassVar[str] = "best of n"
    learns_from: ClassVar[LearnsFrom] = "nothing"
    plays_rollouts: ClassVar[bool] = False
    uses_critic: ClassVar[bool] = False
    compares_groups: ClassVar[bool] = False
    default_group: ClassVar[int] = 16
    """The n of a constructor that is given none."""

    @check_arguments
    def __init__(
        self,
        policy: Any = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        n: Count = 16,
        *,
        n_envs: Count = 64,
        seed: Seed | None = None,
    ) -> None:
        self.engine = make_env(env, n_envs=n_envs) if isinstance(env, str) else unwrap_env(env)
        check_reference(type(self).__name__, self.engine)
        self.n = n
        self.seed = seed
        reference = self.engine.token_reward.reference
        assert reference is not None
        self._generator = torch.Generator(reference.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def learn(self, total_timesteps: int = 0, **_: Any) -> Self:
        """Do nothing. The method is there so that `BestOfN` takes the place of any other agent."""
        return self

    def get_env(self) -> SB3VecEnv:
        """The environment, as the other agents give it."""
        return SB3VecEnv(self.engine)

    def predict(self, *_: Any, **__: Any) -> Any:
        """Raise a TypeError: the best of n are whole responses, and no step is chosen by itself."""
        raise TypeError(
            f"expected {type(self).__name__} to be asked for whole responses, got a call of predict() for a single "
            "token: use evaluate(n_prompts) for its mean score, or generate(prompts)"
        )

    def generate(self, prompts: Prompts) -> BestResponses:
        """The best of n responses to each prompt (texts, conversations, or token ids)."""
        repeated: list[Any] = [prompt for prompt in prompts for _ in range(self.n)]
        if not repeated:
            raise ValueError("expected at least one prompt, got none")
        drawn = draw_from_reference(self.engine, repeated, self._generator)
        scores = drawn.earned.totals.reshape(-1, self.n)  # (B, n)
        chosen = scores.argmax(axis=1)  # (B,)
        episodes = [drawn.episodes[i * self.n + int(j)] for i, j in enumerate(chosen)]
        tokenizer = self.engine.tokenizer
        return BestResponses(
            prompts_of(episodes, tokenizer),
            decode(tokenizer, [e.answer_ids.tolist() for e in episodes]),
            scores[np.arange(len(scores)), chosen],
            scores,
            episodes,
            sum(episode.response_length for episode in drawn.episodes),
        )

    def evaluate(self, n_prompts: int = 64) -> BestOfNFigures:
        """Mean scores over the environment's next prompts."""
        if n_prompts < 1:
            raise ValueError(f"expected n_prompts >= 1, got {n_prompts}")
        best = self.generate(self.engine.draw_prompts(n_prompts))
        return BestOfNFigures(
            float(best.scores.mean()), float(best.all_scores.mean()), float(best_of_n_kl(self.n)), self.n, best.tokens
        )


class ReferenceEpisodes(NamedTuple):
    """Episodes that π_ref wrote."""

    episodes: list[Episode]
    """One episode to each prompt, in the prompts' order."""
    earned: EpisodeRewards
    """Their scores and log π_ref of their actions; the rewards are those of an agent read as deterministic."""


@torch.no_grad()
def draw_from_reference(
    env: TokenVectorEnv, prompts: Prompts, generator: torch.Generator | None = None
) -> ReferenceEpisodes:
    """One response of π_ref to each prompt; repeat a prompt to have several. The environment ends up parked.

    Args:
        env: with a reference.
        prompts: texts, conversations, or token ids.
        generator: source of randomness, on π_ref's device; torch's own by default.
    """
    attached = env.attached
    env.attach(None)
    env.reset(options={"prompts": prompts})
    episodes: list[Episode] = []
    while not env.parked.all():
        actions, _ = sample(env.reference_logits(), generator=generator)  # (N,)
        env.step(actions)
        episodes += env.last_step.episodes
    env.attach(attached)
    episodes.sort(key=lambda episode: episode.number)
    return ReferenceEpisodes(episodes, env.score_episodes(episodes))


def check_reference(agent: str, env: TokenVectorEnv) -> None:
    """Check that the environment has a π_ref."""
    if env.token_reward.reference is None:
        raise ValueError(f"expected an environment with a reference, got one without: {agent} begins from π_ref")
