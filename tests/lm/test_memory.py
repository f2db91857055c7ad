"""What fits into memory: sizes by hand, limits that bind on large models alone, results that do not depend on them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from rlhf_gym.lm import Decoder, generate, token_log_probs
from rlhf_gym.lm import memory as memory_module
from rlhf_gym.lm.memory import free_memory, micro_batch, rows_at_once, sizes, slots_that_fit
from tests.tiny import tiny_gpt2

SMOLLM2 = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49_152,
    tie_word_embeddings=True,
)


def test_sizes_of_a_model_of_135m_weights() -> None:
    found = sizes(SMOLLM2)
    # a layer: 2·576·64·(9 + 3) in attention, 3·576·1536 in the MLP; the embeddings 49,152·576
    assert found.parameters == 30 * (884_736 + 2_654_208) + 28_311_552 == 134_479_872
    assert found.cached == 4 * 30 * 2 * 3 * 64  # fp32; 46 kB a token
    assert found.read == 4 * (8 * 576 + 4 * 1536)
    assert found.trained == 4 * 30 * (12 * 576 + 4 * 1536)


def test_sizes_where_a_configuration_says_less_or_more() -> None:
    gpt2 = sizes(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100))  # n_inner is None: 4·64
    assert gpt2.cached == 4 * 2 * 2 * 4 * 16 and gpt2.read == 4 * (8 * 64 + 4 * 256)
    odd = PretrainedConfig(hidden_size=64, num_hidden_layers=2, intermediate_size=[128, 256], num_attention_heads=None)
    assert sizes(odd).read == 4 * (8 * 64 + 4 * 256), "the largest where there is one a layer"


@pytest.mark.parametrize(
    ("batch", "row", "free", "unit", "expected"),
    [
        (32, 10, 1000, 1, None),  # 600 bytes to use, 320 wanted
        (32, 100, 1000, 1, 4),  # room for 6 rows, divisors of 32 up to it: 4
        (32, 100, 1000, 2, 4),
        (6, 100, 1000, 2, None),
        (6, 150, 1000, 2, 2),  # room for 4, but 4 does not divide 6
        (32, 10_000, 1000, 2, 2),  # never less than what stays together
    ],
)
def test_a_micro_batch_is_the_largest_divisor_that_fits(
    batch: int, row: int, free: int, unit: int, expected: int | None
) -> None:
    assert micro_batch(batch, row=row, fixed=0, free=free, unit=unit) == expected


def test_limits_bind_on_large_models_alone() -> None:
    cpu, small, large = torch.device("cpu"), sizes(tiny_gpt2().config), 4 * (8 * 4096 + 4 * 11008)
    assert rows_at_once(cpu, width=64, read=small.read) == 16
    assert rows_at_once(cpu, width=64, read=small.read, most=64) == 64
    assert rows_at_once(cpu, width=4096, read=large, most=64) == 1
    assert rows_at_once(cpu, width=512, read=large, most=64) == 2**30 // (512 * large) == 6
    assert slots_that_fit(128, width=300, cached=small.cached, free=2**33) == 128
    assert slots_that_fit(128, width=1024, cached=2**20, free=2**34) == int(0.6 * 2**34) // 2**30
    assert free_memory("cpu") > 0


def test_rows_that_are_fed_in_parts_give_the_same_hidden_states_and_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_gpt2()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 10, size=n).tolist() for n in (3, 5, 4, 5, 2)]
    ids, lengths = np.zeros((5, 9), dtype=np.int64), np.array([len(p) for p in prompts])
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt

    def results() -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
        drawn = generate(
            model, prompts, max_new_tokens=4, stop_token_ids=[], generator=torch.Generator().manual_seed(1)
        )
        scored = token_log_probs(model, torch.from_numpy(ids), torch.from_numpy(lengths))
        return Decoder(model).logits(ids, lengths).clone(), [g.response_ids for g in drawn], scored

    whole = results()
    calls: list[int] = []
    feed = Decoder._feed
    monkeypatch.setattr(Decoder, "_feed", lambda self, *a, **k: (calls.append(len(a[3])), feed(self, *a, **k))[1])
    monkeypatch.setattr(memory_module, "STATES_AT_ONCE", 2 * 5 * sizes(model.config).read)  # two rows of five tokens
    parted = results()
    assert max(calls) == 5 and calls.count(2) >= 2, "all five rows were fed in parts of at most two"
    torch.testing.assert_close(parted[0], whole[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parted[2], whole[2], rtol=1e-5, atol=1e-5)
    assert parted[1] == whole[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@pytest.mark.parametrize(("asked", "numbers", "kept"), [(False, 3e6, False), (True, 3e6, True), (True, 12e6, False)])
def test_freed_memory_is_kept_for_the_next_tensors(asked, numbers, kept):
    """A block that is asked for again costs page faults, unless the C library kept it; large ones are given back."""
    code = f"""
import resource, torch
from rlhf_gym.lm.memory import keep_freed_memory
assert not {asked} or keep_freed_memory()
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = [torch.empty({int(numbers)}).fill_(1.0) for _ in range(2)]
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if not asked:  # glibc's own threshold, which rises by itself unless it is set
        environment["MALLOC_MMAP_THRESHOLD_"] = str(128 * 1024)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (int(ran.stdout) < 100) == kept
