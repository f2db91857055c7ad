"""RLHF as ordinary RL: text generation as a token-step Gymnasium environment, and what one needs to train on it.

Importing this package registers the environments `rlhf_gym/Token-v0`, `rlhf_gym/Chat-v0`, `rlhf_gym/Reviews-v0` and
`rlhf_gym/Guess-v0`, and imports neither torch nor transformers.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gymnasium.envs.registration import register

try:
    __version__ = version("rlhf-gym")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+checkout"

register(
    id="rlhf_gym/Token-v0",
    entry_point="rlhf_gym.envs.token_env:TokenEnv",
    vector_entry_point="rlhf_gym.envs.vector_env:TokenVectorEnv",
)
register(
    id="rlhf_gym/Chat-v0",
    entry_point="rlhf_gym.envs.chat:chat_env",
    vector_entry_point="rlhf_gym.envs.chat:chat_vector_env",
)
register(
    id="rlhf_gym/Reviews-v0",
    entry_point="rlhf_gym.envs.token_env:reviews_env",
    vector_entry_point="rlhf_gym.envs.token_env:reviews_vector_env",
)
register(
    id="rlhf_gym/Guess-v0",
    entry_point="rlhf_gym.envs.guessing:guess_env",
    vector_entry_point="rlhf_gym.envs.guessing:guess_vector_env",
)

# In a checkout envs/ and agents/ sit beside this folder; a wheel carries them inside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))
