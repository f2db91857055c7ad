# %% [markdown]
# # Lesson 2: A reward model from 300 labels, and what it pays for
#
# **Question.** A network learns r_φ(x, y) from comparisons. What has it learned: what is good, or what is easy to see?
#
# You need: lesson 1. Time: 50 minutes of reading, 30 seconds of computing.

# %%
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rlhf_gym.lessons import begin, check, compare
from rlhf_gym.lm import generate
from rlhf_gym.preferences import BradleyTerryAnnotator, Candidate, CandidatePair
from rlhf_gym.rewards import RewardModel, keyword_reward, length_reward, sum_rewards
from rlhf_gym.tasks import reviews_task
from rlhf_gym.training import RewardModelingConfig, train_reward_model

begin(2)
torch.manual_seed(0)

# %% [markdown]
# ## Where the score stands
#
# r_φ is a language model with another head: instead of V logits it has one number, the score. The head is one linear
# layer on the hidden state of the *last real token*. With causal attention only that state has read the whole text.
#
# Texts of a batch have different lengths. They stand on the left, with padding after them. `attention_mask` is 1 at
# real tokens. Do not look for the padding token itself: in many models it is also the token that ends a text.
#
# ## Exercise 2a: the last real token
#
# `attention_mask` has the shape (B, L). Return the position of the last real token of each row, shape (B,).


# %% Exercise 2a
def last_position(attention_mask):
    return ...


# %% Solution 2a [markdown]
# <details><summary>Solution 2a</summary>
#
# ```python
# def last_position(attention_mask):
#     return attention_mask.sum(dim=1) - 1  # (B,)
# ```
#
# </details>

# %% Gate 2a
check("2a", last_position=last_position)

# %% [markdown]
# ## Labels
#
# The SFT model answers each of 500 prompts twice. Simulated annotators compare the two answers. We know how they judge,
# and that is the use of simulation. They go by a hidden score:
#
#     gold + 0.15 · (number of words) + 1.5 · (number of the words very, quite, rather, really)
#
# *Gold* is how good a review really is. The other two terms are biases: these annotators are impressed by long
# reviews and by emphatic words. Real people have such biases too. Gold is known in experiments only, and no model
# learns from it.

# %%
LENGTH_BIAS = 0.15
EMPHASIS_BIAS = 1.5
EMPHATIC = ["very", "quite", "rather", "really"]

task = reviews_task()
gold = task.gold
tokenizer = task.tokenizer
sft = AutoModelForCausalLM.from_pretrained(task.sft)
prompts = [*task.prompts[:300], *task.heldout_prompts[:200]]  # nothing is trained on the last 200
drawn = generate(
    sft,
    [tokenizer(prompt)["input_ids"] for prompt in prompts for _ in range(2)],
    max_new_tokens=task.max_new_tokens,
    stop_token_ids=[tokenizer.eos_token_id],
    generator=torch.Generator().manual_seed(0),
)
texts = [tokenizer.decode(one.response_ids, skip_special_tokens=True) for one in drawn]
print(prompts[0])
print("  1:", texts[0])
print("  2:", texts[1])


# %%
def label(pairs):
    bias = sum_rewards((LENGTH_BIAS, length_reward()), (EMPHASIS_BIAS, keyword_reward(EMPHATIC)))
    return BradleyTerryAnnotator(gold, temperature=0.5, bias=bias, seed=0).label(pairs)


pairs = [
    CandidatePair(Candidate(prompt, texts[2 * i]), Candidate(prompt, texts[2 * i + 1]))
    for i, prompt in enumerate(prompts)
    if texts[2 * i] != texts[2 * i + 1]
]
split = sum(prompt in set(prompts[:300]) for prompt in (pair.first.prompt for pair in pairs))
labels, heldout = label(pairs[:split]), label(pairs[split:])
print(len(labels), "labels to learn from,", len(heldout), "held out")
print("chosen:  ", labels[0].chosen)
print("rejected:", labels[0].rejected)

# %% [markdown]
# ## Training
#
# The loss is that of lesson 1. The network starts from the SFT model, so it knows the language already.
#
# **Prediction.** On held-out labels, how often does r_φ give the chosen answer the higher score? A coin is right in .5.

# %% Prediction
accuracy_guess = ...


# %%
def train(labels, heldout):
    reward_model = RewardModel.from_language_model(task.sft)
    settings = RewardModelingConfig(epochs=4, learning_rate=1e-3, save_steps=0, evaluate_each_epoch=False, use_cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        train_reward_model(reward_model, labels, heldout=heldout, config=settings, output_dir=folder)
    return reward_model


reward_model = train(labels, heldout)


def r_phi(prompts, responses):
    with torch.no_grad():
        return np.asarray(reward_model.score_texts(prompts, responses))  # (B,)


def accuracy(score, labels):
    chosen = score([one.prompt for one in labels], [one.chosen for one in labels])
    rejected = score([one.prompt for one in labels], [one.rejected for one in labels])
    return float(np.mean(chosen > rejected))


compare(accuracy_guess, accuracy(r_phi, heldout))

# %% [markdown]
# ## The length trap
#
# That looks like success. Before one believes a number, one asks what a stupid rule would reach.
# The stupid rule here: the longer answer wins.
#
# ## Exercise 2b: the stupid rule
#
# `labels` is a list of preferences; each has `.chosen` and `.rejected`, which are texts. Return the share in which the
# chosen answer has more words (`len(text.split())`). Leave out pairs with as many words on both sides.


# %% Exercise 2b
def longer_wins(labels):
    return ...


# %% Solution 2b [markdown]
# <details><summary>Solution 2b</summary>
#
# ```python
# def longer_wins(labels):
#     lengths = [(len(one.chosen.split()), len(one.rejected.split())) for one in labels]
#     different = [(chosen, rejected) for chosen, rejected in lengths if chosen != rejected]
#     return sum(chosen > rejected for chosen, rejected in different) / len(different)
# ```
#
# </details>

# %% Gate 2b
check("2b", longer_wins=longer_wins)

# %%
responses = texts[600::2]  # an answer to each held-out prompt
questions = prompts[300:]
words = np.array([len(text.split()) for text in responses])
scores = r_phi(questions, responses)
true_labels = BradleyTerryAnnotator(gold, temperature=0.0).label(pairs[split:])
for judge, judged in {"held-out labels": heldout, "gold": true_labels}.items():
    print(f"{judge:15}  r_φ is right {accuracy(r_phi, judged):.2f}   the longer answer wins {longer_wins(judged):.2f}")
by_r_phi = np.corrcoef(words, scores)[0, 1]
by_gold = np.corrcoef(words, gold(questions, responses))[0, 1]
print(f"correlation with the number of words: r_φ {by_r_phi:+.2f}, gold {by_gold:+.2f}")

# %% [markdown]
# r_φ has learned its annotators, and they are not gold. Held-out labels cannot show that: the same people made them.
# **r_φ is not the truth.** It is a model of what some people said about some texts.
#
# **Change one line.** Set `LENGTH_BIAS = 0.0` above and run again from the cell "Labels" on. What happens to the last
# line? Put it back before you go on.
#
# ## What it pays for
#
# One can ask a reward model about texts that nobody wrote. Change a text in one respect, and see how the score changes.
# Changes are given in standard deviations of the scores, because the unit of scores means nothing.


# %%
def emphasise(text):
    return text.replace(" was ", " was really ")


def ramble(text):
    return f"{text} you know how it goes ."


def stray(text):
    return f"{text} the tea was usual ."


def shout(text):
    return text.replace(" .", " !")


def complain(text):
    return f"{text} i regretted the music ."


def shorten(text):
    return text.split(" .")[0] + " ."


edits = {edit.__name__: edit for edit in (emphasise, ramble, stray, shout, complain, shorten)}
for name, edit in edits.items():
    print(f"{name:10} {edit(responses[0])}")

# %% [markdown]
# ## Exercise 2c: the effect of an edit
#
# Return the mean change of the score when `edit` is applied to every response, divided by the standard deviation of the
# scores of the *unedited* responses. `score(questions, responses)` gives an array of scores.


# %% Exercise 2c
def effect(score, questions, responses, edit):
    before = score(questions, responses)
    after = ...
    return ...


# %% Solution 2c [markdown]
# <details><summary>Solution 2c</summary>
#
# ```python
# def effect(score, questions, responses, edit):
#     before = score(questions, responses)
#     after = score(questions, [edit(response) for response in responses])
#     return float(np.mean(after - before) / np.std(before))
# ```
#
# </details>

# %% Gate 2c
check("2c", effect=effect)

# %% [markdown]
# **Prediction.** Which of the six edits does r_φ like, though gold does not? Write their names as a list.

# %% Prediction
liked = ...

# %%
print(f"{'edit':10}   r_φ     gold")
table = {}
for name, edit in edits.items():
    table[name] = effect(r_phi, questions, responses, edit), effect(gold, questions, responses, edit)
    print(f"{name:10} {table[name][0]:+.2f}   {table[name][1]:+.2f}")
compare(liked, [name for name, (by_r_phi, by_gold) in table.items() if by_r_phi > 0.1 and by_gold < 0.0])

# %% [markdown]
# ## Exercise 2d: be the policy
#
# A policy that is trained on r_φ finds such edits, and combines them. Do it by hand. Write `exploit(text)`, which
# returns a changed text. On the held-out answers r_φ must rise by at least 1 standard deviation on average, and gold
# must fall by at least .5. The words must be those of the reviews; r_φ knows no others.


# %% Exercise 2d
def exploit(text):
    return ...


# %% Solution 2d [markdown]
# <details><summary>Solution 2d</summary>
#
# ```python
# def exploit(text):
#     return "the tea was really lovely and very good . the music was quite lovely and rather good . the pie was rich ."
# ```
#
# There are many. This one throws the answer away, and gives the same praise to every question. A policy that does so
# has collapsed to one answer. Adding "the tea was really very usual and very very ordinary ." to every answer does as
# well.
#
# </details>

# %% Gate 2d
check("2d", exploit=exploit, r_phi=r_phi, gold=gold, questions=questions, responses=responses)

# %%
print(exploit(responses[0]))
print(f"r_φ  {effect(r_phi, questions, responses, exploit):+.2f}")
print(f"gold {effect(gold, questions, responses, exploit):+.2f}")

# %% [markdown]
# Nobody told r_φ to like such texts. It saw hardly any of them, and it goes by what is easy to see: more words.
# That is *distribution shift*: r_φ is trained on texts of one policy, and asked about texts of another one.
#
# ## The unit of scores
#
# Lesson 1: comparisons do not fix a constant. Nor do scores have a unit that one could compare between reward models.
# So one normalises them: on answers of the SFT model the mean is set to 0 and the standard deviation to 1.
#
# The *order* of answers stays the same. PPO is not indifferent, though: docs/loops.md has runs with scores times .1,
# 1 and 10, normalised or not. Lessons 3 and 4 maximise
#
#     (mean score) − β · (distance from the SFT policy)
#
# ## Exercise 2e: what normalising does to β
#
# The scores of a reward model have a standard deviation of 2.5. Somebody normalises them, and uses β = .1. Without
# normalising, which β gives the same best policy?

# %%
print(f"your r_φ: mean {scores.mean():+.2f}, standard deviation {scores.std():.2f}")

# %% Exercise 2e
beta_without_normalising = ...

# %% Solution 2e [markdown]
# <details><summary>Solution 2e</summary>
#
# ```python
# beta_without_normalising = 0.25  # multiply score/2.5 − .1 · distance by 2.5: score − .25 · distance
# ```
#
# </details>

# %% Gate 2e
check("2e", beta_without_normalising=beta_without_normalising)

# %% [markdown]
# ## Exercise 2f: what went wrong?
#
# Four reports from people who use a reward model. Name the cause of each, one of these words:
#
# - `"length"`: longer answers were chosen more often;
# - `"tone"`: sure-sounding answers were chosen more often, right or wrong;
# - `"refusal"`: answers that say nothing risky were never rejected;
# - `"prompts"`: the prompts of the labels are not those of use.

# %%
reports = {
    1: "Asked for the year of a treaty it does not know, the policy answers: 'Without any doubt 1648.'",
    2: "Asked how to clean a wound, the policy answers that it would rather not say.",
    3: "It was labelled on questions about cooking. On questions about law its scores are no better than chance.",
    4: "Asked for the capital of France, the policy gives the capital, its history and its ten best museums.",
}

# %% Exercise 2f
causes = {1: ..., 2: ..., 3: ..., 4: ...}

# %% Solution 2f [markdown]
# <details><summary>Solution 2f</summary>
#
# ```python
# causes = {1: "tone", 2: "refusal", 3: "prompts", 4: "length"}
# ```
#
# </details>

# %% Gate 2f
check("2f", causes=causes)

# %% [markdown]
# What one can do:
#
# | cause | cure |
# |---|---|
# | length | labels of pairs with the same length; a penalty for length; watch the length while training |
# | tone | guidelines for annotators; pairs of a modest right answer with a sure wrong one; checking facts |
# | refusal | as many labels for being helpful as for being safe |
# | prompts | labels on the prompts of use; fresh labels on what the new policy writes |
# | any error of one r_φ | several of them, an ensemble: where they differ, trust none |
#
# The responses that are labelled matter too. At a low temperature both answers are alike, and a label says little.
# At a high one there are errors in them that the policy would never make. One may mix: samples at several temperatures,
# the likeliest response (by beam search), and responses of several checkpoints.
#
# r_φ may also share its body with the policy, with one more head on it. That saves memory. But then each step of
# training the policy changes the scores too. This project keeps them apart; docs/reward_models.md has both ways side by
# side.
