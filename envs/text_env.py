"""Text environments as the other side: one that takes a text and gives a text, a turn a step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import numpy as np

from rlhf_gym.envs.respondents import Reply, Respondent, Turn
from rlhf_gym.lm.chat import Conversation
from rlhf_gym.ranges import check_arguments


class TextEnv(Protocol):
    """An environment of texts, as Gymnasium's with `Text` spaces and GEM's are."""

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """The first observation, and information."""
        ...

    def step(self, action: str, /) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        """The next observation, the reward, terminated, truncated, and information."""
        ...


class TextEnvRespondent(Respondent):
    """A text environment as the other side of each conversation.

    Its `reset` gives the prompt, behind the environment's own (`prompts`, such as a system message; None for nothing).
    Each turn of the policy is a step: the answer's text is its action, its reward falls on the turn's last action, and
    its observation is the reply. The observation that comes with an end is not read, as nobody would act on it.

    Every episode in progress has an environment of its own, which is used again once the episode has ended. Each
    `reset` gets a seed that depends on the token environment's seed and the episode; the episodes of one group
    (`samples_per_prompt`) get the same.

    Args:
        make: makes a text environment.
        seeded: False where `reset` takes no seed.
        role: who speaks its observations, such as "user" or "tool". The first is a user's.
    """

    opens = True

    @check_arguments
    def __init__(self, make: Callable[[], TextEnv], *, seeded: bool = True, role: str = "user") -> None:
        if not callable(make):
            raise TypeError(f"expected a callable that makes a text environment, got {type(make).__name__}")
        self.make = make
        self.seeded = seeded
        self.role = role
        self._playing: dict[int, TextEnv] = {}  # by the number of the episode
        self._idle: list[TextEnv] = []

    def fresh(self) -> TextEnvRespondent:
        return TextEnvRespondent(self.make, seeded=self.seeded, role=self.role)

    def open(self, episode: int, messages: Conversation, rng: np.random.Generator) -> str:
        env = self._idle.pop() if self._idle else self.make()
        self._playing[episode] = env
        seed = int(rng.integers(2**31))
        observation, _ = env.reset(seed=seed) if self.seeded else env.reset()
        return self._text(observation, "reset")

    def reply(self, turns: Sequence[Turn]) -> list[Reply]:
        return [self._step(turn) for turn in turns]

    def leave(self, episodes: Collection[int]) -> None:
        for episode in episodes:
            if episode in self._playing:
                self._idle.append(self._playing.pop(episode))

    def _step(self, turn: Turn) -> Reply:
        observation, reward, terminated, truncated, _ = self._playing[turn.episode].step(turn.answer)
        if terminated or truncated:
            return Reply(reward=float(reward), over=True)
        return Reply(self._text(observation, "step"), reward=float(reward), role=self.role)

    def _text(self, observation: Any, method: str) -> str:
        if not isinstance(observation, str):
            raise TypeError(
                f"expected a text as the observation of the text environment's {method}(), got "
                f"{type(observation).__name__}"
            )
        return observation


class TextArenaGame:
    """A game of TextArena for one player as a text environment: `TextArenaGame(textarena.make("Wordle-v0"))`.

    TextArena seeds Python's global `random` at a reset and goes on drawing from it.

    Args:
        game: the game, in whatever of TextArena's wrappers that leave its observations texts or lists of messages.
    """

    def __init__(self, game: Any) -> None:
        self.game = game

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a game."""
        self.game.reset(num_players=1, seed=seed)
        return self._observation(), {}

    def step(self, action: str, /) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Make a move; the reward of the game comes with its end."""
        done, info = self.game.step(action=action)
        if not done:
            return self._observation(), 0.0, False, False, info
        rewards, info = self.game.close()
        return "", float(rewards[0]), True, False, info

    def _observation(self) -> str:
        """What the player has not read yet, its own moves left out."""
        _, seen = self.game.get_observation()
        return seen if isinstance(seen, str) else "\n".join(text for speaker, text, *_ in seen if speaker != 0)
