"""Active selection: which pairs are worth an annotator's time, by what an ensemble of reward models makes of them.

Δ is the members' score differences r_m(x, y1) − r_m(x, y2), of shape (members, pairs), in Bradley–Terry
units: P_m(y1 ≻ y2) = σ(Δ_m).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from rlhf_gym.preferences.choice_models import bradley_terry

Acquisition = Literal["disagreement", "information", "uncertainty"]


def acquisition_scores(deltas: ArrayLike, acquisition: Acquisition, *, mistake_rate: float = 0.0) -> np.ndarray:
    """How much a label of each pair is worth, (members, pairs) → (pairs,), never negative.

    - "disagreement": Var_m Δ_m, how far apart the members are (Christiano et al. 2017, arXiv 1706.03741).
    - "information": what one label tells about which member is right, see `mutual_information`.
    - "uncertainty": 1 − |2p̄ − 1|, how near P(y1 ≻ y2) is to ½. It cannot tell what the ensemble does not know yet from
      what nobody will ever know: two responses that are equally good stay at ½ for ever.

    Raises:
        ValueError: no ensemble, or another acquisition.
    """
    table = np.asarray(deltas, dtype=np.float64)
    if table.ndim != 2 or (len(table) < 2 and acquisition != "uncertainty"):
        raise ValueError(f"expected differences of shape (members, pairs), at least 2 members, got {table.shape}")
    if acquisition == "disagreement":
        return table.var(axis=0)
    if acquisition == "information":
        return mutual_information(table, mistake_rate)
    if acquisition == "uncertainty":
        return 1 - np.abs(2 * bradley_terry(table).mean(axis=0) - 1)
    raise ValueError(f"expected acquisition to be one of {get_args(Acquisition)}, got {acquisition!r}")


def mutual_information(deltas: ArrayLike, mistake_rate: float = 0.0) -> np.ndarray:
    """I(label; member) = H(p̄) − mean_m H(p_m) in nats, (members, pairs) → (pairs,), p_m = ε + (1 − 2ε)·σ(Δ_m).

    BALD (Houlsby et al. 2011, arXiv 1112.5745) with labels of which a share ε is turned round: the doubt that members
    share counts for nothing, only that about which they differ.
    """
    p = mistake_rate + (1 - 2 * mistake_rate) * bradley_terry(deltas)  # (members, pairs)
    return np.maximum(_entropy(p.mean(axis=0)) - _entropy(p).mean(axis=0), 0)


def choose_batch(
    scores: ArrayLike,
    pairs: Sequence[tuple[Hashable, Hashable]],
    groups: Sequence[Hashable],
    count: int,
    *,
    rng: np.random.Generator,
    sharpness: float = 1.0,
    per_group: int | None = None,
    per_item: int | None = None,
) -> list[int]:
    """Indices of up to `count` pairs, good ones and different ones, best first.

    The `count` best of a pool tell much the same: they are asked before any of their answers is known. So they are
    drawn, without replacement, with probability ∝ score^sharpness (Kirsch et al. 2023, arXiv 2106.12059, "power
    acquisition"), by sorting sharpness·log score + Gumbel noise; and no prompt gets more than its share.

    Args:
        scores: acquisition scores (pairs,), not negative; what scores 0 comes last.
        pairs: the two responses of each pair, by anything that identifies them.
        groups: what each pair belongs to: its prompt.
        count: at most so many are chosen.
        rng: the chance.
        sharpness: 0 draws at random, ∞ takes the best.
        per_group: most pairs of one group; None: twice its even share of `count`, at least 1.
        per_item: most pairs that a response is in; None: no limit.

    Raises:
        ValueError: scores that are negative, not finite, or of another number.
    """
    values = np.asarray(scores, dtype=np.float64)  # (pairs,)
    if values.shape != (len(pairs),) or len(groups) != len(pairs):
        raise ValueError(
            f"expected a score and a group for each of {len(pairs)} pairs, got {values.shape}, {len(groups)}"
        )
    if len(values) and not (np.isfinite(values).all() and values.min() >= 0):
        raise ValueError(f"expected finite scores >= 0, got {values.min()} to {values.max()}")
    limit = -(-2 * count // max(1, len(set(groups)))) if per_group is None else per_group
    with np.errstate(divide="ignore"):
        logs = np.log(values)  # (pairs,)
    noise = rng.gumbel(size=len(values))  # (pairs,)
    if np.isinf(sharpness):
        order = np.lexsort((noise, logs))[::-1]
    else:
        order = np.lexsort((noise, sharpness * np.maximum(logs, -1e6) + noise))[::-1]
    chosen: list[int] = []
    of_group: dict[Hashable, int] = {}
    of_item: dict[Hashable, int] = {}
    for index in order.tolist():
        if len(chosen) == count:
            break
        first, second = pairs[index]
        if of_group.get(groups[index], 0) >= limit:
            continue
        if per_item is not None and max(of_item.get(first, 0), of_item.get(second, 0)) >= per_item:
            continue
        chosen.append(index)
        of_group[groups[index]] = of_group.get(groups[index], 0) + 1
        of_item[first] = of_item.get(first, 0) + 1
        of_item[second] = of_item.get(second, 0) + 1
    return chosen


def _entropy(p: np.ndarray) -> np.ndarray:
    """−p·log p − (1 − p)·log(1 − p) in nats, elementwise; 0 at 0 and 1."""
    p = np.clip(p, 1e-15, 1 - 1e-15)
    return -p * np.log(p) - (1 - p) * np.log1p(-p)
