"""The command `rlhf-gym`."""

from rlhf_gym.cli.app import main

__all__ = ["main"]
