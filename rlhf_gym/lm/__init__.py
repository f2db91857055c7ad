"""A causal language model as parts: loading, tokens, slot cache, decoder, generation, heads, sampling masks."""
