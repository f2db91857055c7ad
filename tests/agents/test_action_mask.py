"""Episodes in which others speak between the actions: what is learned from them is learned from the actions alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_gym.agents import CISPO, EntropyBonus, EpisodeBuffer, SequenceClip, TokenPPO
from rlhf_gym.agents.rollout import evaluated, values_of
from rlhf_gym.envs import Episode, TokenVectorEnv
from rlhf_gym.functional import gae
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.loading import Shared
from tests import tiny
from tests.toy import minibatch_gradient, word_settings

ROWS = [
    # prompt, then action or another's token in any order; the first and the last row end with another's
    ([3, 9], [0, 1, 0, 0, 1, 1, 0]),
    ([4], [1, 1, 1]),
    ([5, 6, 7], [1, 0, 1]),
    ([8, 3], [0, 0, 1, 0]),
]


def episodes_with_holes(seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    made = []
    for number, (prompt, acted) in enumerate(ROWS):
        ids = np.array([*prompt, *rng.integers(3, 20, size=len(acted))])
        mask = np.array([*[0] * len(prompt), *acted]) != 0
        made.append(Episode(number, 0, ids, mask, "length"))
    return made


def without_others(episodes: list[Episode]) -> list[Episode]:
    """The same prompts and actions, and nothing between or after them."""
    return [Episode.of_response(ROWS[e.number][0], e.response_ids, e.finish_reason, number=e.number) for e in episodes]


def agent_for(critic: str = "shared", **overrides) -> TokenPPO:
    settings = {"reward_timing": "deferred", "kl_coef": 0.3, "max_new_tokens": 8}
    env = TokenVectorEnv(4, **word_settings(**settings | overrides))
    policy = {"model": Shared(tiny.tiny_gpt2(seed=2)), "critic": critic}
    settings = {"n_episodes": 4, "batch_size": 4, "seed": 0, "device": "cpu", "regularisers": [EntropyBonus(0.01)]}
    agent = TokenPPO(env=env, policy_kwargs=policy, **settings)
    torch.nn.init.normal_(agent.policy.value_head.linear.weight)
    agent._setup_learn(1)
    return agent


def rollout(agent: TokenPPO, episodes: list[Episode]) -> EpisodeBuffer:
    """What collecting would leave, had these episodes been played."""
    said = evaluated(agent.policy, episodes)
    earned = agent.engine.score_episodes(episodes, said.log_probs)
    buffer = EpisodeBuffer(episodes, said.log_probs, said.values)
    buffer.set_rewards(earned.rewards, earned.ref_log_probs)
    buffer.compute_advantages(gamma=0.9, gae_lambda=0.8, normalize=True)
    agent.buffer = buffer
    return buffer


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_actions_are_evaluated_as_in_each_row_alone(critic):
    agent, episodes = agent_for(critic), episodes_with_holes()
    policy = agent.policy
    said = evaluated(policy, episodes)
    earned = agent.engine.token_reward(episodes, said.log_probs)
    reference = agent.engine.token_reward.reference.model
    separate = values_of(policy, episodes)
    for row, episode in enumerate(episodes):
        ids = torch.from_numpy(episode.input_ids)[None]  # (1, L)
        actions = np.flatnonzero(episode.action_mask)  # (T,)
        with torch.no_grad():
            log_pi = policy.model(ids).logits[0].log_softmax(-1)[actions - 1]  # (T, V)
            log_ref = reference(ids).logits[0].log_softmax(-1)[actions - 1]  # (T, V)
            trunk = policy.value_trunk or policy.parts.module
            values = policy.value_head(trunk(ids).last_hidden_state)[0, actions - 1]  # (T,)
        taken = ids[0, actions][:, None]  # (T, 1)
        own = log_pi.gather(1, taken)[:, 0].numpy()  # (T,)
        ref = log_ref.gather(1, taken)[:, 0].numpy()  # (T,)
        n = len(actions)
        np.testing.assert_allclose(said.log_probs[row], own, atol=1e-5)
        np.testing.assert_allclose(said.values[row], values.numpy(), atol=1e-5)
        np.testing.assert_allclose(separate[row], values.numpy(), atol=1e-5)
        np.testing.assert_allclose(said.entropy[row], -(log_pi.exp() * log_pi).sum(-1).numpy(), atol=1e-5)
        np.testing.assert_allclose(earned.ref_log_probs[row, :n], ref, atol=1e-5)
        np.testing.assert_allclose(earned.log_ratios[row, :n], own - ref, atol=1e-5)
        expected = -0.3 * (own - ref)  # (T,)
        expected[-1] += earned.scores[row]  # on the last action, not on the last token
        np.testing.assert_allclose(earned.rewards[row, :n], expected, atol=1e-5)
        assert (earned.rewards[row, n:] == 0).all()
    alone = [agent.engine.token_reward([e], None).scores[0] for e in episodes]
    np.testing.assert_allclose(earned.scores, alone, atol=1e-6)


def test_a_reward_that_reads_text_sees_what_others_said():
    """The prompt is what stands before the first action; the rest, others' tokens included, is the response."""
    seen = []

    def reward(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return np.zeros(len(prompts))

    agent, (episode, *_) = agent_for(reward=reward), episodes_with_holes()
    agent.engine.token_reward([episode], None)
    decode = agent.engine.tokenizer.decode
    assert seen == [(decode(episode.input_ids[:3]), decode(episode.input_ids[3:]))]


def test_advantages_of_the_buffer_count_actions():
    agent, episodes = agent_for(), episodes_with_holes()
    buffer = rollout(agent, episodes)
    buffer.compute_advantages(gamma=0.9, gae_lambda=0.8, normalize=False)
    wide = torch.zeros(2, *buffer.action_mask.shape)  # rewards and values where they stand in the rows, (2, E, L)
    for table, packed in zip(wide, (buffer.rewards, buffer.values), strict=True):
        table[buffer.action_mask] = packed[buffer.mask]
    advantages, _ = gae(wide[0], wide[1], buffer.action_mask, gamma=0.9, gae_lambda=0.8)  # (E, L)
    torch.testing.assert_close(advantages[buffer.action_mask], buffer.advantages[buffer.mask])


@pytest.mark.parametrize(
    ("kl_in", "surrogate"), [("reward", None), ("loss", None), ("reward", SequenceClip(0.1)), ("loss", CISPO(1.0))]
)
def test_tokens_that_are_no_actions_change_nothing_but_through_the_state(kl_in, surrogate):
    """With a policy whose state is always the same, an update with them is the update without them."""
    found = []
    for cut in (lambda episodes: episodes, without_others):
        agent = agent_for(kl_in=kl_in, reward=lambda prompts, responses: np.arange(4.0)[: len(prompts)])
        if surrogate is not None:
            agent.surrogate = surrogate
        with torch.no_grad():  # the last hidden state is the bias, whatever was read
            norm = agent.policy.model.transformer.ln_f
            norm.weight.zero_()
            norm.bias.normal_(generator=torch.Generator().manual_seed(0))
        reference = agent.engine.token_reward.reference.model.transformer.ln_f
        with torch.no_grad():
            reference.weight.zero_()
            reference.bias.normal_(generator=torch.Generator().manual_seed(1))
        buffer = rollout(agent, cut(episodes_with_holes()))
        agent.policy.set_training_mode(True)
        metrics = minibatch_gradient(agent, np.arange(4))
        found.append((buffer, metrics, norm.bias.grad, agent.policy.value_head.linear.weight.grad))
    (with_others, metrics, bias, head), (alone, expected_metrics, expected_bias, expected_head) = found
    assert with_others.num_tokens == alone.num_tokens == 3 + 3 + 2 + 1
    for name in ("log_probs", "values", "rewards", "ref_log_probs", "advantages", "returns"):
        torch.testing.assert_close(getattr(with_others, name), getattr(alone, name), msg=name)
    assert metrics == pytest.approx(expected_metrics, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(bias, expected_bias, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(head, expected_head, atol=1e-6, rtol=1e-4)


def test_what_stands_after_the_last_action_changes_no_gradient():
    agent = agent_for()
    episodes = episodes_with_holes()
    buffer = rollout(agent, episodes)
    agent.policy.set_training_mode(True)
    metrics = minibatch_gradient(agent, np.arange(4))
    gradients = [p.grad.clone() for p in agent.policy.parameters() if p.grad is not None]
    for row, episode in enumerate(episodes):
        last = int(np.flatnonzero(episode.action_mask)[-1])
        buffer.input_ids[row, last + 1 :] = 11
    again = minibatch_gradient(agent, np.arange(4))
    assert again == pytest.approx(metrics, abs=1e-6)
    for one, other in zip(gradients, (p.grad for p in agent.policy.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_log_probs_of_a_mask_with_holes_are_those_of_the_whole_rows():
    model, episodes = tiny.tiny_gpt2(seed=2), episodes_with_holes()
    buffer = EpisodeBuffer(episodes, [np.zeros(e.response_length) for e in episodes], None)
    whole = token_log_probs(model, buffer.input_ids, buffer.lengths)  # (E, L)
    found = token_log_probs(model, buffer.input_ids, buffer.lengths, mask=buffer.action_mask)  # (E, L)
    torch.testing.assert_close(found, whole * buffer.action_mask)
