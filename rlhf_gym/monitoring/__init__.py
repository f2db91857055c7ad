"""What one watches while a policy learns: measures, alarms, the token inspector."""

from rlhf_gym.monitoring.alarms import RECORDS, RULES, Alarm, Alarms, read_records
from rlhf_gym.monitoring.inspection import inspect_episodes
from rlhf_gym.monitoring.monitor import RLHFMonitor
from rlhf_gym.monitoring.outputs import WandbOutput, logger_outputs
from rlhf_gym.settings import REFUSAL, AlarmThresholds

__all__ = [
    "RECORDS",
    "REFUSAL",
    "RULES",
    "Alarm",
    "AlarmThresholds",
    "Alarms",
    "RLHFMonitor",
    "WandbOutput",
    "inspect_episodes",
    "logger_outputs",
    "read_records",
]
