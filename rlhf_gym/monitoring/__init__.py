"""What one watches while a policy learns: measures, alarms, the token inspector."""

from rlhf_gym.monitoring.alarms import Alarm, AlarmThresholds
from rlhf_gym.monitoring.inspection import inspect_episodes
from rlhf_gym.monitoring.measures import REFUSAL
from rlhf_gym.monitoring.monitor import RLHFMonitor

__all__ = ["REFUSAL", "Alarm", "AlarmThresholds", "RLHFMonitor", "inspect_episodes"]
