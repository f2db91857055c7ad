"""Learners on token environments: the language model as an SB3 policy, the agents, KL controllers."""

assert __name__ == "rlhf_gym.agents", f"import this package as rlhf_gym.agents, not as {__name__}"

from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.best_of_n import BestOfN
from rlhf_gym.agents.callbacks import AttachPolicy, StopOnKL
from rlhf_gym.agents.dpo import DPO
from rlhf_gym.agents.features import LMFeaturesExtractor
from rlhf_gym.agents.kl_control import AdaptiveKL, ConstraintKL, FixedKL, KLController
from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.agents.policy_gradients import TokenA2C, TokenGRPO, TokenReinforce, TokenRLOO
from rlhf_gym.agents.ppo import TokenPPO
from rlhf_gym.agents.regularisers import EntropyBonus, KLInLoss, MovingReference, PretrainingMix, Regulariser
from rlhf_gym.agents.rollout import EpisodeBatch, EpisodeBuffer, LengthAdaptive, Rollout, collect_rollout
from rlhf_gym.functional.policy_gradient import CISPO, Clip, SequenceClip, Surrogate

__all__ = [
    "CISPO",
    "DPO",
    "AdaptiveKL",
    "AttachPolicy",
    "BestOfN",
    "Clip",
    "ConstraintKL",
    "EntropyBonus",
    "EpisodeBatch",
    "EpisodeBuffer",
    "FixedKL",
    "KLController",
    "KLInLoss",
    "LMActorCriticPolicy",
    "LMFeaturesExtractor",
    "LengthAdaptive",
    "MovingReference",
    "PretrainingMix",
    "Regulariser",
    "Rollout",
    "SequenceClip",
    "StopOnKL",
    "Surrogate",
    "TokenA2C",
    "TokenAlgorithm",
    "TokenGRPO",
    "TokenPPO",
    "TokenRLOO",
    "TokenReinforce",
    "collect_rollout",
]
