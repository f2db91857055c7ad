"""Preferences: records, files, pairs, simulated annotators, and the choice of pairs to compare."""

from rlhf_gym.preferences.active import acquisition_scores, choose_batch
from rlhf_gym.preferences.annotators import (
    Annotator,
    AnnotatorPanel,
    BradleyTerryAnnotator,
    simulated_annotators,
)
from rlhf_gym.preferences.checks import PreferenceReport, check_preferences, split_by_prompt
from rlhf_gym.preferences.files import (
    load_demonstrations,
    load_preferences,
    load_prompts,
    load_steps,
    load_texts,
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_texts,
    write_preferences,
)
from rlhf_gym.preferences.pairing import PairingStrategy, choose_pairs, pairs_from_ranking, pairs_from_ratings
from rlhf_gym.preferences.reader import Records
from rlhf_gym.preferences.records import Candidate, CandidatePair, Demonstration, LabelledSteps, Preference
from rlhf_gym.settings import CONFIDENT_WORDS
from rlhf_gym.settings.stages import Acquisition

__all__ = [
    "CONFIDENT_WORDS",
    "Acquisition",
    "Annotator",
    "AnnotatorPanel",
    "BradleyTerryAnnotator",
    "Candidate",
    "CandidatePair",
    "Demonstration",
    "LabelledSteps",
    "PairingStrategy",
    "Preference",
    "PreferenceReport",
    "Records",
    "acquisition_scores",
    "check_preferences",
    "choose_batch",
    "choose_pairs",
    "load_demonstrations",
    "load_preferences",
    "load_prompts",
    "load_steps",
    "load_texts",
    "pairs_from_ranking",
    "pairs_from_ratings",
    "read_demonstrations",
    "read_preferences",
    "read_prompts",
    "read_texts",
    "simulated_annotators",
    "split_by_prompt",
    "write_preferences",
]
