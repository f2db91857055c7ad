"""Preferences as opinions, to see how far those who gave them agree."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_gym.preferences.agreement import Opinion
from rlhf_gym.preferences.records import Preference


def preference_opinions(preferences: Iterable[Preference]) -> list[Opinion]:
    """For `agreement`: who preferred which of two responses. The first of them is so by their texts, as good as any."""
    found = []
    for p in preferences:
        unit = (p.prompt, *sorted((p.chosen, p.rejected)))
        found.append(Opinion(unit, p.annotator, "first" if p.chosen == unit[1] else "second"))
    return found
