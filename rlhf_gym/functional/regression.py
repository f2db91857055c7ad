"""Linear models: of preferences by the Bradley–Terry loss, of scores by least squares, and how much either explains.

With a handful of features they are what a reward model is held against: how far does one get without reading?
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]


def fit_preference_weights(
    differences: ArrayLike, *, l2: float, weight: ArrayLike | None = None, start: ArrayLike | None = None
) -> Array:
    """The weights w (F,) of a reward r(y) = w·x(y), fitted to preferences: logistic regression without intercept.

        w = argmin −(1/Σω)·Σ_p ω_p·log σ(w·d_p) + ½·l2·‖w‖²,   d_p = x(y_chosen) − x(y_rejected)

    The Bradley–Terry loss a reward model is trained by (Ouyang et al. 2022, arXiv 2203.02155, equation 1), and a
    penalty without which separable preferences have no finite answer. Convex; found by L-BFGS in double precision,
    so that the same preferences give the same weights.

    Args:
        differences: d, (P, F).
        l2: strength of the penalty, > 0.
        weight: ω, (P,); all 1 by default.
        start: weights to begin from, (F,); zeros by default.

    Raises:
        ValueError: no pairs, weights of another shape, or a penalty that is not positive.
    """
    d = torch.from_numpy(np.array(differences, dtype=np.float64))  # (P, F)
    if d.ndim != 2 or not len(d):
        raise ValueError(f"expected differences of shape (P, F), P >= 1, got {tuple(d.shape)}")
    if not l2 > 0:
        raise ValueError(f"expected l2 > 0, got {l2}")
    omega = torch.ones(len(d), dtype=torch.float64) if weight is None else torch.tensor(np.asarray(weight, np.float64))
    if omega.shape != d.shape[:1]:
        raise ValueError(f"expected a weight for each of {len(d)} pairs, got shape {tuple(omega.shape)}")
    omega = omega / omega.sum()  # (P,)
    w = torch.zeros(d.shape[1], dtype=torch.float64) if start is None else torch.tensor(np.asarray(start, np.float64))
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.LBFGS(
        [w], max_iter=200, tolerance_grad=1e-8, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        delta = d @ w  # (P,)
        w.grad = l2 * w - d.T @ (omega * torch.sigmoid(-delta))  # (F,)
        return (omega * F.softplus(-delta)).sum() + 0.5 * l2 * w.square().sum()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return w.numpy().copy()


class RidgeFit(NamedTuple):
    """y ≈ intercept + x·weights."""

    weights: Array
    """(F,)."""
    intercept: float
    """What is said where all features are 0."""
    error: Array
    """Standard error of each weight, its shrinkage left out, (F,)."""


def fit_ridge(features: ArrayLike, target: ArrayLike, *, l2: float) -> RidgeFit:
    """argmin Σ_i (y_i − c − w·x_i)² + l2·‖w‖², the intercept c without penalty (Hoerl and Kennard 1970).

    With X and y centred: w = (XᵀX + l2·I)⁻¹Xᵀy; cov(w) = s²·(XᵀX + l2·I)⁻¹XᵀX(XᵀX + l2·I)⁻¹ with s² the residual
    variance over n − tr H degrees of freedom, H the matrix that makes ŷ of y.

    Args:
        features: x, (n, F).
        target: y, (n,).
        l2: strength of the penalty, > 0.

    Raises:
        ValueError: shapes that do not go together, or a penalty that is not positive.
    """
    x, y = _checked(features, target, l2)
    centre = x.mean(axis=0)  # (F,)
    x = x - centre
    gram = x.T @ x  # (F, F)
    inverse = np.linalg.inv(gram + l2 * np.eye(len(gram)))  # (F, F)
    weights = inverse @ (x.T @ (y - y.mean()))  # (F,)
    smoother = inverse @ gram  # (F, F)
    residual = y - y.mean() - x @ weights  # (n,)
    variance = float((residual**2).sum()) / max(1.0, len(y) - 1 - float(np.trace(smoother)))
    error = np.sqrt(np.clip(variance * np.diag(smoother @ inverse), 0, None))  # (F,)
    return RidgeFit(weights, float(y.mean() - centre @ weights), error)


class Explained(NamedTuple):
    """What `cross_fitted_r2` returns."""

    r2: float
    """1 − Σ(y − ŷ)²/Σ(y − ȳ)²; below 0 where the mean alone says more, NaN where there is nothing to explain."""
    l2: float
    """The penalty it was reached with."""


def cross_fitted_r2(
    features: ArrayLike,
    target: ArrayLike,
    groups: Sequence[Hashable],
    *,
    l2s: Sequence[float] = (0.1, 1.0, 10.0, 100.0),
    folds: int = 5,
) -> Explained:
    """The share of the variance of y that a linear function of x explains where it was not fitted.

    Each fold's ŷ comes from a ridge regression on the other folds; a group stays in one fold. The penalty is the one
    that explains most.

    Args:
        features: x, (n, F).
        target: y, (n,).
        groups: what each belongs to, its prompt for instance, n of them; at least two different ones.
        l2s: penalties to choose from.
        folds: into how many parts the groups are dealt, in order of appearance.

    Raises:
        ValueError: shapes that do not go together, or one group alone.
    """
    x, y = _checked(features, target, min(l2s))
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(groups) != len(y) or len(order) < 2:
        raise ValueError(f"expected a group for each of {len(y)}, at least 2 different ones, got {len(groups)}")
    fold = np.array([order[group] % folds for group in groups])  # (n,)
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        return Explained(float("nan"), max(l2s))
    errors = np.zeros(len(l2s))
    for k in np.unique(fold):
        train, test = fold != k, fold == k
        centre, middle = x[train].mean(axis=0), y[train].mean()  # (F,)
        values, vectors = np.linalg.eigh((x[train] - centre).T @ (x[train] - centre))  # (F,), (F, F)
        along = vectors.T @ ((x[train] - centre).T @ (y[train] - middle))  # (F,)
        seen = (x[test] - centre) @ vectors  # (tests, F)
        for i, l2 in enumerate(l2s):
            guess = middle + seen @ (along / (np.clip(values, 0, None) + l2))  # (tests,)
            errors[i] += float(((y[test] - guess) ** 2).sum())
    best = int(errors.argmin())
    return Explained(1 - float(errors[best]) / total, float(l2s[best]))


def shared_variance(a: ArrayLike, b: ArrayLike, *, centred: bool = True) -> float:
    """The squared correlation of a and b, (n,) both: the share of one's variance that the other explains. NaN for none.

    Differences within pairs have no mean, since which of a pair comes first is a convention: `centred=False` then gives
    (Σab)²/(Σa²·Σb²).
    """
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)  # (n,)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"expected values of one shape (n,), n >= 1, got {one.shape} and {other.shape}")
    if centred:
        one, other = one - one.mean(), other - other.mean()
    scale = float((one**2).sum() * (other**2).sum())
    return float((one * other).sum()) ** 2 / scale if scale > 0 else float("nan")


def _checked(features: ArrayLike, target: ArrayLike, l2: float) -> tuple[Array, Array]:
    x, y = np.asarray(features, dtype=np.float64), np.asarray(target, dtype=np.float64)  # (n, F), (n,)
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or not len(y):
        raise ValueError(f"expected features (n, F) and a target (n,), n >= 1, got {x.shape} and {y.shape}")
    if not l2 > 0:
        raise ValueError(f"expected l2 > 0, got {l2}")
    return x, y
