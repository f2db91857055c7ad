"""Rewards that are a few lines of code: good for first runs, for tests, and as terms beside a learned one.

Each builder returns a `RewardFunction`, `(prompts, responses) -> (B,)`, which can be pickled.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from rlhf_gym.rewards.reward import RewardFunction


def length_reward(target: int | None = None, *, scale: float = 1.0) -> RewardFunction:
    """scale · (number of words of the response), or with a target −scale · |number of words − target|."""
    return partial(_length, target=target, scale=scale)


def _length(prompts: list[str], responses: list[str], *, target: int | None, scale: float) -> np.ndarray:
    words = np.array([len(response.split()) for response in responses], dtype=np.float64)  # (B,)
    return scale * (words if target is None else -np.abs(words - target))


def keyword_reward(keywords: Sequence[str], *, each: float = 1.0, at_most: int | None = None) -> RewardFunction:
    """`each` for every occurrence of a keyword as a whole word, case ignored, counting `at_most` of them."""
    if isinstance(keywords, str) or not keywords:
        raise ValueError(f"expected a sequence of at least one keyword, got {keywords!r}")
    pattern = r"(?<!\w)(?:" + "|".join(re.escape(word) for word in keywords) + r")(?!\w)"
    return partial(_count, pattern=re.compile(pattern, re.IGNORECASE), each=each, at_most=at_most)


def _count(
    prompts: list[str], responses: list[str], *, pattern: re.Pattern[str], each: float, at_most: int | None
) -> np.ndarray:
    counts = np.array([len(pattern.findall(response)) for response in responses], dtype=np.float64)  # (B,)
    return each * (counts if at_most is None else np.minimum(counts, at_most))


def sum_rewards(*terms: RewardFunction | tuple[float, RewardFunction]) -> RewardFunction:
    """Σ wᵢ·rᵢ of terms given as `(wᵢ, rᵢ)`, or as `rᵢ` alone with weight 1.

    A learned term is its `score_texts` method: `sum_rewards(reward_model.score_texts, (-0.01, length_reward()))`.
    """
    if not terms:
        raise ValueError("expected at least one reward to sum, got none")
    weighted = tuple(term if isinstance(term, tuple) else (1.0, term) for term in terms)
    return partial(_sum, terms=weighted)


def import_reward_function(name: str) -> RewardFunction:
    """The reward function that "module:function" names; errors as of `import_callable`."""
    return import_callable(name, "(prompts, responses) -> scores")


def import_callable(name: str, signature: str) -> Callable[..., Any]:
    """The callable that "module:function" names, or "module:object.method"; modules in the shell's folder count.

    That folder is put last on `sys.path`, where it stays for what the module imports later: a file of the user's never
    takes the place of an installed module of its name.

    Raises:
        ValueError: there is no such module, it fails as it is imported, or nothing in it of that name can be called.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path or module_name.startswith("."):
        raise ValueError(f'expected "module:function", got {name!r}')
    folder = os.getcwd()
    if folder not in sys.path:  # an installed command begins without it
        sys.path.append(folder)
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"expected a module {module_name!r} to import {name!r} from, but: {error}") from error
    except Exception as error:  # whatever the user's own module raises, a slip in its syntax too
        raise ValueError(f"expected a module {module_name!r} that can be imported, but: {error!r}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ValueError(f"expected {path!r} in the module {module_name!r}, but: {error}") from error
    if not callable(found):
        raise ValueError(f"expected {name!r} to be callable as {signature}, got {found!r}")
    return found


def _sum(prompts: list[str], responses: list[str], *, terms: tuple[tuple[float, RewardFunction], ...]) -> np.ndarray:
    return np.sum([w * np.asarray(r(prompts, responses), dtype=np.float64) for w, r in terms], axis=0)  # (B,)
