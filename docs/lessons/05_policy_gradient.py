# %% [markdown]
# # Lesson 5: The policy gradient, baselines and GAE
#
# **Question.** A response of three tokens got the score 1. Which of its tokens should become more likely, and how much?
#
# You need: lesson 4. Time: 50 minutes of reading, 10 seconds of computing.

# %%
import numpy as np

from rlhf_gym.envs import tabular_task
from rlhf_gym.lessons import begin, check, compare, plot

begin(5)

# %% [markdown]
# ## REINFORCE
#
# A policy is improved by steps along the gradient of J. Write R(y) for what a response earns, its score minus the
# penalty of lesson 3. R is a number: no gradient goes through it. Then
#
#     ∇J = ∇ Σ_y π(y)·R(y) = Σ_y π(y)·R(y)·∇log π(y) = E_π[R(y)·∇log π(y)]
#
# because ∇π = π·∇log π. The right side is a mean over the policy's own responses. So draw responses, and average
# R·∇log π. This is REINFORCE (Williams 1992).
#
# For a softmax, π = softmax(z), the gradient with respect to the logits z is simple. Let a be the index of what was
# drawn:
#
#     ∂ log π(a)/∂z_i = [i = a] − π_i
#
# [i = a] is 1 where i = a, and 0 elsewhere.
#
# ## Exercise 5a: by hand
#
# Three tokens, π = (.5, .3, .2). The second one was drawn, and R = 2. Work out R·∂log π/∂z, three numbers.

# %% Exercise 5a
gradient = ...  # a list of three numbers

# %% Solution 5a [markdown]
# <details><summary>Solution 5a</summary>
#
# ```python
# gradient = [-1.0, 1.4, -0.4]  # 2 · (0 − .5, 1 − .3, 0 − .2)
# ```
#
# They add up to 0: what one token gains the others lose.
#
# </details>

# %% Gate 5a
check("5a", gradient=gradient)

# %% [markdown]
# R was positive, so the drawn token becomes more likely. Had another token been drawn, that one would be pushed up,
# with the same R. Only the mean over many draws says which token is better.
#
# ## A baseline
#
# Subtract a number b from every R. The mean gradient stays the same:
#
#     E_π[b·∇log π] = b·Σ_y π(y)·∇log π(y) = b·∇ Σ_y π(y) = b·∇1 = 0
#
# This holds for any b that does not depend on the response drawn. So b may be chosen to make the noise small. A good
# one is the mean of R. What is left, R − b, is called the advantage Â: how much better this response was than expected.
#
# ## Exercise 5b: write the estimates
#
# `pi` has the shape (V,). `chosen`, shape (n,), are the indices drawn, and `reward`, shape (n,), is their R.
# Return one estimate of the gradient for each draw, shape (n, V).


# %% Exercise 5b
def estimates(pi, chosen, reward, baseline):
    one_hot = np.eye(len(pi))[chosen]  # (n, V): 1 where a token was drawn
    weight = ...  # (n,)
    direction = ...  # (n, V)
    return weight[:, None] * direction


# %% Solution 5b [markdown]
# <details><summary>Solution 5b</summary>
#
# ```python
# def estimates(pi, chosen, reward, baseline):
#     one_hot = np.eye(len(pi))[chosen]  # (n, V): 1 where a token was drawn
#     weight = reward - baseline  # (n,)
#     direction = one_hot - pi  # (n, V)
#     return weight[:, None] * direction
# ```
#
# </details>

# %% Gate 5b
check("5b", estimates=estimates)

# %% [markdown]
# Now measure the noise. The toy of lesson 4 has 64 responses. Here each response is one action, with a logit of its
# own. At the beginning π = π_ref: the penalty is 0, and R is the score. The scores lie between 0 and 2.
#
# A constant added to all scores says nothing new (lesson 1). `shift` adds one.
#
# **Prediction.** With `shift = 10`, how many times larger is the variance without a baseline than with one?

# %% Prediction
times_larger = ...

# %%
task = tabular_task(seed=0)
pi = task.probabilities(task.reference)  # (64,)
pi = pi / pi.sum()  # to the last digit
chosen = np.random.default_rng(0).choice(64, size=20_000, p=pi)


def noise(shift, baseline):
    """How far the mean of all estimates is from the gradient, and the variance of a single one, all logits together."""
    scores = task.rewards + shift  # (64,)
    exact = pi * (scores - (pi * scores).sum())  # (64,)
    found = estimates(pi, chosen, scores[chosen], baseline * (pi * scores).sum())  # (n, 64)
    return np.linalg.norm(found.mean(axis=0) - exact), found.var(axis=0).sum()


shift = 10.0
for name, share in {"no baseline": 0.0, "half the mean as baseline": 0.5, "the mean as baseline": 1.0}.items():
    error, variance = noise(shift, share)
    print(f"{name:26} error of the mean {error:.4f}   variance {variance:8.3f}")
compare(times_larger, noise(shift, 0.0)[1] / noise(shift, 1.0)[1])

# %% [markdown]
# All three have the same mean. Without a baseline hundreds of times as many responses are needed for the same accuracy.
#
# **Change one line.** Set `shift = 0.0`, and run the cell again. The baseline still helps, by a smaller factor.
#
# ## The others as baseline
#
# Nobody knows the mean of R at a prompt. Three ways to estimate it:
#
# - draw k responses to the prompt, and take the mean of the *other* k − 1: RLOO, REINFORCE leave-one-out;
# - draw k responses, take the mean of all k, and divide what is left by their standard deviation: GRPO;
# - a model that predicts it: a critic. It comes below.
#
# ## Exercise 5c: RLOO by hand
#
# Four responses to one prompt have R = (1, 2, 5, 8). Write the four advantages: R minus the mean of the other three.

# %% Exercise 5c
advantages = ...  # a list of four numbers

# %% Solution 5c [markdown]
# <details><summary>Solution 5c</summary>
#
# ```python
# advantages = [-4.0, -2.667, 1.333, 5.333]  # 1 − 15/3, 2 − 14/3, 5 − 11/3, 8 − 8/3
# ```
#
# </details>

# %% Gate 5c
check("5c", advantages=advantages)

# %% [markdown]
# Why not the mean of all four? It contains R of the response itself, so it depends on what was drawn. The estimate
# would be too small by the factor (k − 1)/k, here 3/4. Its direction is right on average.
#
# ## Which token?
#
# log π(y) is a sum over tokens. So every token may have a weight of its own. Two facts help:
#
# - A token cannot change what was earned before it. Its weight is the return G_t, what is earned from t on (lesson 0).
# - A baseline may depend on everything *before* the token. So take V(s_t), the return expected at s_t.
#
#     ∇J = E_π[Σ_t Â_t·∇log π(y_t|s_t)],   Â_t = G_t − V(s_t)
#
# With a score at the end alone and γ = 1, G_t is the score for every t. With the penalty charged token by token, G_t is
# the score minus the penalties from t on. The model V is called the critic. It is trained on the returns by regression.
#
# Â_t = G_t − V(s_t) waits for the end, and has the noise of all later tokens in it. The other extreme looks one step
# ahead, and believes the critic about the rest. That is the TD error:
#
#     δ_t = r_t + γ·V(s_{t+1}) − V(s_t),   with V = 0 after the end
#
# Generalised advantage estimation (GAE, Schulman et al. 2016) goes from one to the other, by λ between 0 and 1:
#
#     Â_t = δ_t + γ·λ·Â_{t+1},   with Â = 0 after the end
#
# ## Exercise 5d: by hand
#
# Three tokens: r = (0, 0, 1), V = (.5, .4, .3), γ = 1. Write the three advantages for λ = 0 and for λ = 1.

# %% Exercise 5d
with_lambda_0 = ...  # a list of three numbers
with_lambda_1 = ...  # a list of three numbers

# %% Solution 5d [markdown]
# <details><summary>Solution 5d</summary>
#
# ```python
# with_lambda_0 = [-0.1, -0.1, 0.7]  # 0 + .4 − .5, 0 + .3 − .4, 1 + 0 − .3
# with_lambda_1 = [0.5, 0.6, 0.7]  # 1 − .5, 1 − .4, 1 − .3
# ```
#
# With λ = 1 the values in between cancel: δ₁ + δ₂ + δ₃ = G₁ − V(s₁).
#
# </details>

# %% Gate 5d
check("5d", with_lambda_0=with_lambda_0, with_lambda_1=with_lambda_1)

# %% [markdown]
# There are two opinions on the first two tokens. With λ = 0 they are blamed: the critic expected less after each of
# them. With λ = 1 they are praised: the response ended well.
#
# ## Exercise 5e: GAE as a function
#
# Go from the last token to the first. `next_value` and `next_advantage` are V(s_{t+1}) and Â_{t+1}.


# %% Exercise 5e
def gae(rewards, values, gamma, lam):
    found = []
    next_value = 0.0
    next_advantage = 0.0
    for reward, value in zip(reversed(rewards), reversed(values)):
        delta = ...
        advantage = ...
        found.append(advantage)
        next_value = ...
        next_advantage = ...
    return found[::-1]


# %% Solution 5e [markdown]
# <details><summary>Solution 5e</summary>
#
# ```python
# def gae(rewards, values, gamma, lam):
#     found = []
#     next_value = 0.0
#     next_advantage = 0.0
#     for reward, value in zip(reversed(rewards), reversed(values)):
#         delta = reward + gamma * next_value - value
#         advantage = delta + gamma * lam * next_advantage
#         found.append(advantage)
#         next_value = value
#         next_advantage = advantage
#     return found[::-1]
# ```
#
# </details>

# %% Gate 5e
check("5e", gae=gae)

# %%
for lam in (0.0, 0.95, 1.0):
    print(f"λ = {lam:.2f}:", [round(a, 5) for a in gae([0.0, 0.0, 1.0], [0.5, 0.4, 0.3], 1.0, lam)])

# %% [markdown]
# ## Bias and variance
#
# In the toy everything can be summed over all 64 responses. So the mean and the variance of the estimate for the
# *first* token's logits are exact. Three critics are compared:
#
# - "true": V(s) is the mean score of the responses that begin with s;
# - "rough": the true one, wrong by a random number of standard deviation .3 at each state;
# - "zero": V = 0 everywhere, as before any training.
#
# **Prediction.** With the critic "zero", λ = 0 and a score at the end alone: which of the three tokens have an
# advantage that is not 0? Write their numbers as a list.

# %% Prediction
tokens_that_learn = ...

# %%
score = task.rewards  # (64,)
rewards = [np.zeros(64), np.zeros(64), score]  # of each token, in each of the 64 responses


def mean_after(t):
    """The mean score of all responses that begin with the same t tokens, (64,)."""
    groups = (pi * score).reshape(4**t, -1).sum(axis=1) / pi.reshape(4**t, -1).sum(axis=1)  # (4^t,)
    return np.repeat(groups, 64 // 4**t)


true = [mean_after(t) for t in range(3)]
errors = [np.repeat(np.random.default_rng(t).normal(0, 0.3, 4**t), 64 // 4**t) for t in range(3)]
critics = {
    "true": true,
    "rough": [value + error for value, error in zip(true, errors)],
    "zero": [np.zeros(64)] * 3,
}
first = np.arange(64) // 16  # the first token of each response
first_pi = pi.reshape(4, 16).sum(axis=1)  # (4,)
direction = np.eye(4)[first] - first_pi  # (64, 4)


def gradient_of_first_token(advantage):
    """The mean of the estimate, (4,), and its variance, all four logits together."""
    each = advantage[:, None] * direction  # (64, 4)
    mean = (pi[:, None] * each).sum(axis=0)
    return mean, (pi[:, None] * (each - mean) ** 2).sum()


right, _ = gradient_of_first_token(score)
print("critic  λ      bias/‖∇J‖   variance")
for name, critic in critics.items():
    for lam in (0.0, 0.5, 0.95, 1.0):
        mean, variance = gradient_of_first_token(gae(rewards, critic, 1.0, lam)[0])
        bias = np.linalg.norm(mean - right) / np.linalg.norm(right)
        print(f"{name:6}  {lam:.2f}   {bias:z8.3f}   {variance:8.3f}")
found = gae(rewards, critics["zero"], 1.0, 0.0)
compare(tokens_that_learn, [t + 1 for t in range(3) if np.abs(found[t]).max() > 0])

# %% [markdown]
# - With the true critic nothing is biased, and a small λ has less variance.
# - With a wrong critic λ = 1 is still unbiased. A small λ passes the critic's errors on.
# - With the critic "zero" and λ = 0 only the last token learns.
#
# PPO for language models uses λ = .95 or 1, and γ = 1. Responses have one score at the end, and the critic is poor at
# first.

# %%
lambdas = np.linspace(0, 1, 21)
curves = {}
for name in ("true", "rough"):
    results = [gradient_of_first_token(gae(rewards, critics[name], 1.0, lam)[0]) for lam in lambdas]
    curves[f"{name} critic"] = [variance + ((mean - right) ** 2).sum() for mean, variance in results]
plot("bias_and_variance", lambdas, curves, "λ", "squared error of one estimate")

# %% [markdown]
# ## The scale of advantages
#
# Scores ten times as large give gradients ten times as long. So most programs whiten the advantages of a batch: minus
# their mean, divided by their standard deviation. Then the learning rate does not depend on the unit of the score. The
# price is that small advantages become large when all responses are nearly alike.
#
# The symbols: R what a response earns · b baseline · Â advantage · V critic · δ TD error · λ of GAE.
