"""Linear models: of preferences by the Bradley–Terry loss, of scores by least squares, and how much either explains.

With a handful of features they are what a reward model is compared with: how far does one get without reading?
scikit-learn is imported by the function that fits with it, since that takes more than a second.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def fit_preference_weights(differences: ArrayLike, *, l2: float, weight: ArrayLike | None = None) -> Array:
    """The weights w (F,) of a reward r(y) = w·x(y), fitted to preferences: logistic regression without intercept.

        w = argmin −(1/Σω)·Σ_p ω_p·log σ(w·d_p) + ½·l2·‖w‖²,   d_p = x(y_chosen) − x(y_rejected)

    The Bradley–Terry loss a reward model is trained by (Ouyang et al. 2022, arXiv 2203.02155, equation 1), and a
    penalty without which separable preferences have no finite answer.

    Args:
        differences: d, (P, F).
        l2: strength of the penalty, > 0.
        weight: ω, (P,); all 1 by default.

    Raises:
        ValueError: no pairs, weights of another shape, or a penalty that is not positive.
    """
    from sklearn.linear_model import LogisticRegression

    d = np.asarray(differences, dtype=np.float64)  # (P, F)
    if d.ndim != 2 or not len(d):
        raise ValueError(f"expected differences of shape (P, F), P >= 1, got {d.shape}")
    if not l2 > 0:
        raise ValueError(f"expected l2 > 0, got {l2}")
    omega = np.ones(len(d)) if weight is None else np.asarray(weight, dtype=np.float64)  # (P,)
    if omega.shape != d.shape[:1]:
        raise ValueError(f"expected a weight for each of {len(d)} pairs, got shape {omega.shape}")
    # scikit-learn wants two classes: the first pair counts half as it is, and half with both sides exchanged.
    won = np.append(np.ones(len(d)), 0)  # (P + 1,)
    shares = np.append(omega, omega[0] / 2) / omega.sum()  # (P + 1,)
    shares[0] /= 2
    model = LogisticRegression(C=1 / l2, fit_intercept=False, tol=1e-8, max_iter=1000)
    return model.fit(np.concatenate([d, -d[:1]]), won, sample_weight=shares).coef_[0]


class RidgeFit(NamedTuple):
    """A ridge regression, y ≈ intercept + x·weights."""

    weights: Array
    """The weight of each feature, (F,)."""
    intercept: float
    """The prediction where all features are 0."""
    error: Array
    """Standard error of each weight, its shrinkage left out, (F,)."""


def fit_ridge(features: ArrayLike, target: ArrayLike, *, l2: float) -> RidgeFit:
    """argmin Σ_i (y_i − c − w·x_i)² + l2·‖w‖², the intercept c without penalty (Hoerl and Kennard 1970).

    With X and y centred: w = (XᵀX + l2·I)⁻¹Xᵀy; cov(w) = s²·(XᵀX + l2·I)⁻¹XᵀX(XᵀX + l2·I)⁻¹ with s² the residual
    variance over n − tr H degrees of freedom, H the matrix that makes ŷ of y. (scikit-learn has no standard errors,
    and they need the inverse from which the weights follow.)

    Args:
        features: x, (n, F).
        target: y, (n,).
        l2: strength of the penalty, > 0.

    Raises:
        ValueError: shapes that do not go together, or a penalty that is not positive.
    """
    x, y = _checked(features, target)
    if not l2 > 0:
        raise ValueError(f"expected l2 > 0, got {l2}")
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


def cross_fitted_r2(
    features: ArrayLike,
    target: ArrayLike,
    groups: Sequence[Hashable],
    *,
    l2s: Sequence[float] = (0.1, 1.0, 10.0, 100.0),
    folds: int = 5,
) -> float:
    """The share of the variance of y that a linear function of x explains where it was not fitted.

    1 − Σ(y − ŷ)²/Σ(y − ȳ)²: below 0 where the mean alone says more, NaN where there is nothing to explain. Each fold's
    ŷ comes from a ridge regression on the other folds; a group stays in one fold. The penalty is the one that explains
    most.

    Args:
        features: x, (n, F).
        target: y, (n,).
        groups: what each belongs to, its prompt for instance, n of them; at least two different ones.
        l2s: penalties to choose from.
        folds: into how many parts the groups are dealt, in order of appearance.

    Raises:
        ValueError: shapes that do not go together, or one group alone.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    x, y = _checked(features, target)
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(groups) != len(y) or len(order) < 2:
        raise ValueError(f"expected a group for each of {len(y)}, at least 2 different ones, got {len(groups)}")
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        return float("nan")
    split = PredefinedSplit([order[group] % folds for group in groups])
    guesses = [cross_val_predict(Ridge(alpha=l2), x, y, cv=split) for l2 in l2s]  # (n,) each
    return 1 - min(float(((y - guess) ** 2).sum()) for guess in guesses) / total


def _checked(features: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    x = np.asarray(features, dtype=np.float64)  # (n, F)
    y = np.asarray(target, dtype=np.float64)  # (n,)
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or not len(y):
        raise ValueError(f"expected features (n, F) and a target (n,), n >= 1, got {x.shape} and {y.shape}")
    return x, y
