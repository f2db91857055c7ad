"""Learners on token environments: the language model as an SB3 policy, the episode buffer, PPO, KL controllers."""

assert __name__ == "rlhf_gym.agents", f"import this package as rlhf_gym.agents, not as {__name__}"

from rlhf_gym.agents.buffer import EpisodeBatch, EpisodeBuffer
from rlhf_gym.agents.callbacks import AttachPolicy
from rlhf_gym.agents.features import LMFeaturesExtractor
from rlhf_gym.agents.kl_control import AdaptiveKL, ConstraintKL, FixedKL, KLController
from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.agents.ppo import TokenPPO

__all__ = [
    "AdaptiveKL",
    "AttachPolicy",
    "ConstraintKL",
    "EpisodeBatch",
    "EpisodeBuffer",
    "FixedKL",
    "KLController",
    "LMActorCriticPolicy",
    "LMFeaturesExtractor",
    "TokenPPO",
]
