"""Pure functions without state: kl, returns, losses, whitening, overoptimization, best of n, intervals, calibration."""

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
from rlhf_gym.functional.intervals import fieller_interval, student_t_quantile
from rlhf_gym.functional.kl import adaptive_kl_coef, full_kl, k1, k2, k3
from rlhf_gym.functional.losses import (
    DPOLoss,
    PolicyLoss,
    ValueLoss,
    bradley_terry_loss,
    dpo_loss,
    fit_score_difference,
    kwise_loss,
    policy_gradient_loss,
    ppo_policy_loss,
    ppo_value_loss,
    preference_probability,
)
from rlhf_gym.functional.overoptimization import (
    OveroptimizationFit,
    best_of_n_curve,
    fit_best_of_n,
    fit_rl,
    goodhart_gold,
    rl_curve,
)
from rlhf_gym.functional.returns import (
    discounted_returns,
    gae,
    group_normalised_advantages,
    rloo_advantages,
    rloo_baseline,
)
from rlhf_gym.functional.whitening import masked_mean, masked_var, masked_whiten, zero_masked

__all__ = [
    "DPOLoss",
    "LengthControlled",
    "OveroptimizationFit",
    "PolicyLoss",
    "ReliabilityCurve",
    "ValueLoss",
    "adaptive_kl_coef",
    "best_of_n_curve",
    "best_of_n_estimate",
    "best_of_n_kl",
    "bradley_terry_loss",
    "chance_probability",
    "confidence",
    "discounted_returns",
    "dpo_loss",
    "expected_calibration_error",
    "fieller_interval",
    "fit_best_of_n",
    "fit_rl",
    "fit_score_difference",
    "full_kl",
    "gae",
    "goodhart_gold",
    "group_normalised_advantages",
    "k1",
    "k2",
    "k3",
    "kwise_loss",
    "length_controlled_accuracy",
    "log_prob_and_entropy",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "policy_gradient_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "preference_probability",
    "reliability_curve",
    "rightness",
    "rl_curve",
    "rloo_advantages",
    "rloo_baseline",
    "student_t_quantile",
    "zero_masked",
]
