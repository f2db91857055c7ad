"""Pure functions without state: the maths of RLHF, a file a subject."""

from rlhf_gym.functional.best_of_n import best_of_n_estimate, best_of_n_kl
from rlhf_gym.functional.calibration import (
    LengthControlled,
    ReliabilityCurve,
    chance_probability,
    confidence,
    expected_calibration_error,
    length_controlled_accuracy,
    reliability_curve,
    rightness,
)
from rlhf_gym.functional.categorical import log_prob_and_entropy
from rlhf_gym.functional.intervals import Rate, fieller_interval, share_interval
from rlhf_gym.functional.kl import adaptive_kl_coef, full_kl, k1, k2, k3
from rlhf_gym.functional.losses import (
    DPOLoss,
    PolicyLoss,
    ValueLoss,
    bradley_terry_loss,
    dpo_loss,
    policy_gradient_loss,
    ppo_policy_loss,
    ppo_value_loss,
)
from rlhf_gym.functional.overoptimization import (
    BEST_OF_N,
    RL,
    CurveForm,
    OveroptimizationFit,
    fit_best_of_n,
    fit_rl,
)
from rlhf_gym.functional.regression import (
    RidgeFit,
    cross_fitted_r2,
    fit_preference_weights,
    fit_ridge,
)
from rlhf_gym.functional.returns import (
    discounted_returns,
    gae,
    group_normalised_advantages,
    rloo_advantages,
)
from rlhf_gym.functional.text_statistics import (
    TokenShare,
    distinct_n,
    longest_repeat,
    ngrams,
    repetition,
    spearman,
    token_shares,
)
from rlhf_gym.functional.whitening import masked_mean, masked_whiten, zero_masked

__all__ = [
    "BEST_OF_N",
    "RL",
    "CurveForm",
    "DPOLoss",
    "LengthControlled",
    "OveroptimizationFit",
    "PolicyLoss",
    "Rate",
    "ReliabilityCurve",
    "RidgeFit",
    "TokenShare",
    "ValueLoss",
    "adaptive_kl_coef",
    "best_of_n_estimate",
    "best_of_n_kl",
    "bradley_terry_loss",
    "chance_probability",
    "confidence",
    "cross_fitted_r2",
    "discounted_returns",
    "distinct_n",
    "dpo_loss",
    "expected_calibration_error",
    "fieller_interval",
    "fit_best_of_n",
    "fit_preference_weights",
    "fit_ridge",
    "fit_rl",
    "full_kl",
    "gae",
    "group_normalised_advantages",
    "k1",
    "k2",
    "k3",
    "length_controlled_accuracy",
    "log_prob_and_entropy",
    "longest_repeat",
    "masked_mean",
    "masked_whiten",
    "ngrams",
    "policy_gradient_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "reliability_curve",
    "repetition",
    "rightness",
    "rloo_advantages",
    "share_interval",
    "spearman",
    "token_shares",
    "zero_masked",
]
