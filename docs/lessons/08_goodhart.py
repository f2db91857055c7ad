# %% [markdown]
# # Lesson 8: Goodhart's law, and how one notices it
#
# **Question.** PPO maximises r_φ, and nothing holds the policy near π_ref. The score rises all the time. When should
# one have stopped, and how can one know without gold?
#
# You need: lessons 2, 3 and 6. Time: 60 minutes of reading, 40 seconds of computing.

# %%
import json
import tempfile

import gymnasium as gym
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rlhf_gym.agents import TokenPPO
from rlhf_gym.functional.overoptimization import fit_rl
from rlhf_gym.functional.text_statistics import repetition
from rlhf_gym.lessons import begin, check, compare, plot
from rlhf_gym.lm import generate
from rlhf_gym.monitoring import inspect_episodes
from rlhf_gym.picture.recording import RECORDING, text_of
from rlhf_gym.preferences import BradleyTerryAnnotator, Candidate, CandidatePair
from rlhf_gym.rewards import RewardModel
from rlhf_gym.tasks import reviews_task
from rlhf_gym.training import RewardModelingConfig, train_reward_model

begin(8)

# %% [markdown]
# ## Two recorded runs
#
# "When a measure becomes a target, it ceases to be a good measure." That is Goodhart's law. Here the measure is r_φ.
#
# Two runs of PPO are recorded with the package (`python scripts/picture.py --record` makes them again). They differ in
# β alone: 0.1 and 0. Each writes 48,000 tokens. Before each iteration the policy answered the same 192 held-out
# prompts, and these answers were measured. Gold was measured too. It is kept apart, and nobody learned from it.

# %%
recording = json.loads(RECORDING.read_text(encoding="utf-8"))
gold, watched = {}, {}
for run in recording["runs"]:
    gold[run["kl_coef"]] = np.array([step["gold"] for step in run["steps"]])
    watched[run["kl_coef"]] = [{key: step[key] for key in step if key != "gold"} for step in run["steps"]]

free = watched[0.0]  # the run without a KL penalty
for step in free[::8]:
    print(f"{step['tokens']:6} tokens  r_φ {step['score']:+.2f}  {text_of(step['samples'][0]['tokens'])}")

# %% [markdown]
# r_φ rises from beginning to end. The last texts are not what anybody wanted.
#
# **Prediction.** After how many tokens is gold highest?

# %% Prediction
peak_guess = ...

# %% [markdown]
# ## What one can watch
#
# Outside of experiments there is no gold. These can be measured in every run:
#
# | quantity | unit | in `step` |
# |---|---|---|
# | score | standard deviations of r_φ over SFT texts | `step["score"]` |
# | KL(π‖π_ref) of a response | nats | `step["kl"]` |
# | entropy of a token | nats | `step["entropy"]` |
# | length of a response | tokens | `step["length"]` |

# %%
print("  tokens  score     KL   entropy  length")
for step in free[:20]:
    print(f"{step['tokens']:8} {step['score']:+6.2f} {step['kl']:6.1f} {step['entropy']:9.2f} {step['length']:7.1f}")

# %% [markdown]
# ## Exercise 8a: a rule that stops in time
#
# r_φ learned from texts of π_ref. So ask how far the policy's texts are from those. A scale for that: π_ref spends its
# entropy, in nats, on each token. A policy that wrote one typical text of π_ref and nothing else would be about that
# many nats a token away. Then the KL of a token (the KL of a response, divided by its length) equals the entropy at the
# start. Well before that r_φ judges texts that it hardly knows.
#
# Write a rule. It sees the steps of a run, and says at which place (0, 1, …) it would stop. The gate tries it on both
# runs. It must not stop the run with β = 0.1, in which nothing is wrong. In the run with β = 0 it must stop while at
# least half of what gold had gained is still there.


# %% Exercise 8a
def stops_at(steps):
    for place, step in enumerate(steps):
        trouble = ...
        if trouble:
            return place
    return None


# %% Solution 8a [markdown]
# <details><summary>Solution 8a</summary>
#
# ```python
# def stops_at(steps):
#     for place, step in enumerate(steps):
#         trouble = step["kl"] / step["length"] > 0.75 * steps[0]["entropy"]
#         if trouble:
#             return place
#     return None
# ```
#
# The ¾ is what `RLHFMonitor` has in its alarm `kl_high`.
#
# </details>

# %% Gate 8a
check("8a", stops_at=stops_at, watched=watched, gold=gold)

# %%
tokens = np.array([step["tokens"] for step in free])
score = np.array([step["score"] for step in free])
peak = int(gold[0.0].argmax())
stop = stops_at(free)
for what, place in {"start": 0, "gold's peak": peak, "your rule": stop, "end": len(free) - 1}.items():
    print(f"{what:12} {tokens[place]:6} tokens  r_φ {score[place]:+.2f}  gold {gold[0.0][place]:+.2f}")
plot("goodhart", tokens, {"r_φ": score, "gold": gold[0.0]}, "response tokens", "score")
compare(peak_guess, int(tokens[peak]))

# %% [markdown]
# An alarm of this kind comes near the peak, and a little after it. In eight runs of docs/monitoring.md it came when
# gold had lost between a tenth and a half of its peak.
#
# **Change one line.** Put .3, and then 2, in the place of .75 in your rule. Which of the two costs more?
#
# ## Which monitors see it?
#
# Two more can be measured. *Repetition* is the share of a response's pairs of tokens that stood in it before.
# *Disagreement* needs several reward models: the standard deviation of their scores of one text. Train three, each on
# 150 labels of its own, and ask them about the recorded texts.

# %%
task = reviews_task()
tokenizer = task.tokenizer
questions = [prompt for prompt in task.prompts[:470] for _ in range(2)]
drawn = generate(
    AutoModelForCausalLM.from_pretrained(task.sft),
    [tokenizer(question)["input_ids"] for question in questions],
    max_new_tokens=task.max_new_tokens,
    stop_token_ids=[tokenizer.eos_token_id],
    generator=torch.Generator().manual_seed(0),
)
texts = [tokenizer.decode(one.response_ids, skip_special_tokens=True) for one in drawn]
pairs = [
    CandidatePair(Candidate(questions[i], texts[i]), Candidate(questions[i], texts[i + 1]))
    for i in range(0, len(texts), 2)
]
labels = BradleyTerryAnnotator(task.gold, temperature=0.25, seed=0).label(pairs)


def member(number):
    """A reward model that learned from 150 labels of its own; its scores are in standard deviations over SFT texts."""
    torch.manual_seed(number)
    model = RewardModel.from_language_model(task.sft)
    settings = RewardModelingConfig(epochs=5, learning_rate=1e-3, save_steps=0, evaluate_each_epoch=False, use_cpu=True)
    own = labels[150 * number : 150 * number + 150]
    with tempfile.TemporaryDirectory() as folder:
        train_reward_model(model, own, heldout=labels[450:], config=settings, output_dir=folder)

    def scores(prompts, responses):
        with torch.no_grad():
            return np.asarray(model.score_texts(prompts, responses))  # (B,)

    known = scores(questions[900:], texts[900:])
    return lambda prompts, responses: (scores(prompts, responses) - known.mean()) / known.std()


members = [member(number) for number in range(3)]


def disagreement(prompts, responses):
    return np.std([scores(prompts, responses) for scores in members], axis=0)  # (B,)


def repeats(prompts, responses):
    return np.array([repetition(response.split(), 2) for response in responses])  # (B,)


def mean_of_samples(measure):
    """The mean of a measure over the three recorded responses of each step, and of the two steps on either side."""
    found = measure(
        recording["prompts"] * len(free), [text_of(one["tokens"]) for step in free for one in step["samples"]]
    )
    each = found.reshape(len(free), 3).mean(axis=1)  # (steps,)
    return np.array([each[max(0, i - 2) : i + 3].mean() for i in range(len(each))])


# %% [markdown]
# **Prediction.** Gold has lost a fifth of its gain. Which of these has changed clearly by then: `"kl_per_token"`,
# `"length"`, `"entropy"`, `"repetition"`, `"disagreement"`? Clearly means by half of the value at the start. For the
# KL, which starts at 0, it means by half of the entropy at the start, and for repetition by .15. Write a list.

# %% Prediction
changed_guess = ...

# %%
monitors = {
    "kl_per_token": np.array([step["kl"] / step["length"] for step in free]),
    "length": np.array([step["length"] for step in free]),
    "entropy": np.array([step["entropy"] for step in free]),
    "repetition": mean_of_samples(repeats),
    "disagreement": mean_of_samples(disagreement),
}
first = {name: float(values[:5].mean()) for name, values in monitors.items()} | {"kl_per_token": 0.0}
clearly = {name: 0.5 * value for name, value in first.items()}
clearly |= {"kl_per_token": 0.5 * free[0]["entropy"], "repetition": 0.15}
gained = gold[0.0][peak] - gold[0.0][0]
lost = peak + int(np.argmax(gold[0.0][peak:] < gold[0.0][peak] - 0.2 * gained))
print(f"{'':14}   start   {tokens[lost]} tokens   end")
changed = []
for name, values in monitors.items():
    now = values[max(0, lost - 2) : lost + 3].mean()
    print(f"{name:14} {first[name]:7.2f} {now:10.2f} {values[-5:].mean():12.2f}")
    changed += [name] if abs(now - first[name]) > clearly[name] else []
compare(changed_guess, changed)

# %% [markdown]
# - The *KL of a token* is the one that sees it in time.
# - The *length* says nothing here: this r_φ does not prefer long texts. *Repetition* comes late.
# - *Entropy* first rises, and falls much later. There are many bad texts.
# - *Disagreement* hardly moves. The three models learned from other labels, but of the same kind, about the same kind
#   of texts. They make the same errors. It sees only errors that members do not share.
#
# Other reward models fail in other ways, and then other monitors see it. So one watches several. And one reads texts.
#
# ## The law of the curve
#
# Gao, Schulman and Hilton (2022, arXiv 2210.10760) measured many such runs. With d = √KL(π‖π_ref), the gain of gold is
#
#     best of n:  R(d) = d·(α − b·d)
#     RL:         R(d) = d·(α − b·log d)
#
# α says how fast gold rises at first, and b how fast it turns. (The paper calls b β. Here β is the price of the KL.)
# At the peak the derivative is 0: α − 2·b·d = 0, and α − b·log d − b = 0.
#
# ## Exercise 8b: the peaks by hand
#
# α = 1.2 and b = .6. At which d has each curve its peak? How many nats is the peak of RL away from π_ref?

# %% Exercise 8b
peak_best_of_n = ...
peak_rl = ...
nats_at_peak_rl = ...

# %% Solution 8b [markdown]
# <details><summary>Solution 8b</summary>
#
# ```python
# peak_best_of_n = 1.0  # α/2b
# peak_rl = 2.718  # e^{α/b − 1} = e
# nats_at_peak_rl = 7.39  # d is a root: KL = d² = e²
# ```
#
# </details>

# %% Gate 8b
check("8b", peak_best_of_n=peak_best_of_n, peak_rl=peak_rl, nats_at_peak_rl=nats_at_peak_rl)

# %% [markdown]
# ## Exercise 8c: fit the law
#
# The curve of RL is linear in α and b: R = α·(d) + b·(−d·log d). So least squares finds both. `kl` has the shape (n,),
# in nats and above 0. `gain` is gold less that of π_ref, shape (n,). Return α and b.
# `np.linalg.lstsq(features, gain, rcond=None)[0]` solves it; `features` has the shape (n, 2).


# %% Exercise 8c
def fit(kl, gain):
    d = ...
    features = ...
    alpha, b = ...
    return alpha, b


# %% Solution 8c [markdown]
# <details><summary>Solution 8c</summary>
#
# ```python
# def fit(kl, gain):
#     d = np.sqrt(kl)
#     features = np.stack([d, -d * np.log(d)], axis=1)
#     alpha, b = np.linalg.lstsq(features, gain, rcond=None)[0]
#     return alpha, b
# ```
#
# </details>

# %% Gate 8c
check("8c", fit=fit)

# %%
kl = np.array([step["kl"] for step in free])
gain = gold[0.0] - gold[0.0][0]
alpha, b = fit(kl[1:], gain[1:])
law = fit_rl(kl[1:], gain[1:], ordered=True)
d = np.sqrt(kl[1:])
print(
    f"α = {alpha:.2f}, b = {b:.2f}; peak of the fit at {np.exp(2 * (alpha / b - 1)):.1f} nats, gain {law.peak_gold:.2f}"
)
print(
    f"measured: peak at {kl[peak]:.1f} nats, gain {gained:.2f}; "
    f"root mean square of what the fit misses {law.residual:.2f}"
)
print("95 % interval of b, one run alone:", [round(float(end), 2) for end in law.intervals()[1]])
order = np.argsort(d)
plot("law", d[order], {"measured": gain[1:][order], "fit": law.curve(kl[1:])[order]}, "√KL", "gain of gold")

# %% [markdown]
# Two numbers describe 67 points well. But look at the interval: the errors of neighbouring points are alike, and one
# run says little about b. docs/studies/overoptimization.md has five runs for each of its reward models.
#
# ## Why selecting by a noisy score disappoints
#
# Take the simplest model. Gold is z ~ N(0, 1). The proxy is z + σ·ε with ε ~ N(0, 1), independent. Somebody picks a
# response *because* its proxy is high. Then both its gold and its noise are high, in proportion to their variances:
#
#     E[gold | proxy] = proxy / (1 + σ²)
#
# ## Exercise 8d: regression to the mean
#
# 1. σ = .5, and the best of many responses has the proxy 2.5. Which gold do you expect?
# 2. With another reward model, selected responses have the proxy 3 on average. People judge them: gold is 1. Which σ?

# %% Exercise 8d
expected_gold = ...
sigma = ...

# %% Solution 8d [markdown]
# <details><summary>Solution 8d</summary>
#
# ```python
# expected_gold = 2.0  # 2.5/1.25
# sigma = 1.414  # 1 + σ² = 3
# ```
#
# </details>

# %% Gate 8d
check("8d", expected_gold=expected_gold, sigma=sigma)

# %% [markdown]
# **Prediction.** In this model take the best of n by the proxy, with σ = 1, for n = 1, 4, …, 1024. What does gold do as
# n grows: `"rises"`, `"rises and falls"` or `"falls"`?

# %% Prediction
gold_of_best = ...

# %%
rng = np.random.default_rng(0)
of_best = []
for n in 4 ** np.arange(6):
    z = rng.normal(size=(2000, n))  # (repetitions, n)
    proxy = z + rng.normal(size=z.shape)
    best = proxy.argmax(axis=1)[:, None]
    of_best.append(float(np.take_along_axis(z, best, 1).mean()))
    print(f"best of {n:4}: proxy {np.take_along_axis(proxy, best, 1).mean():.2f}, gold {of_best[-1]:.2f}")
compare(gold_of_best, "rises" if np.all(np.diff(of_best) > 0) else "rises and falls")

# %% [markdown]
# Half of what the proxy promises is lost, and gold rises all the same. So plain noise does not explain the recorded
# run, in which gold *fell*. There r_φ errs in a direction: far from the texts it learned from, a high score is itself a
# sign of an error. Manheim and Garrabrant (2018, arXiv 1803.04585) call the first kind regressional and the second
# extremal.
#
# ## Cures
#
# | cure | what it does |
# |---|---|
# | β > 0, or a β steered to a KL (`AdaptiveKL`, `ConstraintKL`) | keeps the policy where r_φ is right |
# | stop early | the same, by hand |
# | fresh labels on the policy's own responses | moves the place where r_φ is right |
# | several reward models, the lowest score counts | finds errors that they do not share |
# | more labels, a larger r_φ | moves the peak further out |
# | pairs made to mislead r_φ | takes single errors away |
#
# On this task, measured with five seeds (docs/studies/remedies.md): whatever held the KL down helped most, fresh labels
# nearly as much, and ensembles only a little.
#
# ## Exercise 8e: cure it
#
# Here is a real run, a short one. Choose β. At the end gold must be at least 1.2 and the KL at most 8 nats.
# The gate runs it (20 seconds). Remember that the recorded run without a KL penalty had lost a good deal of gold by
# then.


# %%
def run(kl_coef):
    """Means at the end of 9,000 tokens of PPO: score, gold, and the KL in nats a response."""
    env = gym.make_vec("rlhf_gym/Reviews-v0", num_envs=64, reward_timing="deferred", kl_coef=kl_coef)
    agent = TokenPPO("LMPolicy", env, learning_rate=1.5e-4, n_episodes=64, seed=0, device="cpu")
    agent.learn(9_000)
    questions = task.heldout_prompts[:192]
    views = inspect_episodes(agent, prompts=questions, seed=0)
    golds = task.gold(questions, [text_of(view.tokens) for view in views])
    return {
        "score": float(np.mean([view.score for view in views])),
        "gold": float(np.mean(golds)),
        "kl": float(np.mean([view.log_ratios.sum() for view in views])),
    }


# %% Exercise 8e
kl_coef = ...

# %% Solution 8e [markdown]
# <details><summary>Solution 8e</summary>
#
# ```python
# kl_coef = 0.1
# ```
#
# </details>

# %% Gate 8e
check("8e", kl_coef=kl_coef, run=run)

# %%
for coefficient, steps in watched.items():
    last = steps[-1]
    print(
        f"recorded, β = {coefficient}: r_φ {last['score']:+.2f}, gold {gold[coefficient][-1]:+.2f}, "
        f"KL {last['kl']:.1f} nats"
    )

# %% [markdown]
# Look at both columns of the recorded runs. Without a KL penalty r_φ is *higher* at the end. Whoever compares runs by
# r_φ picks the spoiled one. r_φ taken for the truth is the most common mistake of all.
