"""The interactive picture: one offline page on which the parts of RLHF move."""

from rlhf_gym.picture.page import write_picture
from rlhf_gym.picture.recording import RECORDING, record

__all__ = ["RECORDING", "record", "write_picture"]
