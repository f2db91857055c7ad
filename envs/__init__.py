"""The token MDP: one environment, its batched twin, and the adapter for Stable-Baselines3."""

assert __name__ == "rlhf_gym.envs", f"import this package as rlhf_gym.envs, not as {__name__}"

from rlhf_gym.envs.enumerable import EnumerableTask, gpt2_task, tabular_task, with_replies
from rlhf_gym.envs.episode import (
    ActionLogProb,
    Episode,
    EpisodeRewards,
    EpisodeScores,
    Observation,
    candidates_from_episodes,
)
from rlhf_gym.envs.language_respondent import LMRespondent
from rlhf_gym.envs.masks import ActionMask
from rlhf_gym.envs.respondents import FunctionRespondent, Reply, Respondent, Turn
from rlhf_gym.envs.sb3 import SB3VecEnv
from rlhf_gym.envs.shaping import (
    AddVerifier,
    ClipScore,
    LengthPenalty,
    NormalizeScore,
    PotentialShaping,
    RepetitionPenalty,
    ScoreTerm,
)
from rlhf_gym.envs.shortlist import ShortlistActions, ShortlistVectorActions
from rlhf_gym.envs.text_env import TextArenaGame, TextEnvRespondent
from rlhf_gym.envs.token_env import TokenEnv
from rlhf_gym.envs.token_reward import TokenReward
from rlhf_gym.envs.turns import Turns, turns_of
from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.envs.view import EpisodeView

__all__ = [
    "ActionLogProb",
    "ActionMask",
    "AddVerifier",
    "ClipScore",
    "EnumerableTask",
    "Episode",
    "EpisodeRewards",
    "EpisodeScores",
    "EpisodeView",
    "FunctionRespondent",
    "LMRespondent",
    "LengthPenalty",
    "NormalizeScore",
    "Observation",
    "PotentialShaping",
    "RepetitionPenalty",
    "Reply",
    "Respondent",
    "SB3VecEnv",
    "ScoreTerm",
    "ShortlistActions",
    "ShortlistVectorActions",
    "TextArenaGame",
    "TextEnvRespondent",
    "TokenEnv",
    "TokenReward",
    "TokenVectorEnv",
    "Turn",
    "Turns",
    "candidates_from_episodes",
    "gpt2_task",
    "tabular_task",
    "turns_of",
    "with_replies",
]
