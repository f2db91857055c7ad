"""Learners on token environments: the language model as an SB3 policy, the agents, KL controllers."""

assert __name__ == "rlhf_gym.agents", f"import this package as rlhf_gym.agents, not as {__name__}"

from rlhf_gym.agents.a2c import TokenA2C
from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.best_of_n import BestOfN
from rlhf_gym.agents.buffer import EpisodeBatch, EpisodeBuffer
from rlhf_gym.agents.callbacks import AttachPolicy
from rlhf_gym.agents.dpo import DPO
from rlhf_gym.agents.features import LMFeaturesExtractor
from rlhf_gym.agents.grpo import TokenGRPO
from rlhf_gym.agents.kl_control import AdaptiveKL, ConstraintKL, FixedKL, KLController
from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.agents.ppo import TokenPPO
from rlhf_gym.agents.pretraining_mix import PretrainingMix
from rlhf_gym.agents.reinforce import TokenReinforce
from rlhf_gym.agents.rloo import TokenRLOO
from rlhf_gym.agents.stop_on_kl import StopOnKL

__all__ = [
    "DPO",
    "AdaptiveKL",
    "AttachPolicy",
    "BestOfN",
    "ConstraintKL",
    "EpisodeBatch",
    "EpisodeBuffer",
    "FixedKL",
    "KLController",
    "LMActorCriticPolicy",
    "LMFeaturesExtractor",
    "PretrainingMix",
    "StopOnKL",
    "TokenA2C",
    "TokenAlgorithm",
    "TokenGRPO",
    "TokenPPO",
    "TokenRLOO",
    "TokenReinforce",
]
