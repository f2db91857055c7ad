"""All settings, each declared once with its range, its default and its meaning. Importing them is quick: no torch."""

from rlhf_gym.settings.agents import (
    AGENTS,
    A2CSettings,
    AgentSettings,
    BestOfNSettings,
    DPOSettings,
    GroupSettings,
    GRPOSettings,
    KLControl,
    LearnerSettings,
    PolicyGradientSettings,
    PPOSettings,
    ReinforceSettings,
    RLOOSettings,
    SurrogateSettings,
)
from rlhf_gym.settings.monitor import REFUSAL, AlarmThresholds, LogFormat, MonitorConfig
from rlhf_gym.settings.run import STAGES, RunConfig, StageName, TaskConfig, default_config, with_adapter
from rlhf_gym.settings.saved import check_format, read_config
from rlhf_gym.settings.stages import CONFIDENT_WORDS, AdversarialConfig, CollectConfig, EvaluateConfig, RewardConfig
from rlhf_gym.settings.supervised import RewardModelingConfig, SFTConfig, SupervisedConfig

__all__ = [
    "AGENTS",
    "CONFIDENT_WORDS",
    "REFUSAL",
    "STAGES",
    "A2CSettings",
    "AdversarialConfig",
    "AgentSettings",
    "AlarmThresholds",
    "BestOfNSettings",
    "CollectConfig",
    "DPOSettings",
    "EvaluateConfig",
    "GRPOSettings",
    "GroupSettings",
    "KLControl",
    "LearnerSettings",
    "LogFormat",
    "MonitorConfig",
    "PPOSettings",
    "PolicyGradientSettings",
    "RLOOSettings",
    "ReinforceSettings",
    "RewardConfig",
    "RewardModelingConfig",
    "RunConfig",
    "SFTConfig",
    "StageName",
    "SupervisedConfig",
    "SurrogateSettings",
    "TaskConfig",
    "check_format",
    "default_config",
    "read_config",
    "with_adapter",
]
