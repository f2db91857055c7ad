"""Rewards: learned models, ensembles of them, functions of the text, and how an episode comes to its score."""

from rlhf_gym.rewards.ensemble import Aggregate, RewardEnsemble, Trunk, aggregate_scores
from rlhf_gym.rewards.loading import LearnedReward, get_normalizers, load_reward, set_normalizers
from rlhf_gym.rewards.model import RewardModel
from rlhf_gym.rewards.normalization import RewardNormalizer
from rlhf_gym.rewards.programmatic import (
    RewardFunction,
    import_reward_function,
    keyword_reward,
    length_reward,
    regex_reward,
    sum_rewards,
)
from rlhf_gym.rewards.scoring import EpisodeScorer, ScoreError, check_scores, episode_scorer, score_with_members
from rlhf_gym.rewards.shared_trunk import SharedTrunkEnsemble

__all__ = [
    "Aggregate",
    "EpisodeScorer",
    "LearnedReward",
    "RewardEnsemble",
    "RewardFunction",
    "RewardModel",
    "RewardNormalizer",
    "ScoreError",
    "SharedTrunkEnsemble",
    "Trunk",
    "aggregate_scores",
    "check_scores",
    "episode_scorer",
    "get_normalizers",
    "import_reward_function",
    "keyword_reward",
    "length_reward",
    "load_reward",
    "regex_reward",
    "score_with_members",
    "set_normalizers",
    "sum_rewards",
]
