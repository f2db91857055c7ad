"""A run as it lies on the disk: its settings and its folder."""

from rlhf_gym.files import read_jsonl
from rlhf_gym.runs.agent_config import PPOConfig
from rlhf_gym.runs.config import (
    CollectConfig,
    EvaluateConfig,
    RewardConfig,
    RunConfig,
    TaskConfig,
    default_config,
)
from rlhf_gym.runs.folder import RunFolder, StageName
from rlhf_gym.runs.monitor_config import MonitorConfig
from rlhf_gym.runs.records import doublings, iterations
from rlhf_gym.runs.summaries import count

__all__ = [
    "CollectConfig",
    "EvaluateConfig",
    "MonitorConfig",
    "PPOConfig",
    "RewardConfig",
    "RunConfig",
    "RunFolder",
    "StageName",
    "TaskConfig",
    "count",
    "default_config",
    "doublings",
    "iterations",
    "read_jsonl",
]
