"""Draws follow the behaviour distribution, and its masks are exactly those asked for."""

import numpy as np
import pytest
import torch

from rlhf_gym.lm.generation import generate, token_log_probs
from rlhf_gym.lm.sampling import SamplingParams, behaviour_logits, entropy, greedy, sample, token_log_prob
from tests import tiny


def test_inverse_cdf_follows_the_distribution_chi_squared():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, generator=generator)
    logits[[2, 11]] = float("-inf")
    n = 50_000
    tokens, log_probs = sample(logits.expand(n, -1), generator=generator)
    counts = torch.bincount(tokens, minlength=12).double()
    expected = logits.softmax(-1).double() * n
    assert counts[2] == counts[11] == 0
    kept = expected > 0
    chi2 = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi2 < 27.9  # 99.9 % of chi-squared with 9 degrees of freedom
    torch.testing.assert_close(log_probs, logits.log_softmax(-1)[tokens])


def test_a_token_without_mass_is_never_drawn_even_at_the_ends():
    logits = torch.full((10_000, 4), float("-inf"))
    logits[:, 1] = 0.0
    tokens, log_probs = sample(logits)
    assert (tokens == 1).all()
    assert log_probs.abs().max() == 0


def test_masks():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])

    def kept(params, **kwargs):
        return torch.isfinite(behaviour_logits(logits, params, **kwargs))[0].nonzero()[:, 0].tolist()

    assert kept(SamplingParams(top_k=2)) == [0, 1]
    # softmax: .636 .234 .086 .032 .012
    assert kept(SamplingParams(top_p=0.6)) == [0]
    assert kept(SamplingParams(top_p=0.7)) == [0, 1]
    assert kept(SamplingParams(forbidden_token_ids=(0, 4))) == [1, 2, 3]
    early = {"stop_token_ids": (1,), "response_lengths": torch.tensor([2])}
    assert kept(SamplingParams(min_new_tokens=3), **early) == [0, 2, 3, 4]
    assert kept(SamplingParams(min_new_tokens=2), **early) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(behaviour_logits(logits, SamplingParams(temperature=2.0)), logits / 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "temperature > 0, got 0.0"),
        ({"top_p": 0.0}, r"top_p in \(0, 1\], got 0.0"),
        ({"top_k": -1}, "top_k >= 0"),
        ({"min_new_tokens": -2}, "min_new_tokens >= 0"),
    ],
)
def test_bad_sampling_params_say_so(wrong, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)


def test_entropy_is_within_its_bounds_with_masks():
    logits = torch.randn(6, 10)
    logits[:, 3] = float("-inf")
    value = entropy(logits)
    assert (value >= 0).all()
    assert (value <= np.log(9) + 1e-6).all()
    torch.testing.assert_close(entropy(torch.zeros(1, 8)), torch.tensor([np.log(8)], dtype=torch.float32))


def test_generate_log_probs_are_those_of_whole_sequences():
    model = tiny.tiny_gpt2()
    prompts = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14], [3, 4]]
    results = generate(
        model,
        prompts,
        max_new_tokens=9,
        stop_token_ids=(1,),
        num_slots=2,
        generator=torch.Generator().manual_seed(3),
        params=SamplingParams(temperature=0.7),
    )
    assert [r.prompt_ids for r in results] == prompts
    for result in results:
        row = result.prompt_ids + result.response_ids
        scored = token_log_probs(
            model, torch.tensor([row]), torch.tensor([len(row)]), params=SamplingParams(temperature=0.7)
        )[0, len(result.prompt_ids) :]
        np.testing.assert_allclose(scored.numpy(), result.log_probs, atol=1e-5)
        assert (result.finish_reason == "stop") == (result.response_ids[-1] == 1)
        assert len(result.response_ids) == 9 or result.finish_reason == "stop"


def test_greedy_generation_takes_the_likeliest():
    model = tiny.tiny_llama()
    (result,) = generate(model, [[4, 5]], max_new_tokens=5, stop_token_ids=(), greedy_decoding=True)
    row = [4, 5]
    for token in result.response_ids:
        with torch.no_grad():
            assert token == model(torch.tensor([row])).logits[0, -1].argmax()
        row.append(token)
    logits = torch.randn(3, 7)
    tokens, log_probs = greedy(logits)
    torch.testing.assert_close(log_probs, token_log_prob(logits, tokens))


def test_prompts_that_do_not_fit_say_so():
    model = tiny.tiny_gpt2(n_positions=16)
    with pytest.raises(ValueError, match=r"prompt 1 has 9 tokens.*expected at most 8"):
        generate(model, [[3], [4] * 9], max_new_tokens=8, stop_token_ids=(1,))
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        generate(model, [[]], max_new_tokens=8, stop_token_ids=(1,))


def test_token_log_probs_scores_only_the_tokens_of_its_mask():
    model = tiny.tiny_gpt2()
    ids = torch.randint(3, 20, (3, 8))
    lengths = torch.tensor([8, 5, 6])
    real = torch.arange(8) < lengths[:, None]
    all_of_them = token_log_probs(model, ids, lengths)
    from_third = token_log_probs(model, ids, lengths, mask=real & (torch.arange(8) >= 3), batch_size=2)
    assert (all_of_them[:, 0] == 0).all()
    assert (all_of_them[1, 5:] == 0).all()
    assert (from_third[:, :3] == 0).all()
    torch.testing.assert_close(from_third[:, 3:], all_of_them[:, 3:], atol=1e-5, rtol=1e-5)
    holes = torch.tensor([[0, 1, 0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1, 0, 0]]) != 0
    torch.testing.assert_close(token_log_probs(model, ids, lengths, mask=holes), all_of_them * holes)
