"""A run as it lies on the disk: its settings and its folder."""

from rlhf_gym.runs.agent_config import PPOConfig
from rlhf_gym.runs.config import (
    CollectConfig,
    EvaluateConfig,
    RewardConfig,
    RunConfig,
    TaskConfig,
    default_config,
)
from rlhf_gym.runs.folder import RunFolder
from rlhf_gym.runs.monitor_config import MonitorConfig

__all__ = [
    "CollectConfig",
    "EvaluateConfig",
    "MonitorConfig",
    "PPOConfig",
    "RewardConfig",
    "RunConfig",
    "RunFolder",
    "TaskConfig",
    "default_config",
]
