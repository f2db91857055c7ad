"""A causal language model as parts: loading, tokens, slot cache, decoder, generation, heads, sampling masks."""

from rlhf_gym.lm.cache import SlotCache
from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.generation import Generation, generate, token_log_probs
from rlhf_gym.lm.heads import ValueHead
from rlhf_gym.lm.loading import load_causal_lm, load_sequence_classifier, load_tokenizer
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.sampling import SamplingParams

__all__ = [
    "Decoder",
    "Generation",
    "LMParts",
    "SamplingParams",
    "SlotCache",
    "ValueHead",
    "generate",
    "load_causal_lm",
    "load_sequence_classifier",
    "load_tokenizer",
    "token_log_probs",
]
