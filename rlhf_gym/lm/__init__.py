"""A causal language model as parts: loading, tokens, slot cache, decoder, generation, heads, sampling masks."""

from rlhf_gym.lm.cache import SlotCache
from rlhf_gym.lm.chat import Conversation, Message, Prompt, Response, end_of_turn, render_prompt
from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.generation import Generation, generate, token_log_probs
from rlhf_gym.lm.loading import Shared, context_length, load_causal_lm, load_tokenizer, quiet_transformers
from rlhf_gym.lm.lora import LoRA, merged
from rlhf_gym.lm.memory import keep_freed_memory
from rlhf_gym.lm.parts import LMParts, ValueHead
from rlhf_gym.lm.sampling import SamplingParams
from rlhf_gym.lm.split import LowerStates, Split
from rlhf_gym.lm.tabular import TabularLM, tabular_lm
from rlhf_gym.lm.tokens import decode, encode_prompts, stop_token_ids

__all__ = [
    "Conversation",
    "Decoder",
    "Generation",
    "LMParts",
    "LoRA",
    "LowerStates",
    "Message",
    "Prompt",
    "Response",
    "SamplingParams",
    "Shared",
    "SlotCache",
    "Split",
    "TabularLM",
    "ValueHead",
    "context_length",
    "decode",
    "encode_prompts",
    "end_of_turn",
    "generate",
    "keep_freed_memory",
    "load_causal_lm",
    "load_tokenizer",
    "merged",
    "quiet_transformers",
    "render_prompt",
    "stop_token_ids",
    "tabular_lm",
    "token_log_probs",
]
