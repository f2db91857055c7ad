"""The supervised stages, on `transformers.Trainer`: pretraining, fine-tuning on demonstrations, reward modelling."""

from rlhf_gym.training.config import RewardModelingConfig, SFTConfig
from rlhf_gym.training.folder import is_finished
from rlhf_gym.training.language_modeling import SFTMetrics, evaluate_sft, pretrain, train_sft
from rlhf_gym.training.reward_metrics import RewardMetrics, evaluate_reward_model, expected_calibration_error
from rlhf_gym.training.reward_modeling import train_reward_model

__all__ = [
    "RewardMetrics",
    "RewardModelingConfig",
    "SFTConfig",
    "SFTMetrics",
    "evaluate_reward_model",
    "evaluate_sft",
    "expected_calibration_error",
    "is_finished",
    "pretrain",
    "train_reward_model",
    "train_sft",
]
