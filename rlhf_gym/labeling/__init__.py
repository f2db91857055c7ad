"""The page on which people judge responses. Needs the extra `label`: FastAPI and uvicorn."""

from rlhf_gym.labeling.app import Session, create_app
from rlhf_gym.labeling.guard import Guard, Hosts
from rlhf_gym.labeling.guidelines import DEFAULT_GUIDELINES, GUIDELINES_FILE, read_guidelines
from rlhf_gym.labeling.server import LabelServer, allowed_hosts, is_loopback, load_token

__all__ = [
    "DEFAULT_GUIDELINES",
    "GUIDELINES_FILE",
    "Guard",
    "Hosts",
    "LabelServer",
    "Session",
    "allowed_hosts",
    "create_app",
    "is_loopback",
    "load_token",
    "read_guidelines",
]
