"""A run as it lies on the disk: its folder, what its stages left, and each of them in a line."""

from rlhf_gym.files import read_jsonl
from rlhf_gym.runs.folder import RunFolder
from rlhf_gym.runs.records import doublings, iterations
from rlhf_gym.runs.summaries import count

__all__ = ["RunFolder", "count", "doublings", "iterations", "read_jsonl"]
