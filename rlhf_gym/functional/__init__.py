"""Pure tensor functions: kl, returns, losses, whitening, overoptimization. No state."""

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
    best_of_n_kl,
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
    "OveroptimizationFit",
    "PolicyLoss",
    "ValueLoss",
    "adaptive_kl_coef",
    "best_of_n_curve",
    "best_of_n_kl",
    "bradley_terry_loss",
    "discounted_returns",
    "dpo_loss",
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
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "policy_gradient_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "preference_probability",
    "rl_curve",
    "rloo_advantages",
    "rloo_baseline",
    "zero_masked",
]
