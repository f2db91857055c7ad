"""Active selection: which pairs are worth an annotator's time, as an ensemble of reward models sees them.

Δ is the members' score differences r_m(x, y1) − r_m(x, y2), of shape (members, pairs), in Bradley–Terry
units: P_m(y1 ≻ y2) = σ(Δ_m).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, expit

from rlhf_gym.settings.stages import Acquisition


def acquisition_scores(deltas: ArrayLike, acquisition: Acquisition, *, mistake_rate: float = 0.0) -> np.ndarray:
    """How much a label of each pair is worth, (members, pairs) → (pairs,), never negative.

    - "disagreement": Var_m Δ_m, how far apart the members are (Christiano et al. 2017, arXiv 1706.03741).
    - "information": what one label tells about which member is right, see `mutual_information`.
    - "uncertainty": 1 − |2p̄ − 1|, how near P(y1 ≻ y2) is to ½. Equally good responses stay at ½ however much the
      ensemble learns.

    Raises:
        ValueError: no ensemble, or another acquisition.
    """
    table = np.asarray(deltas, dtype=np.float64)  # (members, pairs)
    if table.ndim != 2 or (len(table) < 2 and acquisition != "uncertainty"):
        raise ValueError(f"expected differences of shape (members, pairs), at least 2 members, got {table.shape}")
    if acquisition == "disagreement":
        return table.var(axis=0)
    if acquisition == "information":
        return mutual_information(table, mistake_rate)
    if acquisition == "uncertainty":
        return 1 - np.abs(2 * expit(table).mean(axis=0) - 1)
    raise ValueError(f"expected acquisition to be one of {get_args(Acquisition)}, got {acquisition!r}")


def mutual_information(deltas: ArrayLike, mistake_rate: float = 0.0) -> np.ndarray:
    """I(label; member) = H(p̄) − mean_m H(p_m) in nats, (members, pairs) → (pairs,), p_m = ε + (1 − 2ε)·σ(Δ_m).

    This is BALD (Houlsby et al. 2011, arXiv 1112.5745) with a share ε of the labels reversed. Doubt that all members
    share counts for nothing.
    """
    p = mistake_rate + (1 - 2 * mistake_rate) * expit(np.asarray(deltas, dtype=np.float64))  # (members, pairs)
    mean = p.mean(axis=0)  # (pairs,)
    each = entr(p) + entr(1 - p)  # (members, pairs)
    return np.maximum(entr(mean) + entr(1 - mean) - each.mean(axis=0), 0)


def choose_batch(
    scores: ArrayLike, prompts: Sequence[Hashable], count: int, *, rng: np.random.Generator, sharpness: float = 1.0
) -> list[int]:
    """Indices of up to `count` pairs that are worth labelling and differ, best first.

    The `count` best of a pool are much alike, because none of their answers is known yet. So pairs are drawn without
    replacement with probability ∝ score^sharpness ("power acquisition", Kirsch et al. 2023, arXiv 2106.12059), and a
    prompt gets at most twice its even share of `count`. The draw sorts sharpness·log score + Gumbel noise.

    Args:
        scores: acquisition scores (pairs,), not negative; a pair of score 0 comes last.
        prompts: what each pair belongs to, length (pairs,).
        count: the most pairs that are chosen.
        rng: the random numbers.
        sharpness: 0 draws uniformly, ∞ takes the best.

    Raises:
        ValueError: scores that are negative, not finite, or of another number.
    """
    values = np.asarray(scores, dtype=np.float64)  # (pairs,)
    if values.shape != (len(prompts),):
        raise ValueError(f"expected a score for each of {len(prompts)} pairs, got shape {values.shape}")
    if len(values) and not (np.isfinite(values).all() and values.min() >= 0):
        raise ValueError(f"expected finite scores >= 0, got {values.min()} to {values.max()}")
    with np.errstate(divide="ignore"):
        logs = np.log(values)  # (pairs,)
    noise = rng.gumbel(size=len(values))  # (pairs,)
    keys = logs if np.isinf(sharpness) else sharpness * np.maximum(logs, -1e6) + noise  # (pairs,)
    limit = -(-2 * count // max(1, len(set(prompts))))
    chosen: list[int] = []
    used: Counter[Hashable] = Counter()
    for index in np.lexsort((noise, keys))[::-1].tolist():
        if len(chosen) == count:
            break
        if used[prompts[index]] < limit:
            used[prompts[index]] += 1
            chosen.append(index)
    return chosen
