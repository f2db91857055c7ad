"""DPO and BestOfN: from an environment to a policy without RL."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from rlhf_gym.agents import DPO, BestOfN, TokenPPO
from rlhf_gym.agents.dpo import make_pairs
from rlhf_gym.envs import SB3VecEnv, TokenEnv, TokenVectorEnv
from rlhf_gym.functional.best_of_n import best_of_n_kl
from rlhf_gym.lm import Message
from rlhf_gym.lm.loading import Shared
from rlhf_gym.preferences import Preference
from tests import tiny
from tests.chats import CHATML, chat_tokenizer
from tests.toy import make_tabular_toy, minibatch_gradient, tabular_model, word_reward, word_settings

UNCACHED = pytest.mark.filterwarnings("ignore:.*runs without a cache")
"""π_ref as a table has no keys and values to keep."""


def word_env(n=8, **overrides):
    return TokenVectorEnv(n, **(word_settings(reward_timing="deferred") | overrides))


def preferences(n=6):
    rng = np.random.default_rng(0)

    def text():
        return " ".join(rng.choice(tiny.WORDS, rng.integers(1, 6)))

    return [Preference(text(), text(), text()) for _ in range(n)]


def make_dpo(env=None, **overrides):
    settings = {"learning_rate": 1e-3, "n_episodes": 16, "batch_size": 8, "seed": 0, "device": "cpu"}
    return DPO("LMPolicy", env or word_env(), **(settings | overrides))


def collect(agent):
    _, callback = agent._setup_learn(1)
    assert agent.collect_rollouts(agent.env, callback)
    return agent.buffer


def prompt_of(episode):
    return episode.prompt_ids.tolist()


# -- DPO -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timing", ["deferred", "step"])
def test_pairs_are_made_of_the_references_responses(timing):
    """Two to each of the environment's next prompts; the better one is mostly the chosen one."""
    env = word_env(5, reward_timing=timing, reward=lambda p, r: 8 * np.array(word_reward(p, r)))
    env.seed(0)
    torch.manual_seed(0)
    pairs = make_pairs(env, 40, np.random.default_rng(0))
    assert len(pairs.episodes) == 80
    chosen, rejected = pairs.episodes[::2], pairs.episodes[1::2]
    assert [prompt_of(e) for e in chosen] == [prompt_of(e) for e in rejected]
    assert sorted(map(tuple, map(prompt_of, chosen[:4]))) == sorted(map(tuple, word_settings()["prompts"]))
    scores = env.score_episodes(pairs.episodes).scores
    margin = scores[::2] - scores[1::2]
    assert (margin >= 0).mean() > 0.8
    reference = env.token_reward.reference.model
    for episode, log_probs in zip(pairs.episodes[:6], pairs.ref_log_probs[:6], strict=True):
        row = torch.from_numpy(episode.input_ids)
        with torch.no_grad():
            table = reference(row[None]).logits[0].log_softmax(-1)
        expected = table[:-1].gather(1, row[1:, None])[episode.action_mask[1:], 0]
        np.testing.assert_allclose(log_probs, expected.numpy(), atol=1e-5)
    assert env.pending_episodes == []


def test_labels_follow_bradley_terry():
    """σ of the difference between the two scores, tallied by which of two words was written."""
    env = word_env(64, max_new_tokens=1, reward=lambda p, r: [1.5 * ("good" in text) for text in r], prompts=[[3]])
    logits = env.token_reward.reference.model.get_output_embeddings()
    torch.manual_seed(0)
    with torch.no_grad():
        logits.weight.zero_()  # every token alike
    pairs = make_pairs(env, 6000, np.random.default_rng(1))
    good = np.array([e.response_ids[0] == 3 for e in pairs.episodes]).reshape(-1, 2)
    decided = good[:, 0] != good[:, 1]
    rate = good[decided, 0].mean()
    assert decided.sum() > 300
    assert abs(rate - 1 / (1 + np.exp(-1.5))) < 3 * np.sqrt(0.15 / decided.sum())


def test_given_preferences_are_read_as_they_are():
    given = preferences()
    agent = make_dpo(preferences=given, n_episodes=12)
    buffer = collect(agent)
    tokenizer = agent.engine.tokenizer
    seen = []
    for chosen, rejected in zip(buffer.episodes[::2], buffer.episodes[1::2], strict=True):
        texts = tokenizer.batch_decode([chosen.response_ids, rejected.response_ids], skip_special_tokens=True)
        seen.append((tokenizer.decode(prompt_of(chosen)), *texts))
        assert chosen.response_ids[-1] == rejected.response_ids[-1] == tokenizer.eos_token_id
    assert sorted(seen) == sorted((p.prompt, p.chosen, p.rejected) for p in given)
    assert agent.num_timesteps == buffer.num_tokens
    orders = [tuple(map(tuple, seen))]
    for _ in range(3):  # each pass goes through all of them, in another order
        agent._snapshot = None
        orders.append(tuple(tuple(e.input_ids) for e in agent._next_pairs(6).episodes[::2]))
    assert len(set(orders)) == 4
    assert len({frozenset(order) for order in orders[1:]}) == 1


def test_the_actions_of_a_dialogue_are_the_assistants_tokens():
    """log π sums over them alone, and the loss is that of these sums."""
    tokenizer = chat_tokenizer(CHATML)
    reference, model = (tiny.tiny_gpt2(len(tokenizer), n_positions=256, seed=seed) for seed in (0, 3))
    hi = (Message("user", "hi"),)
    env = TokenVectorEnv(
        1,
        prompts=[hi],
        reference=Shared(reference),
        reward=word_reward,
        tokenizer=tokenizer,
        max_new_tokens=4,
        kl_coef=0.2,
    )
    further = (Message("assistant", "ab"), Message("tool", "x"), Message("user", "go"), Message("assistant", "c"))
    agent = make_dpo(
        env,
        preferences=[Preference(hi, further, "d")],
        n_episodes=2,
        batch_size=2,
        policy_kwargs={"model": Shared(model)},
    )
    chosen, rejected = collect(agent).episodes
    start = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    between = "\n<|im_start|>tool\nx<|im_end|>\n<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n"
    pieces = [(start, 0), ("ab<|im_end|>", 1), (between, 0), ("c<|im_end|>", 1)]
    sums = []
    for episode, parts in ((chosen, pieces), (rejected, [(start, 0), ("d<|im_end|>", 1)])):
        rows = [(tokenizer(text, add_special_tokens=False).input_ids, acted) for text, acted in parts]
        assert episode.input_ids.tolist() == [token for row, _ in rows for token in row]
        assert episode.action_mask.tolist() == [bool(acted) for row, acted in rows for _ in row]
        ids = torch.from_numpy(episode.input_ids)
        with torch.no_grad():
            tables = [lm(ids[None]).logits[0].log_softmax(-1) for lm in (model, reference)]
        at = [i for i, acted in enumerate(episode.action_mask) if acted]
        sums.append([sum(float(table[i - 1, ids[i]]) for i in at) for table in tables])
    (own, ref), (own_other, ref_other) = sums
    h = own - ref - (own_other - ref_other)
    metrics = minibatch_gradient(agent, np.arange(2))
    assert metrics["train/loss"] == pytest.approx(np.log1p(np.exp(-0.2 * h)), rel=1e-4)
    assert metrics["train/margin"] == pytest.approx(0.2 * h, rel=1e-4)
    with pytest.raises(ValueError, match="response 0: expected a dialogue from a message of the assistant"):
        make_dpo(env, preferences=[Preference(hi, hi, "d")])


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_gradient_is_the_papers(loss):
    """DPO: −β·σ(−βh)·(∇log π(y_c) − ∇log π(y_r)); IPO: 2·(h − 1/2β)·(…)."""
    agent = make_dpo(loss=loss, beta=0.3, policy_kwargs={"model": Shared(tiny.tiny_gpt2(seed=2))})
    buffer = collect(agent)
    metrics = minibatch_gradient(agent, np.arange(16))
    found = [p.grad.clone() for p in agent.policy.model.parameters()]
    agent.policy.optimizer.zero_grad()
    evaluation = agent.policy.evaluate_episodes(buffer.input_ids, buffer.action_mask)
    own, ref = evaluation.log_probs.sum(1), buffer.ref_log_probs.sum(1)
    h = ((own - ref)[::2] - (own - ref)[1::2]).detach()
    slope = -0.3 * torch.sigmoid(-0.3 * h) if loss == "sigmoid" else 2 * (h - 1 / 0.6)
    (slope * (own[::2] - own[1::2])).mean().backward()
    for one, parameter in zip(found, agent.policy.model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-5, rtol=1e-4)
    value = torch.nn.functional.softplus(-0.3 * h) if loss == "sigmoid" else (h - 1 / 0.6).square()
    assert metrics["train/loss"] == pytest.approx(float(value.mean()), rel=1e-4)
    assert metrics["train/margin"] == pytest.approx(0.3 * float(h.mean()), abs=1e-4)
    assert metrics["train/accuracy"] == pytest.approx(float((h > 0).float().mean()))


def test_dpo_begins_at_log_2_and_learns_nothing_but_from_pairs():
    agent = make_dpo(word_env(kl_in="loss"))
    collect(agent)
    metrics = minibatch_gradient(agent, np.arange(16))
    assert metrics["train/loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert metrics["train/accuracy"] == pytest.approx(0.5, abs=0.3)
    assert not any("kl_loss" in name or "value" in name for name in metrics)


@pytest.mark.parametrize("given", [False, True])
def test_micro_batches_change_nothing(given):
    agents = []
    for size in (None, 4):
        env = word_env(reference=Shared(tiny.tiny_llama(seed=1)))
        agents.append(make_dpo(env, micro_batch_size=size, preferences=preferences() if given else None))
        agents[-1].learn(1)
    for one, other in zip(agents[0].policy.parameters(), agents[1].policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert agents[0]._n_updates == 2


class StopAt(BaseCallback):
    """Ends the run at some iteration, before its update."""

    def _on_step(self):
        return self.n_calls != 2


@pytest.mark.parametrize("given", [False, True])
def test_interrupted_saved_loaded_and_continued_is_never_stopped(given, tmp_path):
    comparisons = preferences() if given else None
    never = make_dpo(preferences=comparisons, n_epochs=2).learn(300)
    agent = make_dpo(preferences=comparisons, n_epochs=2)
    agent.learn(300, callback=StopAt())
    assert 0 < agent.num_timesteps < 300
    agent.save(tmp_path / "agent")
    torch.manual_seed(99)
    loaded = DPO.load(tmp_path / "agent", word_env(), device="cpu", preferences=comparisons)
    assert (loaded.beta, loaded.loss, loaded.label_smoothing) == (None, "sigmoid", 0.0)
    loaded.learn(300 - loaded.num_timesteps, reset_num_timesteps=False)
    assert loaded.num_timesteps == never.num_timesteps
    for one, other in zip(never.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    if given:
        forgetful = DPO.load(tmp_path / "agent", word_env(), device="cpu")
        with pytest.raises(ValueError, match="expected 6 preferences, as learning began with, got none"):
            forgetful.learn(1)


@pytest.mark.parametrize(("loss", "rise"), [("sigmoid", 0.5), ("ipo", 0.1)])
def test_dpo_raises_what_it_is_to_raise(loss, rise, tmp_path):
    """Better responses than π_ref's, by the environment's reward; and a folder that Transformers reads."""
    env = word_env(32, kl_coef=0.5, reward=lambda p, r: 4 * np.array(word_reward(p, r)))
    agent = make_dpo(env, n_episodes=64, batch_size=32, n_epochs=2, learning_rate=3e-3, loss=loss)
    judge = TokenPPO("LMPolicy", env, n_episodes=128, seed=1, device="cpu")
    before = collect(judge).rewards.sum(dim=1).mean()
    agent.learn(3000)
    judge.policy.model.load_state_dict(agent.policy.model.state_dict())
    after = collect(judge).rewards.sum(dim=1).mean()
    assert after > before + rise
    agent.save_pretrained(tmp_path / "model")
    assert (
        type(judge.policy.model).from_pretrained(tmp_path / "model").config.n_embd == agent.policy.model.config.n_embd
    )


def population_gradient(toy, model, **overrides):
    """Largest entry of the gradient of DPO's expected loss, over all pairs and both labels, at `model`."""
    env = toy.env(64)
    agent = DPO("LMPolicy", env, policy_kwargs={"model": Shared(model), "use_cache": False}, device="cpu", **overrides)
    count = len(toy.strings)
    rows = torch.cat([torch.zeros(count, 1, dtype=torch.int64), toy.strings], dim=1)
    acted = (torch.arange(rows.shape[1]) >= 1).expand_as(rows)
    own = agent.policy.evaluate_episodes(rows, acted).log_probs.sum(1).double()
    ref = torch.from_numpy(toy.log_probs(toy.reference))
    h = (own - ref)[:, None] - (own - ref)[None, :]  # (64, 64)
    rewards = torch.from_numpy(toy.rewards)
    wins = torch.sigmoid(rewards[:, None] - rewards[None, :])
    loss = -(wins * torch.nn.functional.logsigmoid(agent._beta * h))
    (ref.exp()[:, None] * ref.exp()[None, :] * loss).sum().backward()
    return float(agent.policy.model.table.weight.grad.abs().max())


def test_the_optimum_of_rl_is_that_of_dpo():
    """At π* the gradient of its expected loss is 0; at π_ref, and at π* of another β, it is not."""
    toy = make_tabular_toy(0)
    optimum = tabular_model(toy.optimum, 4, 3)
    assert population_gradient(toy, optimum) < 1e-6
    assert population_gradient(toy, toy.reference) > 1e-3
    assert population_gradient(toy, optimum, beta=0.4) > 1e-3


@UNCACHED
@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_comes_close_to_the_toys_optimum(seed):
    """16,000 pairs drawn from π_ref, a bit each: noisier than rewards. (Seen: J* − J of .007 and .017, from .3.)"""
    toy = make_tabular_toy(seed)
    schedule = LinearSchedule(0.1, 0.0, 1.0)
    agent = DPO(
        "LMPolicy", toy.env(256), schedule, n_episodes=256, seed=seed, device="cpu", policy_kwargs={"use_cache": False}
    )
    agent.learn(96_000)
    missed, variation = toy.best - toy.objective(agent.policy.model), toy.total_variation(agent.policy.model)
    print(f"DPO, seed {seed}: J* − J = {missed:.4f}, TV = {variation:.4f}, {agent.num_timesteps:,} tokens")
    assert toy.objective(toy.reference) < toy.best - 0.25
    assert missed < 0.03
    assert variation < 0.12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_episodes": 15}, r"expected an even n_episodes \(responses, two a pair\), got 15"),
        ({"micro_batch_size": 3}, "expected an even micro_batch_size"),
        ({"loss": "hinge"}, "expected loss to be one of .*, got 'hinge'"),
        ({"beta": 0.0}, "expected beta > 0, got 0.0"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "expected label_smoothing .* got 0.1 with 'ipo'"),
        ({"preferences": []}, "expected at least one preference, got none"),
        ({"preferences": [Preference("the", "good " * 90, "bad")]}, r"π_ref's context\), got 92 in the chosen"),
        ({"policy_kwargs": {"critic": "separate"}}, "expected no critic in the policy_kwargs of DPO"),
        ({"env": {"kl_coef": 0.0}}, "expected beta=… or an environment with kl_coef > 0, got kl_coef=0.0"),
        ({"env": {"kl_coef": 0.0, "reference": None, "vocab_size": 29}}, "got one without: DPO begins from π_ref"),
    ],
)
def test_wrong_arguments_say_what_was_expected(overrides, message):
    overrides = dict(overrides)
    env = word_env(**overrides.pop("env", {}))
    with pytest.raises(ValueError, match=message):
        make_dpo(env, **overrides)


# -- best of n -----------------------------------------------------------------------------------------------------


def test_best_of_n_takes_the_best_of_n():
    env = word_env(5)
    agent = BestOfN("LMPolicy", env, n=6, seed=0)
    assert agent.learn(1000) is agent
    prompts = [[3, 4], [5], [3, 4]]
    best = agent.generate(prompts)
    assert best.all_scores.shape == (3, 6)
    np.testing.assert_array_equal(best.scores, best.all_scores.max(axis=1))
    assert [prompt_of(e) for e in best.episodes] == prompts
    np.testing.assert_allclose(env.score_episodes(best.episodes).scores, best.scores, atol=1e-6)
    np.testing.assert_allclose(word_reward(best.prompts, best.responses), best.scores, atol=1e-6)
    again = BestOfN("LMPolicy", SB3VecEnv(word_env(5)), n=6, seed=0).generate(prompts)
    assert again.responses == best.responses
    assert agent.generate(prompts).responses != best.responses
    assert agent.generate(["good film", "the"]).prompts == ["good film", "the"]


@UNCACHED
@pytest.mark.parametrize("n", [1, 4])
def test_best_of_ns_score_is_that_of_the_order_statistic(n):
    """E[max of n draws from π_ref], by enumeration."""
    toy = make_tabular_toy(0)
    figures = BestOfN("LMPolicy", toy.env(512), n=n, seed=0).evaluate(1500)
    order = np.argsort(toy.rewards)
    cumulative = np.cumsum(np.exp(toy.log_probs(toy.reference))[order]) ** n
    exact = float((np.diff(cumulative, prepend=0) * toy.rewards[order]).sum())
    assert figures.score == pytest.approx(exact, abs=0.05)
    assert figures.kl == best_of_n_kl(n)
    assert figures.tokens == 1500 * n * 3
    assert (figures.score > figures.reference_score) == (n > 1)


def test_best_of_n_says_what_it_expects():
    with pytest.raises(ValueError, match="expected n >= 1, got 0"):
        BestOfN("LMPolicy", word_env(), n=0)
    with pytest.raises(ValueError, match="got one without: BestOfN begins from π_ref"):
        BestOfN("LMPolicy", word_env(reference=None, kl_coef=0.0, vocab_size=29))
    with pytest.raises(TypeError, match="expected a TokenVectorEnv or the id of one, got TokenEnv"):
        BestOfN("LMPolicy", TokenEnv(**word_settings()))
    with pytest.raises(ValueError, match="expected at least one prompt, got none"):
        BestOfN("LMPolicy", word_env()).generate([])
