# %% [markdown]
# # Lesson 1: Preferences and the Bradley–Terry model
#
# **Question.** People can seldom say that a text is worth 1.7. They can say which of two texts is better.
# How does one get a reward from such comparisons?
#
# You need: lesson 0, derivatives. Time: 45 minutes of reading, 10 seconds of computing.

# %%
import numpy as np
import torch

from rlhf_gym.lessons import begin, check, compare, plot

begin(1)

# %% [markdown]
# ## The data
#
# The same prompt x is answered twice, by y₁ and y₂. A person says which answer is better. That one is called
# *chosen*, y⁺, and the other one *rejected*, y⁻. A data set of preferences, D_pref, is a list of (x, y⁺, y⁻).
#
# | label | a person says | good | bad |
# |---|---|---|---|
# | comparison | which of two is better | quick; people agree more | one bit a label |
# | ranking | the order of K answers | K(K−1)/2 comparisons at once | long lists tire people |
# | rating | a number, 1 to 5 say | says by how much | each person has another scale |
#
# The repository's page docs/preferences.md compares the three, with the same total effort of the people for each.
#
# ## The model
#
# Bradley and Terry (1952): each answer has a score r. The higher the score, the more often an answer wins:
#
#     P(y₁ ≻ y₂ | x) = σ(r₁ − r₂),   with σ(z) = 1/(1 + e^{−z})
#
# `≻` is read "is preferred to". σ is the logistic function. It turns a difference into a probability.
#
# **Prediction.** r₁ = 1.0 and r₂ = 1.5. Of 10,000 people, how many prefer y₁?

# %% Prediction
people = ...

# %%
r1, r2 = 1.0, 1.5
rng = np.random.default_rng(0)
wins = rng.random(10_000) < 1 / (1 + np.exp(-(r1 - r2)))
compare(people, int(wins.sum()))

# %% [markdown]
# **Change one line.** Add 100 to both scores, `r1, r2 = 101.0, 101.5`, and run the cell again. Nothing changes.
# Put it back, and double both scores instead. Now something changes.
#
# ## The loss
#
# Scores are good if they make the labels probable. So the loss of a pair is the negative logarithm of a probability:
# that of the preference which the person stated. The logarithm is the natural one, and its unit is called nat. For a
# pair with chosen y⁺ and rejected y⁻:
#
#     L = −log σ(Δ),   Δ = r⁺ − r⁻
#
# ## Exercise 1a: a pair by hand
#
# r₁ = 1.0 and r₂ = 1.5, as above. What is P(y₁ ≻ y₂)? A person prefers y₁. What is the loss of this pair?
# (e^{.5} = 1.6487. Give four decimal places.)

# %% Exercise 1a
probability = ...
loss = ...

# %% Solution 1a [markdown]
# <details><summary>Solution 1a</summary>
#
# ```python
# probability = 0.3775  # 1/(1 + e^{.5}) = 1/2.6487
# loss = 0.9741  # −log .3775
# ```
#
# The model had expected y₂ to win, so the loss is above log 2 = .693.
#
# </details>

# %% Gate 1a
check("1a", probability=probability, loss=loss)

# %% [markdown]
# ## Exercise 1b: the loss of a batch
#
# `chosen` and `rejected` are tensors of scores, shape (B,). Return the mean loss over the B pairs.
#
# `torch.sigmoid` is exactly 0 for numbers far below 0, and log 0 is −∞. So use one of these instead:
#
# - `torch.nn.functional.logsigmoid(z)` is log σ(z);
# - `torch.nn.functional.softplus(z)` is log(1 + e^z).


# %% Exercise 1b
def preference_loss(chosen, rejected):
    delta = ...
    return ...


# %% Solution 1b [markdown]
# <details><summary>Solution 1b</summary>
#
# ```python
# def preference_loss(chosen, rejected):
#     delta = chosen - rejected  # (B,)
#     return torch.nn.functional.softplus(-delta).mean()
# ```
#
# −log σ(Δ) = log(1 + e^{−Δ}) = softplus(−Δ).
#
# </details>

# %% Gate 1b
check("1b", preference_loss=preference_loss)

# %% [markdown]
# The curve is a smooth version of max(0, −Δ). A pair that is wrong by far (Δ ≪ 0) costs about −Δ. A pair that is right
# by far (Δ ≫ 0) costs nearly nothing.

# %%
deltas = torch.linspace(-5, 5, 101)
curve = [float(preference_loss(delta[None], torch.zeros(1))) for delta in deltas]
hinge = [max(0.0, -float(delta)) for delta in deltas]
plot("loss", deltas.tolist(), {"−log σ(Δ)": curve, "max(0, −Δ)": hinge}, "Δ = r⁺ − r⁻", "loss of a pair, nats")
print("loss at Δ = −5, 0, 5:", [round(curve[i], 3) for i in (0, 50, 100)])

# %% [markdown]
# ## The gradient
#
# What does one pair do to the two scores? By the chain rule, with σ' = σ(1 − σ):
#
#     ∂L/∂Δ = σ(Δ) − 1,   so   ∂L/∂r⁺ = σ(Δ) − 1   and   ∂L/∂r⁻ = 1 − σ(Δ)
#
# A step of gradient descent goes against the gradient: r⁺ rises and r⁻ falls, by the same amount.
#
# **Prediction.** Which pair moves the scores most: one with Δ = −4 (wrong), Δ = 0 (undecided), or Δ = 4 (right)?

# %% Prediction
strongest = ...  # -4, 0 or 4

# %%
change = {delta: 1 - 1 / (1 + np.exp(-delta)) for delta in (-4, 0, 4)}
print({delta: round(float(p), 3) for delta, p in change.items()})
compare(strongest, max(change, key=change.get))

# %% [markdown]
# ## Exercise 1c: the gradient
#
# Write ∂L/∂r⁺ and ∂L/∂r⁻ as numbers, at Δ = 0 and at Δ = 4. (σ(4) = .982. Give three decimal places.)

# %% Exercise 1c
chosen_at_0 = ...
rejected_at_0 = ...
chosen_at_4 = ...
rejected_at_4 = ...

# %% Solution 1c [markdown]
# <details><summary>Solution 1c</summary>
#
# ```python
# chosen_at_0 = -0.5
# rejected_at_0 = 0.5
# chosen_at_4 = -0.018
# rejected_at_4 = 0.018
# ```
#
# At Δ ≫ 0 both go to 0: a pair that is right by far hardly changes the scores. The size of the gradient is never above
# 1, however wrong a pair is.
#
# </details>

# %% Gate 1c
check(
    "1c",
    chosen_at_0=chosen_at_0,
    rejected_at_0=rejected_at_0,
    chosen_at_4=chosen_at_4,
    rejected_at_4=rejected_at_4,
)

# %%
chosen, rejected = torch.tensor([4.0], requires_grad=True), torch.tensor([0.0], requires_grad=True)
preference_loss(chosen, rejected).backward()
print(f"your loss has at Δ = 4 the gradients {float(chosen.grad):.4f} and {float(rejected.grad):.4f}")

# %% [markdown]
# ## What comparisons cannot say
#
# Only r⁺ − r⁻ is in the loss. Both answers of a pair belong to one prompt. So one may add a constant to all scores of
# a prompt, another constant for each prompt, and no preference changes.
#
# ## Exercise 1d: the same preferences
#
# Two prompts, p and q, have three answers each. `A` is a table of scores. Which of the other tables give the same
# probability to every comparison as `A` does? Write their names as a set, such as `{"B", "C"}`.

# %%
tables = {
    "A": {"p": [1.0, 1.5, 0.0], "q": [0.0, 2.0, 1.0]},
    "B": {"p": [8.0, 8.5, 7.0], "q": [7.0, 9.0, 8.0]},
    "C": {"p": [2.0, 3.0, 0.0], "q": [0.0, 4.0, 2.0]},
    "D": {"p": [1.0, 1.5, 0.0], "q": [-5.0, -3.0, -4.0]},
    "E": {"p": [-1.0, -1.5, 0.0], "q": [0.0, -2.0, -1.0]},
    "F": {"p": [1.0, 2.0, 0.0], "q": [0.0, 2.0, 1.0]},
}

# %% Exercise 1d
same_as_a = ...

# %% Solution 1d [markdown]
# <details><summary>Solution 1d</summary>
#
# ```python
# same_as_a = {"B", "D"}
# ```
#
# B is A + 7. D is A with 5 subtracted from the scores of q. C doubles the differences, so the same answers win, but
# more often. E reverses every preference. F has another difference in p.
#
# </details>

# %% Gate 1d
check("1d", same_as_a=same_as_a)

# %% [markdown]
# Two things follow:
#
# - Scores of answers to *different* prompts must not be compared, unless something fixes the constant.
# - The labels leave the constant open, and PPO gets the scores themselves. So somebody has to choose it. The usual
#   choice is to normalise: the mean of the scores is set to 0, and their standard deviation to 1 (lesson 2).
#
# ## Rankings
#
# A person puts K answers in order. That is one comparison for every two of them. These comparisons are not independent:
# they come from one judgement. So Ouyang et al. (2022) give them the same weight each, and weight 1 together.
#
# ## Exercise 1e
#
# A ranking of K = 4 answers: how many pairs (chosen, rejected) is it, and what is the weight of each?

# %% Exercise 1e
pairs = ...
weight = ...

# %% Solution 1e [markdown]
# <details><summary>Solution 1e</summary>
#
# ```python
# pairs = 6  # 4 · 3 / 2
# weight = 1 / 6
# ```
#
# </details>

# %% Gate 1e
check("1e", pairs=pairs, weight=weight)

# %% [markdown]
# ## All of it: scores from comparisons
#
# Four answers with hidden scores. People compare them, 400 times. We find scores by gradient descent on your loss.

# %%
hidden = torch.tensor([0.0, 0.5, 1.0, 2.0])
generator = torch.Generator().manual_seed(0)
first, second = torch.randint(4, (2, 400), generator=generator)  # (400,) each
first_wins = torch.rand(400, generator=generator) < torch.sigmoid(hidden[first] - hidden[second])
plus, minus = torch.where(first_wins, first, second), torch.where(first_wins, second, first)

scores = torch.zeros(4, requires_grad=True)
optimizer = torch.optim.Adam([scores], lr=0.05)
for _ in range(300):
    loss = preference_loss(scores[plus], scores[minus])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("hidden:", hidden.tolist())
print("found: ", [round(s, 2) for s in scores.tolist()])
print("found, the first one set to 0:", [round(s, 2) for s in (scores - scores[0]).tolist()])

# %% [markdown]
# The differences are found, up to chance. With only 400 comparisons each may be wrong by a few tenths. The constant is
# not found: the data say nothing about it.
# In lesson 2 the scores are not a table but a network r_φ(x, y), so that it can score answers it never saw.
