# %% [markdown]
# # Lesson 3: The KL penalty
#
# **Question.** A policy that only maximises r_φ leaves the texts on which r_φ was trained. How does one measure how
# far it has gone, and how does one charge for it?
#
# You need: lessons 0 to 2. Time: 60 minutes of reading, 10 seconds of computing.

# %%
import numpy as np
import torch

from rlhf_gym.lessons import begin, check, compare, plot

begin(3)

# %% [markdown]
# ## The objective
#
#     J(π) = E_π[r_φ(x, y)] − β · KL(π‖π_ref)
#
# π_ref is the SFT policy, frozen. β > 0 is the price of leaving it. There are two reasons to stay near:
#
# - r_φ was trained on texts of π_ref. About texts that are unlike them its scores say little (lesson 2).
# - π_ref can do things that r_φ does not reward: grammar, facts, other tasks. What is not rewarded is soon lost.
#
# ## The direction
#
#     KL(π‖π_ref) = Σ_y π(y) · log(π(y)/π_ref(y)),  in nats
#
# A nat is the unit of natural logarithms. The two arguments have different roles: the mean is over responses drawn from
# the *first* one.
#
# ## Exercise 3a: both directions by hand
#
# Two responses. π = (.9, .1) and π_ref = (.5, .5). Work out KL(π‖π_ref) and KL(π_ref‖π) to three digits.
# (log 1.8 = .588, log .2 = −1.609, log(5/9) = −.588, log 5 = 1.609.)

# %% Exercise 3a
kl = ...
reverse_kl = ...

# %% Solution 3a [markdown]
# <details><summary>Solution 3a</summary>
#
# ```python
# kl = 0.368  # .9 · .588 − .1 · 1.609
# reverse_kl = 0.511  # −.5 · .588 + .5 · 1.609
# ```
#
# </details>

# %% Gate 3a
check("3a", kl=kl, reverse_kl=reverse_kl)

# %% [markdown]
# **Prediction.** π_ref gives a response probability 10⁻⁶. The policy gives it .5. The other way round: π_ref gives
# another one .5, and the policy 10⁻⁶. Which of the two costs much in KL(π‖π_ref), "new" or "dropped"?

# %% Prediction
costly = ...

# %%
reference = np.array([0.5 - 5e-7, 0.5 - 5e-7, 1e-6])
says_something_new = np.array([0.5 - 5e-7, 1e-6, 0.5 - 5e-7])
terms = says_something_new * np.log(says_something_new / reference)
for what, term in zip(("both say it:       ", "dropped by π:      ", "new in π:          "), terms):
    print(what, f"{term:+z.4f}")
compare(costly, "new" if terms[2] > terms[1] else "dropped")

# %% [markdown]
# So this direction forbids what π_ref finds impossible, and allows the policy to drop most of what π_ref says. That is
# what RLHF wants: a good answer need not be every answer. Taking KL(π_ref‖π) instead is a common mistake.
#
# The direction is also the one that can be estimated: its mean is over the policy's own responses.
#
# **Change one line.** Swap the two distributions in the line `terms = …`, both times, and run it again.
#
# ## From one sample
#
# Nobody can sum over all responses. One draws y ~ π and uses an estimate. With log ρ = log π_ref(y) − log π(y):
#
# | name | formula | right on average? | ever negative? |
# |---|---|---|---|
# | k1 | log π(y) − log π_ref(y) | yes | yes |
# | k2 | ½ (log π(y) − log π_ref(y))² | no, nearly when π is near π_ref | no |
# | k3 | (ρ − 1) − log ρ, with ρ = π_ref(y)/π(y) | yes | no |
#
# (Schulman 2020, joschu.net/blog/kl-approx.html.) k1 for a response is the sum of k1 over its tokens. A single k1 is
# *not* the KL: it may be negative, and the KL never is. Only its mean over the policy's samples is.
#
# ## Exercise 3b: the estimators
#
# Write them for tensors of log-probabilities.


# %% Exercise 3b
def k1(log_prob, ref_log_prob):
    return ...


def k2(log_prob, ref_log_prob):
    return ...


def k3(log_prob, ref_log_prob):
    return ...


# %% Solution 3b [markdown]
# <details><summary>Solution 3b</summary>
#
# ```python
# def k1(log_prob, ref_log_prob):
#     return log_prob - ref_log_prob
#
#
# def k2(log_prob, ref_log_prob):
#     return 0.5 * (log_prob - ref_log_prob) ** 2
#
#
# def k3(log_prob, ref_log_prob):
#     log_rho = ref_log_prob - log_prob
#     return torch.exp(log_rho) - 1 - log_rho
# ```
#
# k3 is k1 plus ρ − 1, whose mean under π is Σ π_ref − Σ π = 0.
#
# </details>

# %% Gate 3b
check("3b", k1=k1, k2=k2, k3=k3)

# %%
pi = torch.tensor([0.55, 0.25, 0.15, 0.05])
pi_ref = torch.tensor([0.40, 0.30, 0.10, 0.20])
exact = float((pi * (pi / pi_ref).log()).sum())
sample = torch.multinomial(pi, 10_000, replacement=True, generator=torch.Generator().manual_seed(0))
log_p, log_q = pi.log()[sample], pi_ref.log()[sample]
print(f"KL(π‖π_ref) = {exact:.4f}, KL(π_ref‖π) = {float((pi_ref * (pi_ref / pi).log()).sum()):.4f}")
for name, k in {"k1": k1, "k2": k2, "k3": k3}.items():
    values = k(log_p, log_q)
    negative = float((values < 0).float().mean())
    print(f"{name}: mean {values.mean():.4f}, standard deviation {values.std():.4f}, negative {negative:.0%}")

# %% [markdown]
# ## The reward of a token
#
# The log-ratio of a response, log π − log π_ref, is a sum over its tokens. So the penalty can be charged token by
# token, and the score falls on the last token, T:
#
#     R_t = −β · (log π(y_t|s_t) − log π_ref(y_t|s_t)) + [t = T] · r_φ(x, y)
#
# [t = T] is 1 where t = T, and 0 elsewhere.
#
# One may also charge the whole penalty at T. The optimum is the same, the speed is not: docs/losses.md shows both.
#
# ## Exercise 3c: by hand
#
# Three tokens. log π − log π_ref is .2, −.1 and .3. β = .5, and r_φ(x, y) = 2. Write R₁, R₂, R₃ and their sum.

# %% Exercise 3c
token_rewards = ...  # a list of three numbers
total = ...

# %% Solution 3c [markdown]
# <details><summary>Solution 3c</summary>
#
# ```python
# token_rewards = [-0.1, 0.05, 1.85]
# total = 1.8  # 2 − .5 · (.2 − .1 + .3)
# ```
#
# The second token has a positive reward: π_ref gives it a higher probability than π does.
#
# </details>

# %% Gate 3c
check("3c", token_rewards=token_rewards, total=total)

# %% [markdown]
# ## log π in the reward is not log π in the loss
#
# REINFORCE (lesson 5 explains it) has the loss
#
#     L = −R · log π(y),   R = r − β · (log π(y) − log π_ref(y))
#
# log π stands there twice. The one in R is a *number*: the reward that this response has earned. No gradient goes
# through it. The other one is what is differentiated. In PyTorch `.detach()` makes a number of a tensor.
#
# Is it right to leave out the gradient of R? Differentiate J = Σ_y π(y) R(y). Two terms come out: Σ R ∇π, and
# Σ π ∇R = −β Σ π ∇log π = −β ∇ Σ π = 0. On average nothing is lost.
#
# ## Exercise 3d: the loss
#
# `log_prob`, `ref_log_prob` and `score` have the shape (B,): responses drawn from π. Only `log_prob` has a gradient.
# Return the loss whose gradient is −∇J on average.


# %% Exercise 3d
def policy_loss(log_prob, ref_log_prob, score, beta):
    reward = ...
    return ...


# %% Solution 3d [markdown]
# <details><summary>Solution 3d</summary>
#
# ```python
# def policy_loss(log_prob, ref_log_prob, score, beta):
#     reward = score - beta * (log_prob - ref_log_prob).detach()  # (B,)
#     return -(reward * log_prob).mean()
# ```
#
# </details>

# %% Gate 3d
check("3d", policy_loss=policy_loss)

# %% [markdown]
# ## And if one differentiates an estimator?
#
# One may also put β times an estimator into the loss, and let the gradient go through it. Then k1, k2 and k3 are very
# different. Here are the exact mean gradients over the four responses above, with respect to the logits.
#
# **Prediction.** Which of k1, k2, k3 has the gradient of KL(π‖π_ref) when it is differentiated at samples of π?

# %% Prediction
right_in_the_loss = ...

# %%
logits = pi.log().clone().requires_grad_(True)


def mean_gradient(f):
    """The gradient of Σ_y π(y) · f(log π(y)), π(y) detached: what a loss over many samples of π has."""
    log_prob = torch.log_softmax(logits, dim=0)
    (found,) = torch.autograd.grad((log_prob.exp().detach() * f(log_prob)).sum(), logits)
    return found


def gradient_of(g):
    (found,) = torch.autograd.grad(g(torch.log_softmax(logits, dim=0)), logits)
    return found


wanted = gradient_of(lambda lp: (lp.exp() * (lp - pi_ref.log())).sum())
reverse = gradient_of(lambda lp: (pi_ref * (pi_ref.log() - lp)).sum())
print("∇KL(π‖π_ref)", [round(g, 4) for g in wanted.tolist()])
print("∇KL(π_ref‖π)", [round(g, 4) for g in reverse.tolist()])
right = []
for name, k in {"k1": k1, "k2": k2, "k3": k3}.items():
    gradient = mean_gradient(lambda lp, k=k: k(lp, pi_ref.log()))
    print(f"{name} in the loss  ", [round(g, 4) + 0.0 for g in gradient.tolist()])
    right += [name] if torch.allclose(gradient, wanted, atol=1e-5) else []
compare(right_in_the_loss, ", ".join(right))

# %% [markdown]
# | | value on average | in the reward (detached) | in the loss (differentiated) |
# |---|---|---|---|
# | k1 | KL(π‖π_ref) | right | gradient 0: no penalty at all |
# | k2 | nearly | wrong | right |
# | k3 | KL(π‖π_ref) | wrong | that of KL(π_ref‖π) |
#
# "In the reward" is exercise 3d with another estimator in the place of k1. Why it is wrong there, and what becomes of a
# policy that is trained so, is in the repository's page docs/losses.md.
#
# ## How far is far?
#
# The KL of a response grows with its length. So say which you mean: nats a response, or nats a token.
# A policy that takes the best of n responses of π_ref is at most log n − (n − 1)/n nats away from it.

# %%
counts = np.arange(1, 257)
plot("best_of_n", counts, {"log n − (n − 1)/n": np.log(counts) - (counts - 1) / counts}, "n", "KL(π‖π_ref), nats")
print("best of 4, 16, 64:", [round(float(np.log(n) - (n - 1) / n), 2) for n in (4, 16, 64)], "nats")

# %% [markdown]
# PPO will bring a third policy, π_old, the one that wrote the responses of the last rollout. Staying near π_old makes a
# *step* safe. Staying near π_ref is part of the *objective*. Lesson 6 keeps them apart.
