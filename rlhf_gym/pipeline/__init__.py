"""The circle: pretrain → SFT → collect preferences → reward model → PPO → evaluate → report, into a run folder."""

from rlhf_gym.pipeline.candidates import draw_candidates
from rlhf_gym.pipeline.collect import all_preferences
from rlhf_gym.pipeline.comparison import difference_at_equal, win_rate
from rlhf_gym.pipeline.ppo import train
from rlhf_gym.pipeline.preparation import Run, prepare
from rlhf_gym.pipeline.samples import Samples, draw, gold_scores, log_probs, proxy_scores
from rlhf_gym.pipeline.stages import Interrupted, execute, run
from rlhf_gym.report import write_report
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
    "Interrupted",
    "MonitorConfig",
    "PPOConfig",
    "RewardConfig",
    "Run",
    "RunConfig",
    "RunFolder",
    "Samples",
    "TaskConfig",
    "all_preferences",
    "default_config",
    "difference_at_equal",
    "draw",
    "draw_candidates",
    "execute",
    "gold_scores",
    "log_probs",
    "prepare",
    "proxy_scores",
    "run",
    "train",
    "win_rate",
    "write_report",
]
