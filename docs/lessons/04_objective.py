# %% [markdown]
# # Lesson 4: The objective as reward plus log prior
#
# **Question.** J(π) = E[r] − β·KL(π‖π_ref). Which policy is the best one, and what does β mean?
#
# You need: lesson 3, and Lagrange multipliers for the last part. Time: 60 minutes of reading, 10 seconds of computing.

# %%
import numpy as np
import torch

from rlhf_gym.envs import tabular_task
from rlhf_gym.lessons import begin, check, compare, plot
from rlhf_gym.lm import token_log_probs

begin(4)

# %% [markdown]
# ## Everything in one sum
#
# Write the KL as a mean over y ~ π, and take it into the expectation:
#
#     J(π) = E_π[r(y)] − β·E_π[log π(y) − log π_ref(y)]
#          = E_π[r(y) − β·log π(y) + β·log π_ref(y)]
#
# Three terms, token by token (log π(y) = Σ_t log π(y_t|s_t), and the same for π_ref):
#
# - r(y): the reward;
# - −β·log π(y): its mean is β times the entropy of π. Entropy is high when many responses are about equally probable.
#   RL with such a term is called maximum-entropy RL;
# - β·log π_ref(y): a reward for what π_ref finds probable. It is a prior, as in Bayes' rule. It holds what π_ref knows
#   about grammar and about the world.
#
# ## A task small enough to enumerate
#
# 4 tokens, 3 steps: 64 responses. So each expectation is a sum of 64 terms, and nothing is estimated.

# %%
task = tabular_task(seed=0)
r = task.rewards  # (64,)
pi_ref = task.probabilities(task.reference)  # (64,)
beta = task.beta
print(len(r), "responses, β =", beta)
print(f"E_ref[r] = {(pi_ref * r).sum():.3f}, the highest r is {r.max():.3f}")

# %% [markdown]
# ## Exercise 4a: three terms
#
# `pi`, `pi_ref` and `r` have the shape (n,). Return the three terms of J as three numbers: the mean reward, β times the
# entropy, and β times the mean of log π_ref. All means are over y ~ π. Their sum must be J. All probabilities are
# above 0.


# %% Exercise 4a
def three_terms(pi, pi_ref, r, beta):
    reward = ...
    entropy = ...
    prior = ...
    return reward, entropy, prior


# %% Solution 4a [markdown]
# <details><summary>Solution 4a</summary>
#
# ```python
# def three_terms(pi, pi_ref, r, beta):
#     reward = (pi * r).sum()
#     entropy = -beta * (pi * np.log(pi)).sum()
#     prior = beta * (pi * np.log(pi_ref)).sum()
#     return reward, entropy, prior
# ```
#
# </details>

# %% Gate 4a
check("4a", three_terms=three_terms)

# %%
uniform = np.full(64, 1 / 64)
for name, pi in {"π_ref": pi_ref, "uniform": uniform}.items():
    terms = three_terms(pi, pi_ref, r, beta)
    print(
        f"{name:8} reward {terms[0]:.3f}  entropy {terms[1]:+.3f}  prior {terms[2]:+.3f}  "
        f"sum {sum(terms):.4f}  J {task.objective(pi):.4f}"
    )

# %% [markdown]
# For π_ref the last two terms cancel: its KL from itself is 0. The uniform policy has more entropy. But its prior term
# is lower by more than that.
#
# The same token by token, for one response: its log-probability is the sum over its tokens, and so is the prior.

# %%
number = int(r.argmax())
ids = torch.cat([torch.zeros(1, 1, dtype=torch.int64), task.strings[number : number + 1]], dim=1)  # prompt, response
tokens = token_log_probs(task.reference, ids, torch.tensor([ids.shape[1]]))[0, 1:]  # log π_ref(y_t|s_t), (3,)
print("β·log π_ref of each token:", [round(beta * float(one), 3) for one in tokens])
print(f"sum {beta * float(tokens.sum()):.4f}, β·log π_ref(y) {beta * np.log(pi_ref[number]):.4f}")

# %% [markdown]
# ## The best policy
#
# Write the reward as β·log e^{r/β}. The weights π_ref·e^{r/β} do not add up to 1. Divide them by their sum Z, and they
# are a policy, π*. Then J is minus a KL, plus a constant:
#
#     J(π) = −β·E_π[log π(y) − log(π_ref(y)·e^{r(y)/β})]
#          = −β·KL(π‖π*) + β·log Z
#
#     π*(y) = π_ref(y)·e^{r(y)/β} / Z,   Z = Σ_y π_ref(y)·e^{r(y)/β}
#
# A KL is at least 0, and 0 only where both are the same. So π* is the best policy, and J* = β·log Z.
# In the words of Bayes' rule π_ref is the prior, e^{r/β} the likelihood, and π* the posterior.
#
# ## Exercise 4b: by hand
#
# Three responses: π_ref = (.5, .3, .2), r = (0, 1, 2), β = 1. Work out π* and J* to three
# decimal places. (e = 2.718, e² = 7.389. Use a calculator for the logarithm.)

# %% Exercise 4b
pi_star = ...  # a list of three numbers
best = ...

# %% Solution 4b [markdown]
# <details><summary>Solution 4b</summary>
#
# ```python
# pi_star = [0.179, 0.292, 0.529]  # (.5, .8155, 1.4778)/2.7933
# best = 1.027
# ```
#
# </details>

# %% Gate 4b
check("4b", pi_star=pi_star, best=best)

# %% [markdown]
# ## Exercise 4c: as a function
#
# Return π* for arrays of shape (n,). r/β may be 1000, and e^{1000} is too large for a computer. So work with logarithms
# first, subtract the largest one, and then use the exponential. In the end divide by the sum: any constant factor
# cancels.


# %% Exercise 4c
def best_policy(pi_ref, r, beta):
    log_weight = ...
    weight = ...
    return ...


# %% Solution 4c [markdown]
# <details><summary>Solution 4c</summary>
#
# ```python
# def best_policy(pi_ref, r, beta):
#     log_weight = np.log(pi_ref) + r / beta
#     weight = np.exp(log_weight - log_weight.max())
#     return weight / weight.sum()
# ```
#
# </details>

# %% Gate 4c
check("4c", best_policy=best_policy)

# %%
pi_star = best_policy(pi_ref, r, beta)
print(f"J(π_ref) = {task.objective(pi_ref):.4f}, J(π*) = {task.objective(pi_star):.4f}, J* = {task.best:.4f}")
print(f"E*[r] = {(pi_star * r).sum():.3f}, KL(π*‖π_ref) = {task.kl(pi_star):.3f} nats")

# %% [markdown]
# **Prediction.** Leave the prior out: maximise E[r] + β·entropy alone. Is the KL of that policy from π_ref "more" or
# "less" than that of π*?

# %% Prediction
without_prior = ...  # "more" or "less"

# %%
maximum_entropy = best_policy(np.ones(64), r, beta)
for name, pi in {"π*": pi_star, "without the prior": maximum_entropy}.items():
    print(f"{name:18} KL {task.kl(pi):.3f} nats, E[log π_ref] {(pi * np.log(pi_ref)).sum():.2f}")
compare(without_prior, "more" if task.kl(maximum_entropy) > task.kl(pi_star) else "less")

# %% [markdown]
# With a language model the difference is enormous. Nearly all sequences of tokens are no language at all. Only
# β·log π_ref makes them improbable: r_φ was not trained on such sequences.
#
# ## β is a Lagrange multiplier
#
# Another way to say what one wants: maximise E[r] *subject to* KL(π‖π_ref) ≤ δ. With a multiplier β ≥ 0 the
# Lagrangian is
#
#     E_π[r] − β·(KL(π‖π_ref) − δ)
#
# δ is how much KL is allowed, in nats. For a given β the maximum is the same π*. So a penalty and a constraint give the
# same family of policies. β is also a slope:
# along this family the derivative of E[r] with respect to the KL is β.
#
# **Prediction.** When β grows, what does KL(π*‖π_ref) do: "grows", "falls", or "both"?

# %% Prediction
direction = ...

# %%
betas = np.geomspace(0.05, 5, 60)
kls = [task.kl(best_policy(pi_ref, r, b)) for b in betas]
rewards = [float((best_policy(pi_ref, r, b) * r).sum()) for b in betas]
plot("frontier", kls, {"E[r]": rewards}, "KL(π*‖π_ref), nats", "reward")
compare(direction, "falls" if all(np.diff(kls) < 0) else "grows or both")
for b, kl, reward in list(zip(betas, kls, rewards))[::12]:
    print(f"β {b:.3f}   KL {kl:.3f}   E[r] {reward:.3f}")

# %% [markdown]
# The curve is called the frontier: no policy has a higher E[r] at the same KL. Its slope is β.
#
# **Change one line.** In `betas`, go from .005 instead of .05. The KL stops growing. Why?
# (The policy gives nearly all probability to the best response then. Its KL is −log π_ref of that one.)
#
# ## Exercise 4d: find β for a given KL
#
# Return the β for which KL(π*‖π_ref) = δ. `kl_at(beta)` gives this KL, and falls when β grows. Halve an interval of
# log β: if the KL in the middle is too large, β must be larger.


# %% Exercise 4d
def beta_for(kl_at, delta):
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = np.sqrt(low * high)  # the middle of the logarithms
        too_small = ...  # whether β must be larger than this
        if too_small:
            low = middle
        else:
            high = middle
    return middle


# %% Solution 4d [markdown]
# <details><summary>Solution 4d</summary>
#
# ```python
# def beta_for(kl_at, delta):
#     low, high = 1e-3, 1e3
#     for _ in range(60):
#         middle = np.sqrt(low * high)  # the middle of the logarithms
#         too_small = kl_at(middle) > delta
#         if too_small:
#             low = middle
#         else:
#             high = middle
#     return middle
# ```
#
# </details>

# %% Gate 4d
check("4d", beta_for=beta_for)

# %%
for delta in (0.1, 0.5, 1.0):
    found = beta_for(lambda b: task.kl(best_policy(pi_ref, r, b)), delta)
    pi = best_policy(pi_ref, r, found)
    print(f"KL ≤ {delta}: β = {found:.3f}, E[r] = {(pi * r).sum():.3f}, KL = {task.kl(pi):.3f}")

# %% [markdown]
# In training nobody knows π*. An *adaptive* β does the same in small steps: after each rollout β grows if the KL is
# above its target, and falls if it is below (Ziegler et al. 2019). `rlhf_gym` has a fixed β, an adaptive one
# (`AdaptiveKL`), and a constraint (`ConstraintKL`).
#
# ## What follows for DPO
#
# Solve π* ∝ π_ref·e^{r/β} for the reward: r(y) = β·log(π*(y)/π_ref(y)) + β·log Z. Put this into the Bradley–Terry
# model of lesson 1. The constant β·log Z cancels, because both answers have the same prompt:
#
#     P(y⁺ ≻ y⁻) = σ(β·log(π(y⁺)/π_ref(y⁺)) − β·log(π(y⁻)/π_ref(y⁻)))
#
# So one can fit π to the preferences directly, without r_φ and without RL. That is DPO (Rafailov et al. 2023). One
# loses what RL has: responses of the policy itself, scored while it learns. DPO sees only the pairs that were written
# before.
