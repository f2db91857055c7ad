"""Deferred rewards: the episodes that have ended and wait for their score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlhf_gym.envs.episode import Episode


class PendingEpisodes:
    """Episodes that have ended and were not scored yet; nobody goes on without having asked for their rewards."""

    def __init__(self) -> None:
        self._episodes: dict[int, Episode] = {}

    def in_order(self) -> list[Episode]:
        """In the order they were started."""
        return [self._episodes[number] for number in sorted(self._episodes)]

    def add(self, episodes: Iterable[Episode], *, endless: bool) -> None:
        """Keep what has just ended; where slots are refilled for ever (`endless`), one episode a slot at most."""
        unscored = {episode.slot for episode in self._episodes.values()}
        for episode in episodes:
            if endless and episode.slot in unscored:
                raise RuntimeError(
                    f"slot {episode.slot} has ended a second episode while its last one waits for its score: with "
                    "reward_timing='deferred' call score_episodes(env.pending_episodes, log_probs) in between, or "
                    "say how many episodes a rollout has by reset(options={'episodes': n})"
                )
            self._episodes[episode.number] = episode

    def remove(self, episodes: Sequence[Episode]) -> None:
        """They were scored."""
        for episode in episodes:
            self._episodes.pop(episode.number, None)

    def clear(self) -> None:
        """Give them up."""
        self._episodes.clear()

    def refuse(self) -> None:
        """Raise where any is left: a reset would lose it."""
        if self._episodes:
            raise RuntimeError(
                f"{len(self._episodes)} episodes have ended without being scored: with reward_timing='deferred' call "
                "score_episodes(env.pending_episodes, log_probs) first, or discard_episodes()"
            )
