"""Rewards: learned models, ensembles of them, functions of the text, and how an episode comes to its score."""

from rlhf_gym.rewards.dense import DenseRewards, Given, ResponseTokens, ScoreError, check_rewards, check_scores
from rlhf_gym.rewards.ensemble import RewardEnsemble, load_reward
from rlhf_gym.rewards.model import RewardModel
from rlhf_gym.rewards.programmatic import (
    import_reward_function,
    keyword_reward,
    length_reward,
    sum_rewards,
)
from rlhf_gym.rewards.reward import (
    FunctionReward,
    LearnedReward,
    PromptFunction,
    Reward,
    RewardFunction,
    RewardNormalizer,
    Scores,
    TokensFunction,
    aggregate_scores,
    function_scores,
)
from rlhf_gym.rewards.scoring import EpisodeScorer, as_reward
from rlhf_gym.rewards.token_model import TokenRewardModel
from rlhf_gym.settings.stages import Aggregate, StepEnd, Trunk

__all__ = [
    "Aggregate",
    "DenseRewards",
    "EpisodeScorer",
    "FunctionReward",
    "Given",
    "LearnedReward",
    "PromptFunction",
    "ResponseTokens",
    "Reward",
    "RewardEnsemble",
    "RewardFunction",
    "RewardModel",
    "RewardNormalizer",
    "ScoreError",
    "Scores",
    "StepEnd",
    "TokenRewardModel",
    "TokensFunction",
    "Trunk",
    "aggregate_scores",
    "as_reward",
    "check_rewards",
    "check_scores",
    "function_scores",
    "import_reward_function",
    "keyword_reward",
    "length_reward",
    "load_reward",
    "sum_rewards",
]
