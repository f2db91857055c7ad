# %% [markdown]
# # Lesson 7: The whole loop
#
# **Question.** Rewards, advantages, the clip: put together they are PPO. How does one know that a program of it is
# right?
#
# You need: lessons 3 to 6. Time: 60 minutes of reading, 30 seconds of computing.

# %%
import copy

import torch
from torch import nn
from torch.distributions import Categorical

import rlhf_gym.functional as F
from rlhf_gym.envs import tabular_task
from rlhf_gym.lessons import begin, check, compare, plot

begin(7)

# %% [markdown]
# ## One iteration in eight steps
#
# 1. Take prompts x.
# 2. Write a response y to each, token by token, with the policy of now. It is π_old from here on.
# 3. Score whole responses: r_φ(x, y).
# 4. Keep log π_old and log π_ref of each token.
# 5. Make the rewards of tokens: the penalty at each, the score at the last.
# 6. Make advantages with the critic, by GAE.
# 7. Take a few epochs of minibatches: the clipped loss for the policy, the squared error for the critic.
# 8. Throw the rollout away, and begin again.
#
# The four exercises are steps 5, 6 and 7: the rewards, the advantages, the loss, and the step of one minibatch. The
# rest is written below. The task is the toy of lesson 4: one prompt, 4 tokens, responses of 3 tokens. Its optimum J* is
# known. So we can check whether the program is right.
#
# Tables have the shape (N, T): N responses of T tokens. All responses have the same length here. So no mask is needed.
#
# ## Exercise 7a: the rewards of tokens
#
# `log_prob` and `ref_log_prob` are log π_old and log π_ref of each token, shape (N, T). `score` has the shape (N,).
# Return the rewards, shape (N, T): the penalty at every token, plus the score at the last one.


# %% Exercise 7a
def token_rewards(log_prob, ref_log_prob, score, beta):
    rewards = ...  # (N, T)
    rewards[:, -1] += ...
    return rewards


# %% Solution 7a [markdown]
# <details><summary>Solution 7a</summary>
#
# ```python
# def token_rewards(log_prob, ref_log_prob, score, beta):
#     rewards = -beta * (log_prob - ref_log_prob)  # (N, T)
#     rewards[:, -1] += score
#     return rewards
# ```
#
# </details>

# %% Gate 7a
check("7a", token_rewards=token_rewards)

# %% [markdown]
# ## Exercise 7b: advantages, and targets of the critic
#
# `F.gae(rewards, values, mask, gamma=…, gae_lambda=…)` is the function of lesson 5 for tables. It returns two tables:
# the advantages Â_t, and Â_t + V(s_t). The latter is what the critic learns to predict. Which γ does RLHF use
# (lesson 0)?


# %% Exercise 7b
def advantages_and_targets(rewards, values):
    everywhere = torch.ones_like(rewards)  # (N, T): every place is a token
    advantage, target = F.gae(..., ..., everywhere, gamma=..., gae_lambda=0.95)
    return advantage, target


# %% Solution 7b [markdown]
# <details><summary>Solution 7b</summary>
#
# ```python
# def advantages_and_targets(rewards, values):
#     everywhere = torch.ones_like(rewards)  # (N, T): every place is a token
#     advantage, target = F.gae(rewards, values, everywhere, gamma=1.0, gae_lambda=0.95)
#     return advantage, target
# ```
#
# With γ < 1 the rewards of tokens would no longer add up to the score minus β·KL.
#
# </details>

# %% Gate 7b
check("7b", advantages_and_targets=advantages_and_targets)

# %% [markdown]
# ## Exercise 7c: the loss
#
#     loss = policy loss + ½ · value loss
#
# The policy loss is that of lesson 6 with ε = .2. The value loss is the mean of (V − target)². Many programs also
# subtract c·entropy. That is not needed here: −β·log π is part of the reward (lesson 4).


# %% Exercise 7c
def ppo_loss(log_prob, old_log_prob, advantage, value, target):
    policy_loss = ...
    value_loss = ...
    return policy_loss + 0.5 * value_loss


# %% Solution 7c [markdown]
# <details><summary>Solution 7c</summary>
#
# ```python
# def ppo_loss(log_prob, old_log_prob, advantage, value, target):
#     ratio = torch.exp(log_prob - old_log_prob)  # (N, T)
#     policy_loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
#     value_loss = ((value - target) ** 2).mean()
#     return policy_loss + 0.5 * value_loss
# ```
#
# </details>

# %% Gate 7c
check("7c", ppo_loss=ppo_loss)

# %% [markdown]
# ## Exercise 7d: one step
#
# `policy(ids)` returns log π of each token of the responses, and V before each token, as tables. The other tensors come
# from the rollout, and no gradient goes through them. PyTorch *adds* gradients to what is there. So a step has three
# lines: clear the gradients, go backward from the loss, let the optimizer step.


# %% Exercise 7d
def minibatch_step(policy, optimizer, ids, old_log_prob, advantage, target):
    log_prob, value = policy(ids)
    loss = ...
    ...  # three lines
    return loss.item()


# %% Solution 7d [markdown]
# <details><summary>Solution 7d</summary>
#
# ```python
# def minibatch_step(policy, optimizer, ids, old_log_prob, advantage, target):
#     log_prob, value = policy(ids)
#     loss = ppo_loss(log_prob, old_log_prob, advantage, value, target)
#     optimizer.zero_grad()
#     loss.backward()
#     optimizer.step()
#     return loss.item()
# ```
#
# </details>

# %% Gate 7d
check("7d", minibatch_step=minibatch_step)

# %% [markdown]
# ## The rest of the program
#
# The actor is a language model, and the critic one more output of its last layer. The environment adds no penalty,
# `kl_coef=0.0`, because step 5 does it.


# %%
class ActorCritic(nn.Module):
    def __init__(self, reference):
        super().__init__()
        self.model = copy.deepcopy(reference).requires_grad_(True)  # the policy begins as π_ref
        self.critic = nn.Linear(reference.config.hidden_size, 1)
        nn.init.zeros_(self.critic.weight)
        nn.init.zeros_(self.critic.bias)

    def forward(self, ids):
        """log π of each token of the responses, and V before it, (B, T) each. ids: prompt and response, (B, 1 + T)."""
        hidden = self.model.get_decoder()(input_ids=ids[:, :-1]).last_hidden_state  # (B, T, H)
        log_pi = torch.log_softmax(self.model.get_output_embeddings()(hidden), dim=-1)  # (B, T, V)
        return log_pi.gather(-1, ids[:, 1:, None])[..., 0], self.critic(hidden)[..., 0]


@torch.no_grad()
def rollout(env, policy, length=3):
    """Steps 1 to 3: prompts and responses, (N, 1 + T), and their scores, (N,)."""
    observation, _ = env.reset()
    ids = torch.from_numpy(observation["input_ids"][:, :1]).long()  # (N, 1): the prompts
    for _ in range(length):
        action = Categorical(logits=policy.model(input_ids=ids).logits[:, -1]).sample()  # (N,)
        _, reward, terminated, _, _ = env.step(action.numpy())
        ids = torch.cat([ids, action[:, None]], dim=1)
    assert terminated.all()
    return ids, torch.from_numpy(reward).float()  # the last step's reward is the score


def train(updates, learning_rate, rewards_of=token_rewards, advantages_of=advantages_and_targets, epochs=4):
    """The policy after `updates` iterations, and a row of numbers for each."""
    torch.manual_seed(0)
    env = task.env(128, kl_coef=0.0, reference=None, reward_timing="step")
    policy = ActorCritic(task.reference)
    reference = ActorCritic(task.reference)
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    history = []
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - update / updates)  # falls to 0
        ids, score = rollout(env, policy)
        with torch.no_grad():
            old_log_prob, value = policy(ids)  # (N, T) each
            ref_log_prob, _ = reference(ids)
        rewards = rewards_of(old_log_prob, ref_log_prob, score, task.beta)  # (N, T)
        advantage, target = advantages_of(rewards, value)  # (N, T) each
        for _ in range(epochs):
            for rows in torch.randperm(len(ids)).tensor_split(4):
                minibatch_step(policy, optimizer, ids[rows], old_log_prob[rows], advantage[rows], target[rows])
        with torch.no_grad():
            step = policy(ids)[0] - old_log_prob  # (N, T): log ratios after the steps
        history.append(
            {
                "score": float(score.mean()),
                "KL to π_ref": float((old_log_prob - ref_log_prob).sum(1).mean()),
                "entropy": float(-old_log_prob.sum(1).mean()),
                "clipped": float(((step.exp() - 1).abs() > 0.2).float().mean()),
                "J": task.objective(policy.model),
            }
        )
    return policy, history


task = tabular_task(seed=0)
print(f"J(π_ref) = {task.objective(task.reference):.3f}, J* = {task.best:.3f}")

# %% [markdown]
# ## Exercise 7e: train
#
# Call `train(updates, learning_rate)`, which returns the policy and its history. Find numbers of your own: the gate
# wants J* − J < .01. π_ref is .33 away, so a program that does nothing does not pass. Fifty updates take a few seconds.

# %% Exercise 7e
policy, history = ..., ...

# %% Solution 7e [markdown]
# <details><summary>Solution 7e</summary>
#
# ```python
# policy, history = train(updates=60, learning_rate=0.05)
# ```
#
# </details>

# %% Gate 7e
check("7e", policy=policy, task=task)

# %%
for update in range(0, len(history), max(1, len(history) // 6)):
    row = history[update]
    print(f"update {update:3}  " + "  ".join(f"{name} {value:.3f}" for name, value in row.items()))
print(f"J* − J = {task.best - task.objective(policy.model):.5f}")
print(f"KL(π*‖π_ref) = {task.kl(task.optimum):.3f}, total variation from π* {task.total_variation(policy.model):.4f}")
plot("training", range(len(history)), {name: [row[name] for row in history] for name in ("score", "J")}, "update", "")

# %% [markdown]
# A healthy run looks like this: the score rises, the KL grows and levels off, the entropy falls a little. `clipped` is
# the share of tokens that have left 1 ± ε at the end of an update. It depends on your learning rate. At .05 the clip
# stops most tokens in the first update, and few later. At .01 it stops hardly any. The total variation is half
# of the sum of |π − π*|: 0 means equal, 1 means nothing in common. docs/monitoring.md has a picture of healthy runs on
# the reviews, with what to look for in each curve.
#
# **Change one line.** Leave out `optimizer.zero_grad()` in your answer to 7d (and put it back afterwards). Train again
# with `train(40, 0.05)`, without the gate. Old gradients add up: the score is higher than before, and J is lower than
# that of π_ref.
#
# ## Three wrong programs
#
# Each has one wrong line. Nothing crashes. "three scores" has the score at every token.
#
# **Prediction.** Which program has the highest mean score in the end: "yours", "no penalty", "three scores" or
# "γ = .7"?

# %% Prediction
highest_score = ...


# %%
def no_penalty(log_prob, ref_log_prob, score, beta):
    return token_rewards(log_prob, ref_log_prob, score, 0.0)


def three_scores(log_prob, ref_log_prob, score, beta):
    return token_rewards(log_prob, ref_log_prob, 0 * score, beta) + score[:, None]  # at every token


def discounted(rewards, values):
    return F.gae(rewards, values, torch.ones_like(rewards), gamma=0.7, gae_lambda=0.95)


trained = {
    "yours": policy,
    "no penalty": train(40, 0.05, rewards_of=no_penalty)[0],
    "three scores": train(40, 0.05, rewards_of=three_scores)[0],
    "γ = .7": train(40, 0.05, advantages_of=discounted)[0],
}
scores = {}
for name, one in trained.items():
    pi = task.probabilities(one.model)  # (64,)
    scores[name] = float((pi * task.rewards).sum())
    print(f"{name:13} score {scores[name]:.3f}   KL {task.kl(pi):.3f}   J* − J {task.best - task.objective(pi):.4f}")
compare(highest_score, max(scores, key=scores.get))

# %% [markdown]
# Two of the three have a *higher* score than the right program. So the score that one watches in training says little
# about the program. J says it, and J* says where it should end. The program with γ = .7 looks nearly right.
#
# With a language model nobody knows J*. So try a program first on a task where J* is known. The agents of `rlhf_gym`
# are tested in this way.
#
# ## The same in a real program
#
# `scripts/ppo_single_file.py` of the repository is this loop on the reviews of lesson 0, in the manner of CleanRL:
#
# | here | there |
# |---|---|
# | `rollout` | the loop `for step in range(args.num_steps)`; episodes end at different steps |
# | `token_rewards` | `envs.unwrapped.attach(agent)`: the environment asks for log π, and its rewards have the penalty |
# | `advantages_and_targets` | the loop under "GAE"; `goes_on` is 0 where an episode has ended |
# | `ppo_loss` | `policy_loss` and `value_error`; advantages are whitened, and the critic's change is clipped too |
# | `minibatch_step` | the last lines of the loop over `rows`; the gradient's length is limited |
#
# Run it, and watch score and KL: `python scripts/ppo_single_file.py`. The agent `TokenPPO` is the same with more around
# it: `rlhf-gym run`.
