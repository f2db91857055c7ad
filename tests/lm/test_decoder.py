"""Stepping slots = recomputing whole prefixes, for every family of models, through refills, rewinds and new weights."""

import numpy as np
import pytest
import torch

from rlhf_gym.lm import decoder as decoder_module
from rlhf_gym.lm.cache import SlotCache
from rlhf_gym.lm.decoder import Decoder, incremental_error
from rlhf_gym.lm.parts import LMParts
from tests import tiny

MODELS = {
    "gpt2": tiny.tiny_gpt2,
    "llama": tiny.tiny_llama,
    "qwen2": tiny.tiny_qwen2,
    "mistral": lambda: tiny.tiny_mistral(sliding_window=6),
    "gemma3": lambda: tiny.tiny_gemma3(sliding_window=6),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def full_logits(model, ids, lengths):
    """Each row alone, unpadded, through the whole model."""
    return torch.stack(
        [model(torch.as_tensor(row[:n])[None]).logits[0, -1] for row, n in zip(ids, lengths, strict=True)]
    )


def random_rows(model, batch, width, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, size=(batch, width))


@torch.no_grad()
def test_stepping_ragged_slots_with_refills_is_recomputation(model):
    decoder = Decoder(model, use_cache=True)
    ids = random_rows(model, 4, 24)
    lengths = np.array([3, 5, 4, 8])
    for step in range(16):
        if step in (5, 9):  # a slot takes a new prompt
            ids[1] = random_rows(model, 1, 24, seed=step)[0]
            lengths[1] = 4
        if step == 7:  # a slot is parked, and taken up again later
            parked, lengths[3] = lengths[3], 0
        if step == 11:
            lengths[3] = parked
        alive = lengths > 0
        logits = decoder.logits(ids, lengths)
        expected = full_logits(model, ids[alive], lengths[alive])
        torch.testing.assert_close(logits[torch.from_numpy(alive)], expected, atol=1e-5, rtol=1e-5)
        lengths[alive] += 1


@torch.no_grad()
def test_lockstep_slots_past_the_window(model):
    decoder = Decoder(model, use_cache=True)
    ids = random_rows(model, 3, 20)
    for n in range(4, 20):
        lengths = np.full(3, n)
        torch.testing.assert_close(decoder.logits(ids, lengths), full_logits(model, ids, lengths), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rewind_branch_other_batch_sizes_and_wider_rows():
    model = tiny.tiny_llama()
    decoder = Decoder(model, use_cache=True)
    for batch, width, seed in ((3, 10, 0), (5, 10, 0), (2, 16, 0), (2, 12, 1)):
        ids = random_rows(model, batch, width, seed)
        for n in (width - 2, width - 5, width):
            lengths = np.full(batch, n)
            expected = full_logits(model, ids, lengths)
            torch.testing.assert_close(decoder.logits(ids, lengths), expected, atol=1e-5, rtol=1e-5)
            ids[:, n - 3] = (ids[:, n - 3] + 1) % model.config.vocab_size  # branch off


@torch.no_grad()
def test_replayed_steps_are_the_models_own_bit_for_bit(model, monkeypatch):
    def run():
        decoder = Decoder(model, use_cache=True)
        ids = random_rows(model, 4, 24)
        lengths = np.array([3, 5, 4, 8])
        answers = []
        for step in range(16):
            if step == 9:  # a slot takes a new prompt
                ids[1] = random_rows(model, 1, 24, seed=step)[0]
                lengths[1] = 4
            if step == 12:  # a slot is parked
                lengths[0] = 0
            answers.append(decoder.logits(ids, lengths)[1:].clone())
            lengths[lengths > 0] += 1
        return decoder, torch.stack(answers)

    plain, expected = run()
    assert not plain._steps
    monkeypatch.setattr(decoder_module, "USES_BEFORE_REPLAY", 2)
    replayed, answers = run()
    assert replayed._steps
    assert replayed.why_no_replay == ""
    assert torch.equal(answers, expected)


@torch.no_grad()
def test_a_step_that_cannot_be_recorded_runs_as_it_is_and_says_why(monkeypatch):
    def refuse(step, *inputs):
        raise RuntimeError("depends on values")

    monkeypatch.setattr(decoder_module, "record", refuse)
    monkeypatch.setattr(decoder_module, "USES_BEFORE_REPLAY", 1)
    model = tiny.tiny_gpt2()
    decoder = Decoder(model, use_cache=True)
    ids = random_rows(model, 2, 12)
    for n in range(4, 12):
        logits = decoder.logits(ids, np.full(2, n))
        torch.testing.assert_close(logits, full_logits(model, ids, [n, n]), atol=1e-5, rtol=1e-5)
    assert decoder.why_no_replay == "depends on values"


@torch.no_grad()
def test_replays_follow_the_weights(monkeypatch):
    monkeypatch.setattr(decoder_module, "USES_BEFORE_REPLAY", 0)
    model = tiny.tiny_gpt2()
    decoder = Decoder(model, use_cache=True)
    ids = random_rows(model, 2, 12)
    decoder(ids, np.full(2, 4))
    decoder(ids, np.full(2, 5))
    assert decoder._steps
    model.transformer.h[1].mlp.c_fc.weight.mul_(2.0)  # in place
    for n in (6, 7):
        logits = decoder.logits(ids, np.full(2, n))
        torch.testing.assert_close(logits, full_logits(model, ids, [n, n]), atol=1e-5, rtol=1e-4)
    model.transformer.h[0].mlp.c_fc.weight = torch.nn.Parameter(torch.randn(32, 128))  # another tensor
    decoder.invalidate()
    for n in (8, 9, 10):
        logits = decoder.logits(ids, np.full(2, n))
        torch.testing.assert_close(logits, full_logits(model, ids, [n, n]), atol=1e-5, rtol=1e-4)


def test_only_new_tokens_are_fed():
    model = tiny.tiny_gpt2()
    fed = []
    model.transformer.h[0].register_forward_pre_hook(lambda module, args: fed.append(tuple(args[0].shape[:2])))
    decoder = Decoder(model, use_cache=True)
    ids = random_rows(model, 4, 12)
    decoder(ids, np.full(4, 6))
    fed.clear()
    decoder(ids, np.full(4, 7))
    assert fed == [(4, 1)]
    fed.clear()
    decoder(ids, np.full(4, 7))
    assert fed == []  # the same question again is answered from memory
    ids[2] = random_rows(model, 1, 12, seed=5)[0]
    decoder(ids, np.array([8, 8, 5, 8]))
    assert fed == [(1, 4), (4, 1)]  # the new prompt catches up, then all step together


@torch.no_grad()
def test_after_invalidate_new_weights_count():
    model = tiny.tiny_gpt2()
    decoder = Decoder(model, use_cache=True)
    ids, lengths = random_rows(model, 2, 9), np.array([7, 9])
    decoder(ids, lengths)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)  # `.data` leaves no trace: whoever writes there must say so
    decoder.invalidate()
    torch.testing.assert_close(decoder.logits(ids, lengths), full_logits(model, ids, lengths), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_weights_changed_in_place_are_noticed():
    model = tiny.tiny_gpt2()
    decoder = Decoder(model, use_cache=True)
    ids, lengths = random_rows(model, 2, 9), np.array([7, 9])
    decoder(ids, lengths)
    model.transformer.h[0].mlp.c_fc.weight.mul_(2.0)
    torch.testing.assert_close(decoder.logits(ids, lengths), full_logits(model, ids, lengths), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_stepping_does_not_depend_on_batch_mates_padding_or_slot():
    model = tiny.tiny_llama()
    ids, lengths = random_rows(model, 5, 14), np.array([6, 14, 9, 11, 7])
    together = Decoder(model).logits(ids, lengths)
    for row in range(5):
        n = lengths[row]
        alone = Decoder(model).logits(ids[row : row + 1, :n], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)
    order = np.array([3, 1, 4, 0, 2])
    moved = Decoder(model).logits(np.pad(ids[order], ((0, 0), (0, 6))), lengths[order])
    torch.testing.assert_close(moved, together[torch.from_numpy(order)], atol=1e-5, rtol=1e-5)


def test_the_check_catches_a_mask_that_serves_every_layer_type(monkeypatch):
    """What a cache without a mask per layer type would give is wrong past the window, and the check must see it."""
    model = tiny.tiny_gemma3(sliding_window=6)
    parts = LMParts(model)
    assert incremental_error(parts, 24) < 1e-5

    def one_mask(self, write, dtype):
        column = torch.arange(write.kv_length)
        return dict.fromkeys(self.layer_types, (column <= write.columns[:, :, None])[:, None])

    monkeypatch.setattr(SlotCache, "masks", one_mask)
    assert incremental_error(parts, 24) > 1e-3
    decoder = Decoder(model)
    ids, lengths = random_rows(model, 2, 24), np.array([20, 24])
    with pytest.warns(UserWarning, match="without a cache"):
        logits = decoder.logits(ids, lengths)
    assert not decoder.cached
    with torch.no_grad():
        torch.testing.assert_close(logits, full_logits(model, ids, lengths), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="cannot be decoded incrementally"):
        Decoder(model, use_cache=True).logits(ids, lengths)


def test_a_model_whose_logits_are_not_head_of_trunk_is_refused():
    class Odd(type(tiny.tiny_gpt2())):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 2 + 1
            return out

    with pytest.raises(ValueError, match=r"expected head\(trunk\(x\)\)"):
        LMParts(Odd(tiny.tiny_gpt2().config))


def test_eager_attention_gives_the_same():
    model = tiny.tiny_llama()
    ids, lengths = random_rows(model, 3, 10), np.array([5, 10, 7])
    expected = Decoder(model).logits(ids, lengths)
    model.set_attn_implementation("eager")
    decoder = Decoder(model, use_cache=True)
    decoder.logits(ids, lengths - 2)
    torch.testing.assert_close(decoder.logits(ids, lengths), expected, atol=1e-5, rtol=1e-5)


def test_parked_rows_answer_zero():
    decoder = Decoder(tiny.tiny_gpt2())
    hidden = decoder(random_rows(decoder.parts.module, 3, 8), np.array([4, 0, 6]))
    assert hidden[1].abs().max() == 0
    assert hidden[0].abs().max() > 0
