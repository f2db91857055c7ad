# %% [markdown]
# # Lesson 9: The failure clinic, and your own labels
#
# **Question.** A run is not what it should be. Can you tell from its curves what is wrong? And if the labels are your
# own: what can a reward model learn from 48 of them?
#
# You need: lessons 2, 6 and 8. Time: 40 minutes of reading, 20 minutes of labelling, 30 seconds of computing.

# %%
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rlhf_gym.lessons import begin, check, compare, plot
from rlhf_gym.lessons.clinic import Case, clinic_runs, record
from rlhf_gym.lm import generate
from rlhf_gym.preferences import BradleyTerryAnnotator, Candidate, CandidatePair, Preference
from rlhf_gym.rewards import RewardModel
from rlhf_gym.tasks import reviews_task
from rlhf_gym.training import RewardModelingConfig, train_reward_model

begin(9)

# %% [markdown]
# ## Seven patients
#
# Seven real runs of PPO, recorded with the package (`python -m rlhf_gym.lessons.clinic` makes them again). Each writes
# 16,000 tokens, 64 responses an iteration. One is healthy. In each of the others one thing is wrong. (In some of them β
# is smaller too, or the learning rate does not fall, so that the fault shows.) There is no gold here: you have what one
# has in practice.
#
# | curve | what it is |
# |---|---|
# | `score` | the mean reward without the KL penalty; its unit is another one where the reward is another one |
# | `kl` | KL(π‖π_ref) of a response, nats |
# | `entropy` | of a token, nats |
# | `length` | of a response, tokens |
# | `different` | the share of different responses among the 64 |
# | `clipped` | the share of tokens whose ratio was clipped in the update |
# | `explained` | the share of the variance of the returns that the critic explains |

# %%
runs = clinic_runs()
for letter, curves in runs.items():
    places = np.linspace(0, len(curves["tokens"]) - 1, 7).astype(int)
    print(f"\nRun {letter}")
    for name, values in curves.items():
        digits = 0 if name == "tokens" else 2
        print(f"  {name:10}" + "".join(f"{values[place]:9.{digits}f}" for place in places))

# %%
shown = "score"  # or "kl", "entropy", "length", "different", "clipped", "explained"
for letter, curves in runs.items():
    plot(f"clinic_{letter}_{shown}", curves["tokens"], {letter: curves[shown]}, "response tokens", shown)

# %% [markdown]
# **Change one line.** Look at another curve: change `shown`.
#
# What a healthy run looks like: the score rises and then stays. The KL rises to a few nats and stays there. Entropy
# falls a little. The responses to different prompts are different. Updates clip some tokens at first, and few later.
# The critic explains a part of the returns.
#
# ## Exercise 9a: diagnose them
#
# Write one word for each run. Each word occurs once.
#
# - `"healthy"`;
# - `"kl"`: there is no KL penalty, and the policy runs away from π_ref;
# - `"fast"`: the learning rate is far too high;
# - `"slow"`: the learning rate is far too low;
# - `"length"`: the reward pays for words;
# - `"collapse"`: the policy settles on one response, because the reward has a single favourite;
# - `"critic"`: the critic is not trained.
#
# Begin with the runs in which the score does not rise. In the others ask what rises or falls with it.

# %% Exercise 9a
diagnoses = {"A": ..., "B": ..., "C": ..., "D": ..., "E": ..., "F": ..., "G": ...}

# %% Solution 9a [markdown]
# <details><summary>Solution 9a</summary>
#
# ```python
# diagnoses = {
#     "A": "fast",  # most tokens are clipped in the first update; then the score falls, and nothing is learned any more
#     "B": "length",  # the responses grow by half, with the score
#     "C": "healthy",
#     "D": "critic",  # learns as C does, but the critic explains nothing at all
#     "E": "kl",  # the highest score of those that r_φ gives, and the KL goes on rising
#     "F": "collapse",  # the score rises while entropy falls to nothing, and one response is left
#     "G": "slow",  # nothing moves
# }
# ```
#
# </details>

# %% Gate 9a
check("9a", diagnoses=diagnoses, runs=runs)

# %% [markdown]
# D shows why one must look at the critic too: its score is as good as C's. In so short a run a useless critic did no
# harm. B's critic explains little as well, up to 3 %, but its responses are what stands out. More than one thing may be
# wrong with a run, and one begins with the largest.
#
# F is not an error of PPO. The policy found what the reward pays for. And A looks like F for a while, with a
# difference: in A the score *fell*. Nothing in the reward asked for it. An update that was too large did it, and a
# policy that always writes the same learns nothing from what it writes.
#
# What shows each failure, and what one can do:
#
# - **Reward hacking**: KL and r_φ rise on and on. A higher β or a KL target; fresh labels on the policy's responses;
#   several reward models; pairs made to mislead r_φ.
# - **Length**: it rises with the score. A penalty for length; labels of pairs that the shorter one wins.
# - **One response to everything**: entropy and the share of different responses fall. An entropy bonus; a KL target; a
#   reward that depends on the prompt; labels for being helpful as well as for being safe.
# - **Steps that are too large**: many clipped tokens, a score that falls. A smaller learning rate, fewer passes.
# - **Lost capabilities**: tests of other tasks fall, held-out texts become improbable. A higher β; such tests in the
#   evaluation; such texts in the loss (`PretrainingMix`); a better SFT model as π_ref.
# - **Sure of everything**: words of certainty spread. Guidelines for annotators; pairs of a modest right answer with a
#   sure wrong one; facts checked by other means.
# - **A critic that explains nothing**: explained variance stays at 0. A critic of its own, a larger `vf_coef`, more
#   responses; or RLOO, which has no critic.
#
# docs/studies/gallery.md has such runs with their cures, lost capabilities among them. docs/monitoring.md has the
# alarms that see them, and a picture of healthy runs that says where to look first.
#
# ## Exercise 9b: treat run A
#
# Run A had a learning rate of .02. `record` makes a run; this one stops after 3,900 tokens, which is 5 or 6 iterations.
# Write a learning rate with which the score gains at least 1.2 in so short a time, and the policy does not break. All
# else stays as it was. Try powers of ten, down from .01.


# %%
def treated(learning_rate):
    return record(Case("treated", learning_rate=learning_rate, falls=False), tokens=3_900)


# %% Exercise 9b
learning_rate = ...

# %% Solution 9b [markdown]
# <details><summary>Solution 9b</summary>
#
# ```python
# learning_rate = 5e-4
# ```
#
# </details>

# %% Gate 9b
check("9b", learning_rate=learning_rate, treated=treated)

# %% [markdown]
# ## Your own labels
#
# Now you are the annotator. Annotators get guidelines; what is not in them, each decides in another way. Here they are:
#
# 1. A good review is kind, with two or three words of praise. Gushing and complaints are bad.
# 2. It names the dish and the aspect that the prompt asks about, and no others.
# 3. It has 8 to 18 words, and does not repeat itself.
# 4. It is well formed, and has no empty phrases.
# 5. If both are alike, decide all the same. Do not go by which one stands first.
#
# Below are 60 pairs of responses of the SFT model. Some of them come twice, with the sides changed. Do not look for
# them.

# %%
task = reviews_task()
tokenizer = task.tokenizer
rng = np.random.default_rng(9)
prompts = [*task.prompts[:48], *task.heldout_prompts[:200]]
drawn = generate(
    AutoModelForCausalLM.from_pretrained(task.sft),
    [tokenizer(prompt)["input_ids"] for prompt in prompts for _ in range(2)],
    max_new_tokens=task.max_new_tokens,
    stop_token_ids=[tokenizer.eos_token_id],
    generator=torch.Generator().manual_seed(9),
)
texts = [tokenizer.decode(one.response_ids, skip_special_tokens=True) for one in drawn]
pairs = [(prompt, texts[2 * i], texts[2 * i + 1]) for i, prompt in enumerate(prompts)]
again = 4 * np.arange(12)  # the pairs that come twice
to_label = [*pairs[:48], *((pairs[i][0], pairs[i][2], pairs[i][1]) for i in again)]
order = [*range(24), *(int(i) for i in 24 + rng.permutation(36))]  # the second time is never among the first 24
to_label = [to_label[i] for i in order]
twice = [(order.index(int(i)), order.index(48 + k)) for k, i in enumerate(again)]
for number, (prompt, first, second) in enumerate(to_label, start=1):
    print(f"{number:2} {prompt}\n    1: {first}\n    2: {second}")

# %% [markdown]
# ## Exercise 9c: how sure is a share?
#
# You will be told in how many of n held-out pairs r_φ is right. A coin is right in about half of them, and sometimes in
# more. So one looks at the lower end of a 95 % interval. Wilson's, with p = right/n and z = 1.96:
#
#     (p + z²/2n − z·√(p·(1 − p)/n + z²/4n²)) / (1 + z²/n)
#
# Write it as a function.


# %% Exercise 9c
def lower_end(right, n):
    p = ...
    z = 1.96
    return ...


# %% Solution 9c [markdown]
# <details><summary>Solution 9c</summary>
#
# ```python
# def lower_end(right, n):
#     p = right / n
#     z = 1.96
#     half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
#     return (p + z**2 / (2 * n) - half) / (1 + z**2 / n)
# ```
#
# </details>

# %% Gate 9c
check("9c", lower_end=lower_end)

# %%
for right, n in ((7, 10), (35, 50), (140, 200)):
    print(f"{right} of {n}: {right / n:.2f}, at least {lower_end(right, n):.2f}")

# %% [markdown]
# The share is .70 each time. With 10 pairs the lower end is below .5: a coin may do as well. With 200 it is far above.
#
# ## Training on them
#
# As in lesson 2: from the SFT model, with the loss of lesson 1, ten passes over 48 labels. It is asked about 200
# held-out pairs, on prompts that you did not see. For those there are labels of an annotator who follows the guidelines
# to the letter. (It goes by gold. Here gold is the guidelines, as a program.)
#
# **Prediction.** In what share of the 200 will the r_φ that learned from you be right?

# %% Prediction
accuracy_guess = ...


# %%
def candidates(pairs):
    return [CandidatePair(Candidate(prompt, first), Candidate(prompt, second)) for prompt, first, second in pairs]


heldout = BradleyTerryAnnotator(task.gold, temperature=0.0).label(candidates(pairs[48:]))


def train(labels):
    """The scores, as a function of prompts and responses, that a reward model has learned from labels."""
    torch.manual_seed(0)
    model = RewardModel.from_language_model(task.sft)
    settings = RewardModelingConfig(
        epochs=10, learning_rate=1e-3, save_steps=0, evaluate_each_epoch=False, use_cpu=True
    )
    with tempfile.TemporaryDirectory() as folder:
        train_reward_model(model, labels, heldout=heldout, config=settings, output_dir=folder)

    def scores(prompts, responses):
        with torch.no_grad():
            return np.asarray(model.score_texts(prompts, responses))  # (B,)

    return scores


# %% [markdown]
# ## Exercise 9d: label them
#
# Write one digit for each of the 60 pairs, `1` or `2`, the better response. Spaces and line breaks are ignored, so
# write ten in a row. The gate asks three things:
#
# - do you agree with yourself, on the pairs that came twice?
# - is a side chosen much more often than the other?
# - does r_φ learn something from your labels, surely more than a coin knows?
#
# (`rlhf-gym label` is the page in the browser for this, with several annotators: docs/labeling.md.)

# %% Exercise 9d
choices = ...  # """1221212212
# ..."""

# %% Solution 9d [markdown]
# <details><summary>Solution 9d</summary>
#
# Yours are as good as any that pass. These are the labels of gold, which a person has not.
#
# ```python
# choices = ""
# for prompt, first, second in to_label:
#     by_gold = task.gold([prompt, prompt], [first, second])
#     choices += "1" if (by_gold[0], first) > (by_gold[1], second) else "2"
# ```
#
# </details>

# %% Gate 9d
check("9d", choices=choices, pairs=to_label, twice=twice, train=train, heldout=heldout)

# %%
choices = "".join(choices.split())
repeated = {later for _, later in twice}
mine = [
    Preference(prompt, *((first, second) if choice == "1" else (second, first)))
    for number, ((prompt, first, second), choice) in enumerate(zip(to_label, choices, strict=True))
    if number not in repeated
]
scores = train(mine)
chosen = scores([one.prompt for one in heldout], [one.chosen for one in heldout])
rejected = scores([one.prompt for one in heldout], [one.rejected for one in heldout])
right = int((chosen > rejected).sum())
own = sum(choices[first] != choices[later] for first, later in twice)
gold = [task.gold([one.prompt] * 2, [one.chosen, one.rejected]) for one in mine]
longer = np.mean([len(one.chosen) > len(one.rejected) for one in heldout])
print(
    f"you agree with yourself in {own} of {len(twice)} pairs, and with gold in {np.mean([a >= b for a, b in gold]):.0%}"
)
print(f"r_φ is right in {right} of {len(heldout)}: at least {lower_end(right, len(heldout)):.2f}")
print(f"a rule to beat, the longer one wins: {longer:.2f}")
compare(accuracy_guess, right / len(heldout))

# %% [markdown]
# What one learns from labelling: guidelines leave much open, one gets tired, and one's own answers differ. Nobody's
# labels are the truth: two annotators of InstructGPT agreed in 73 % of the pairs (Ouyang et al. 2022, arXiv
# 2203.02155). Such noise is a ceiling for what one can measure of r_φ.
#
# ## The end of the course
#
# You have gone the whole circle once: preferences, a reward model, a KL penalty, an objective, a policy gradient, PPO's
# clip, a loop, its failures, and labels of your own. `rlhf-gym run` does it in one command. Its report shows what you
# have learned to look at, and docs/start.md says how to begin with a model of your own.
