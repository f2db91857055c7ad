"""Rewards: learned models, ensembles of them, functions of the text, and how an episode comes to its score."""

from rlhf_gym.rewards.ensemble import Aggregate, RewardEnsemble, aggregate_scores
from rlhf_gym.rewards.model import RewardModel
from rlhf_gym.rewards.normalization import RewardNormalizer
from rlhf_gym.rewards.programmatic import RewardFunction, keyword_reward, length_reward, regex_reward, sum_rewards
from rlhf_gym.rewards.scoring import EpisodeScorer, check_scores, episode_scorer, score_with_members

__all__ = [
    "Aggregate",
    "EpisodeScorer",
    "RewardEnsemble",
    "RewardFunction",
    "RewardModel",
    "RewardNormalizer",
    "aggregate_scores",
    "check_scores",
    "episode_scorer",
    "keyword_reward",
    "length_reward",
    "regex_reward",
    "score_with_members",
    "sum_rewards",
]
