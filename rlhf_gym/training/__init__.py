"""The supervised stages: pretraining, fine-tuning on demonstrations, reward modelling."""

from rlhf_gym.settings import RewardModelingConfig, SFTConfig
from rlhf_gym.training.language_modeling import SFTMetrics, evaluate_sft, pretrain, train_sft
from rlhf_gym.training.reward_baselines import Baseline, train_baselines
from rlhf_gym.training.reward_diagnosis import (
    Share,
    accuracy_by_length,
    accuracy_by_name,
    diagnose_reward_model,
    reward_complaints,
)
from rlhf_gym.training.reward_edits import EditProbe, probe_edits
from rlhf_gym.training.reward_evaluation import (
    RewardMetrics,
    ScoredPairs,
    evaluate_reward_model,
    reward_metrics,
    score_pairs,
)
from rlhf_gym.training.reward_modeling import train_reward_model
from rlhf_gym.training.reward_probes import RewardProbes, probe_reward_model
from rlhf_gym.training.stage import is_finished
from rlhf_gym.training.step_modeling import StepMetrics, step_examples, step_metrics, train_token_reward_model

__all__ = [
    "Baseline",
    "EditProbe",
    "RewardMetrics",
    "RewardModelingConfig",
    "RewardProbes",
    "SFTConfig",
    "SFTMetrics",
    "ScoredPairs",
    "Share",
    "StepMetrics",
    "accuracy_by_length",
    "accuracy_by_name",
    "diagnose_reward_model",
    "evaluate_reward_model",
    "evaluate_sft",
    "is_finished",
    "pretrain",
    "probe_edits",
    "probe_reward_model",
    "reward_complaints",
    "reward_metrics",
    "score_pairs",
    "step_examples",
    "step_metrics",
    "train_baselines",
    "train_reward_model",
    "train_sft",
    "train_token_reward_model",
]
