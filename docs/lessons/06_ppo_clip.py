# %% [markdown]
# # Lesson 6: PPO's clip
#
# **Question.** A rollout of responses is expensive. May one take many gradient steps on it, and what goes wrong then?
#
# You need: lesson 5. Time: 50 minutes of reading, 10 seconds of computing.

# %%
import math

import torch

from rlhf_gym.envs import tabular_task
from rlhf_gym.lessons import begin, check, compare, plot

begin(6)

# %% [markdown]
# ## The ratio
#
# π_old is the policy that wrote the rollout. After one step the policy π is another one. The responses are still
# samples of π_old. The importance ratio corrects the choice of each token:
#
#     ratio_t = π(y_t|s_t)/π_old(y_t|s_t) = exp(log π(y_t|s_t) − log π_old(y_t|s_t))
#
#     E_old[ratio_t·Â_t]
#
# E_old is the mean over tokens that π_old wrote. (The states s_t before them are still those of π_old. That is another
# reason for staying near it.)
#
# Before the first step all ratios are 1. The derivative of a ratio with respect to log π is the ratio itself. So at
# ratio 1 the gradient of ratio·Â is Â·∇log π: that of REINFORCE, lesson 5.
#
# Nothing holds the ratio near 1. For a token with Â > 0 the objective grows with the ratio, without an end. PPO
# (Schulman et al. 2017) removes this gain outside of 1 ± ε. Its objective for a token is
#
#     min(ratio·Â, clip(ratio, 1 − ε, 1 + ε)·Â)
#
# clip(ratio, low, high) is the ratio if it lies between low and high, and otherwise the end that is nearer. The first
# term of the minimum is called unclipped, the second one clipped.
#
# ## Exercise 6a: one token
#
# π_old gave a token the probability .02, and π gives it .06. Â = 4, ε = .2. Work out the ratio, both terms, and the
# objective.

# %% Exercise 6a
ratio = ...
unclipped = ...
clipped = ...
objective = ...

# %% Solution 6a [markdown]
# <details><summary>Solution 6a</summary>
#
# ```python
# ratio = 3.0  # .06/.02
# unclipped = 12.0  # 3 · 4
# clipped = 4.8  # 1.2 · 4
# objective = 4.8  # the smaller one
# ```
#
# The clipped term does not depend on π, so its gradient is 0. This token does not change the policy any more.
#
# </details>

# %% Gate 6a
check("6a", ratio=ratio, unclipped=unclipped, clipped=clipped, objective=objective)

# %% [markdown]
# ## A bad token that has become more likely
#
# Now a token with Â < 0. It should become less likely. But many tokens share the same weights. So a step for other
# tokens may have made this one *more* likely, and the update should be undone.
#
# ## Exercise 6b: by hand
#
# π_old = .10, π = .13, Â = −3, ε = .2. Work out the same numbers, and the slope: the derivative of the objective with
# respect to log π of this token. (For the ratio this derivative is the ratio.)

# %% Exercise 6b
ratio = ...
unclipped = ...
clipped = ...
objective = ...
slope = ...

# %% Solution 6b [markdown]
# <details><summary>Solution 6b</summary>
#
# ```python
# ratio = 1.3
# unclipped = -3.9
# clipped = -3.6
# objective = -3.9  # the smaller one, whatever the sign of Â
# slope = -3.9  # ratio · Â: π must fall
# ```
#
# </details>

# %% Gate 6b
check("6b", ratio=ratio, unclipped=unclipped, clipped=clipped, objective=objective, slope=slope)

# %% [markdown]
# ## A widespread error
#
# Many texts say: take the minimum where Â > 0, and the *maximum* where Â < 0. Here that gives −3.6. The clipped term
# does not depend on π, so the slope is 0. Then no update brings the ratio back.
#
# The next cell takes 60 small steps along the slope, by either rule, from the ratio 1.3.
#
# **Prediction.** Where is the ratio after 60 steps by the wrong rule?

# %% Prediction
ratio_by_the_wrong_rule = ...


# %%
def steps(rule, ratio, advantage, epsilon=0.2, rate=0.012, count=60):
    """The ratio after each step of gradient ascent on log π of one token."""
    path = [ratio]
    for _ in range(count):
        low, high = 1 - epsilon, 1 + epsilon
        unclipped, clipped = ratio * advantage, min(max(ratio, low), high) * advantage
        chosen = rule(unclipped, clipped, advantage)
        slope = ratio * advantage if chosen == unclipped else 0.0  # the clipped term has no slope
        ratio = math.exp(math.log(ratio) + rate * slope)
        path.append(ratio)
    return path


def right_rule(unclipped, clipped, advantage):
    return min(unclipped, clipped)


def wrong_rule(unclipped, clipped, advantage):
    return min(unclipped, clipped) if advantage > 0 else max(unclipped, clipped)


right_path = steps(right_rule, ratio=1.3, advantage=-3)
wrong_path = steps(wrong_rule, ratio=1.3, advantage=-3)
for count in (0, 5, 10, 20, 60):
    print(f"step {count:2}   right rule {right_path[count]:.3f}   wrong rule {wrong_path[count]:.3f}")
plot("clip", range(61), {"minimum": right_path, "maximum where Â < 0": wrong_path}, "step", "ratio π/π_old")
compare(ratio_by_the_wrong_rule, wrong_path[-1])

# %% [markdown]
# The right rule brings the ratio down until it is below 1 − ε, and stops there. The last step goes a little farther
# than 1 − ε. The wrong rule never moves a ratio of 1.3. Below 1 + ε it does move the ratio, and down without an end.
#
# **Change one line.** Start both at `ratio=0.75`, and run the cell again.
#
# The page docs/interactive/index.html of the repository shows both rules with sliders, in scene 3.
#
# ## Exercise 6c: four cases
#
# A loss is minimised, so it is minus the objective. ε = .2. Write the losses of the four cases (ratio, Â):
#
# 1. (1.5, +1)
# 2. (.5, +1)
# 3. (1.5, −1)
# 4. (.5, −1)
#
# In which of them is the gradient 0? Write their numbers as a list.

# %% Exercise 6c
losses = ...  # a list of four numbers
without_gradient = ...  # a list of numbers from 1 to 4

# %% Solution 6c [markdown]
# <details><summary>Solution 6c</summary>
#
# ```python
# losses = [-1.2, -0.5, 1.5, 0.8]
# without_gradient = [1, 4]
# ```
#
# In 1 and 4 the token has already gone where Â wants it, and farther than ε. In 2 and 3 it has gone the other way.
#
# </details>

# %% Gate 6c
check("6c", losses=losses, without_gradient=without_gradient)

# %% [markdown]
# So the clip is no bound on the ratio. It sets the gradient of a token to 0 where the ratio has already moved by more
# than ε in the direction of Â. A ratio that has moved the other way keeps its gradient, and can come back.
#
# ## Exercise 6d: the loss
#
# Write it for tensors of shape (B,), as a mean. `ratio.clamp(low, high)` clips, `torch.minimum(a, b)` takes the smaller
# of two tensors.


# %% Exercise 6d
def clipped_loss(log_prob, old_log_prob, advantage, epsilon):
    ratio = ...
    objective = ...
    return ...


# %% Solution 6d [markdown]
# <details><summary>Solution 6d</summary>
#
# ```python
# def clipped_loss(log_prob, old_log_prob, advantage, epsilon):
#     ratio = torch.exp(log_prob - old_log_prob)
#     objective = torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
#     return -objective.mean()
# ```
#
# </details>

# %% Gate 6d
check("6d", clipped_loss=clipped_loss)

# %% [markdown]
# ## Many steps on one rollout
#
# Back to the toy of lesson 4, with a logit for each of the 64 responses. One rollout has 64 responses of π_ref. Then
# come 300 steps on this rollout. After each step J is summed exactly. ε = 1000 clips nothing.
#
# **Prediction.** Without a clip, what does J do in 300 steps on one rollout: "rises", "falls", or "rises, then falls"?

# %% Prediction
without_a_clip = ...

# %%
task = tabular_task(seed=0)
pi_ref = torch.from_numpy(task.probabilities(task.reference)).float()  # (64,)
scores = torch.from_numpy(task.rewards).float()  # (64,)


def improve(logits, epsilon, count, seed, beta=task.beta):
    """The logits after `count` steps on one rollout, and J and the largest ratio behind each step."""
    old = torch.log_softmax(logits, dim=0).detach()  # (64,)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(old.exp(), 64, replacement=True, generator=generator)  # (B,)
    reward = (scores - beta * (old - pi_ref.log()))[drawn]  # (B,): the score minus the penalty, numbers
    advantage = (reward - reward.mean()) * 64 / 63  # (B,): RLOO
    logits = logits.detach().clone().requires_grad_(True)
    history = []
    for _ in range(count):
        log_pi = torch.log_softmax(logits, dim=0)  # (64,)
        (gradient,) = torch.autograd.grad(clipped_loss(log_pi[drawn], old[drawn], advantage, epsilon), logits)
        with torch.no_grad():
            logits -= 1.0 * gradient
            now = torch.log_softmax(logits, dim=0)
        j = task.objective(now.exp().double().numpy())
        history.append((j, float((now - old)[drawn].exp().max())))
    return logits.detach(), history


curves = {}
for name, epsilon in {"ε = .2": 0.2, "no clip": 1000.0}.items():
    _, history = improve(pi_ref.log(), epsilon, 300, seed=0)
    curves[name] = [j for j, _ in history]
    for count in (1, 10, 30, 100, 300):
        print(f"{name:8} step {count:3}   J {history[count - 1][0]:+.3f}   largest ratio {history[count - 1][1]:6.2f}")
plot("one_rollout", range(1, 301), curves, "step", "J")
j = curves["no clip"]
at_the_end = "rises" if j[-1] > j[0] else "falls"
compare(without_a_clip, "rises, then falls" if max(j) > max(j[0], j[-1]) else at_the_end)
print(f"J of π_ref {task.objective(pi_ref.double().numpy()):.3f}, J* {task.best:.3f}")

# %% [markdown]
# At first both rise. Then the unclipped loss makes the few best responses of this rollout more and more probable. Their
# rewards were computed once, with log π_old. So they do not contain the KL that has grown since. And this rollout says
# nothing about responses that were not drawn. With the clip J stops changing. docs/losses.md has runs of many
# rollouts with ε from .05 to .5, and without a clip.
#
# ## π_old is not π_ref
#
# There are two policies to stay near, for two reasons:
#
# | | π_old | π_ref |
# |---|---|---|
# | what it is | the policy that wrote this rollout | the SFT policy |
# | changes | with every rollout | never |
# | kept near by | the clip, few steps | the penalty β·KL(π‖π_ref) in the reward |
# | why | the rollout says little about policies far from it | r_φ is right near it; π keeps what π_ref can do |
# | belongs to | the way of optimising | what is optimised |
#
# In the next cell 40 rollouts follow one another, each with 20 clipped steps. The first time the penalty is in the
# reward. The second time it is left out: β = 0.
#
# **Prediction.** With β = 0 the clip is still there. Does KL(π‖π_ref) stay small: "yes" or "no"?

# %% Prediction
clip_is_enough = ...


# %%
def kl(p, q):
    return float((p * (p / q).log()).sum())


for beta in (task.beta, 0.0):
    logits = pi_ref.log()
    for rollout in range(1, 41):
        old = torch.softmax(logits, dim=0)
        logits, _ = improve(logits, 0.2, 20, seed=rollout, beta=beta)
        pi = torch.softmax(logits, dim=0)
        if rollout in (1, 5, 20, 40):
            print(f"β {beta:.1f}  rollout {rollout:2}   to π_old {kl(pi, old):.3f}   to π_ref {kl(pi, pi_ref):.3f}")
print(f"the best policy for β = {task.beta}:   to π_ref {task.kl(task.optimum):.3f}")
compare(clip_is_enough, "yes" if kl(pi, pi_ref) < 1 else "no")

# %% [markdown]
# Each rollout may move the policy a little from π_old, and 40 rollouts add up. The clip does not measure the distance
# from π_ref. Only the penalty does.
#
# Some programs clip, and also stop the steps on a rollout when KL(π_old‖π) passes a bound. That is a bound on the step
# too. It does not replace the penalty. It is `target_kl` in SB3 and in `rlhf_gym`.
#
# ## Exercise 6e: which of the two?
#
# Each sentence is about staying near `"old"` or near `"ref"`.

# %%
sentences = {
    1: "The distance is 0 before the first step on every rollout.",
    2: "The weight of this distance decides which policy is the best one.",
    3: "With a single gradient step on each rollout, this distance needs no limit.",
    4: "Without it the policy ends with the one response that has the highest score.",
    5: "It matters because the reward model was trained on other texts than the policy may find.",
}

# %% Exercise 6e
near_which = {1: ..., 2: ..., 3: ..., 4: ..., 5: ...}

# %% Solution 6e [markdown]
# <details><summary>Solution 6e</summary>
#
# ```python
# near_which = {1: "old", 2: "ref", 3: "old", 4: "ref", 5: "ref"}
# ```
#
# </details>

# %% Gate 6e
check("6e", near_which=near_which)

# %% [markdown]
# The symbols: π_old the policy of the rollout · ratio = π/π_old · ε clip range.
