"""What a folder declares is compared with what is in it, before a model is built."""

from __future__ import annotations

import json

import pytest

from rlhf_gym.lm import load_causal_lm
from tests import tiny


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 100_000}, "with weights of n_layer=100,000, got"),
        (
            {"n_embd": 1_000_000, "n_head": 1},
            "whose weights have n_embd=1,000,000, got at most",
        ),
        ({"vocab_size": 10**10}, "whose weights have vocab_size=10,000,000,000, got at most"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_the_model_is_built(
    tmp_path, monkeypatch, change, message
):
    tiny.tiny_gpt2().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    built = "transformers.AutoModelForCausalLM.from_pretrained"
    monkeypatch.setattr(built, lambda *arguments, **settings: pytest.fail("it was built"))
    with pytest.raises(ValueError, match="expected a causal language model in .* " + message):
        load_causal_lm(tmp_path)
