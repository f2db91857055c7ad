# %% [markdown]
# # Lesson 0: Text as a Markov decision process
#
# **Question.** A language model writes a review. Reinforcement learning (RL) speaks of states, actions, rewards and
# ends of episodes. What are they here?
#
# You need: Python, and what a neural network is. Time: 40 minutes of reading, 10 seconds of computing.
#
# How a lesson works:
#
# 1. Read a cell and run it.
# 2. Write your prediction before a run. Nobody judges it.
# 3. In an exercise, replace each `...` by your answer.
# 4. A gate checks the answer. It says what is wrong, and the lesson goes on when it is right.
# 5. Each exercise has a folded solution. Open it when you have tried.

# %%
import gymnasium as gym
import torch
from transformers import AutoModelForCausalLM

import rlhf_gym  # this makes its environments known to Gymnasium
from rlhf_gym.lessons import begin, check, compare
from rlhf_gym.tasks import reviews_task

begin(0)

# %% [markdown]
# ## The environment
#
# The prompt is called x, the response y, and its tokens y₁, y₂, …, y_T. In this task a token is a word.
#
# | RL | here |
# |---|---|
# | state s_t | the prompt and the response so far, (x, y₁ … y_{t−1}) |
# | action a_t | the next token y_t |
# | transition | the token is appended; nothing is random |
# | reward r_t | nothing until the end, then the score of the reward model r_φ(x, y) |
# | end | the stop token `<eos>`, or the longest length allowed |
# | policy π(a\|s) | the language model: it gives each next token a probability |
#
# Later lessons add a penalty to the reward. It is switched off here: `kl_coef=0.0`.

# %%
env = gym.make("rlhf_gym/Reviews-v0", kl_coef=0.0)
tokenizer = env.unwrapped.tokenizer
prompt = "review of the soup and the service at the harbour cafe :"
words = "the soup was lovely and fresh . <eos>".split()
tokens = tokenizer.convert_tokens_to_ids(words)
print("actions:", env.action_space)
print("tokens: ", dict(zip(words, tokens)))

# %% [markdown]
# **Prediction.** We shall play these 8 tokens. After which of them is the reward not 0?
# Write their numbers, 1 to 8, as a list.

# %% Prediction
tokens_with_reward = ...

# %%
observation, info = env.reset(options={"prompt": prompt})
found = []
for number, token in enumerate(tokens, start=1):
    observation, reward, terminated, truncated, info = env.step(token)
    if reward != 0:
        found.append(number)
    print(f"{number}  {words[number - 1]:8} reward {reward:z6.3f}   terminated {terminated}")
compare(tokens_with_reward, found)

# %% [markdown]
# The reward model reads whole responses. So there is one score, and it falls on the last action.
#
# **Change one line.** In the cell above, leave out ` <eos>` from `words`, in the cell before it. Run both again.
# The episode has not ended then, and there is no reward at all. Put it back afterwards.
#
# The observation holds the state. It has a fixed length: the tokens stand on the left, and padding fills the rest.
# `attention_mask` is 1 where a token stands.

# %%
print(observation["input_ids"])
print(observation["attention_mask"])
print("tokens of prompt and response:", observation["attention_mask"].sum())

# %% [markdown]
# ## Exercise 0a: play an episode
#
# Write the loop yourself. `play` returns the list of rewards, one for each token that was played.
# It stops at the end of the episode, even if tokens are left. An episode is over when it is terminated or truncated.


# %% Exercise 0a
def play(env, prompt, tokens):
    observation, info = env.reset(options={"prompt": prompt})
    rewards = []
    for token in tokens:
        observation, reward, terminated, truncated, info = env.step(...)
        rewards.append(...)
        if ...:
            break
    return rewards


# %% Solution 0a [markdown]
# <details><summary>Solution 0a</summary>
#
# ```python
# def play(env, prompt, tokens):
#     observation, info = env.reset(options={"prompt": prompt})
#     rewards = []
#     for token in tokens:
#         observation, reward, terminated, truncated, info = env.step(token)
#         rewards.append(reward)
#         if terminated or truncated:
#             break
#     return rewards
# ```
#
# </details>

# %% Gate 0a
check("0a", play=play)

# %% [markdown]
# ## The probability of a response
#
# The policy draws one token after another. So the probability of the whole response is a product:
#
#     π(y|x) = π(y₁|x) · π(y₂|x, y₁) · … · π(y_T|x, y₁ … y_{T−1})
#
# The logarithm of a product is the sum of the logarithms:
#
#     log π(y|x) = Σ_t log π(y_t|s_t)
#
# Programs use the sum, because the product of many small numbers is rounded to 0.
#
# ## Exercise 0b: by hand
#
# A response has three tokens. Their probabilities are .5, .2 and .1, each given the tokens before it.
# What is the probability of the response, and what is its natural logarithm? (log 10 is 2.303.)

# %% Exercise 0b
probability = ...
log_probability = ...

# %% Solution 0b [markdown]
# <details><summary>Solution 0b</summary>
#
# ```python
# probability = 0.5 * 0.2 * 0.1  # .01
# log_probability = -4.605  # log .01 = −2 · 2.303; also −.693 − 1.609 − 2.303
# ```
#
# </details>

# %% Gate 0b
check("0b", probability=probability, log_probability=log_probability)

# %% [markdown]
# ## Exercise 0c: from a model's output
#
# A causal language model reads L tokens and returns a table of numbers, the logits, of shape (L, V).
# V is the number of tokens in the vocabulary. Row i is about the token *after* position i:
# `softmax(logits[i])` are the probabilities of token i + 1.
#
# `ids` holds the prompt and then the response. The response begins at position `start`.
# Return log π(y|x), the sum over the response's tokens alone. `torch.log_softmax(logits, dim=-1)` gives logarithms.


# %% Exercise 0c
def response_log_prob(logits, ids, start):
    log_probs = torch.log_softmax(logits, dim=-1)  # (L, V)
    total = 0.0
    for i in range(start, len(ids)):
        row = ...
        column = ...
        total = total + log_probs[row, column]
    return total


# %% Solution 0c [markdown]
# <details><summary>Solution 0c</summary>
#
# ```python
# def response_log_prob(logits, ids, start):
#     log_probs = torch.log_softmax(logits, dim=-1)  # (L, V)
#     total = 0.0
#     for i in range(start, len(ids)):
#         row = i - 1  # this row is about token i
#         column = ids[i]
#         total = total + log_probs[row, column]
#     return total
# ```
#
# A mistake of one row here raises no error. Training then learns something else.
#
# </details>

# %% Gate 0c
check("0c", response_log_prob=response_log_prob)

# %% [markdown]
# Now the same with the model that comes with the environment. It was trained on reviews (supervised fine-tuning,
# SFT). It will be called π_ref later on, the reference policy.

# %%
model = AutoModelForCausalLM.from_pretrained(reviews_task().sft)
length = int(observation["attention_mask"].sum())
ids = torch.from_numpy(observation["input_ids"][:length]).long()
with torch.no_grad():
    logits = model(input_ids=ids[None]).logits[0]
start = length - len(tokens)
print(f"log π(y|x), yours:                {float(response_log_prob(logits, ids, start)):.4f}")
print(f"log π(y|x), of the environment:   {info['ref_log_prob']:.4f}")

# %% [markdown]
# ## Return, and why γ = 1
#
# The return of step t is what is still to come, discounted by γ for each step: G_t = r_t + γ·G_{t+1}.
# With the score alone, on the last of T tokens, that is G_t = γ^{T−t} · score.
#
# **Prediction.** Two responses have the same score, 2. One has 4 tokens and one has 30 tokens. With γ = .9 the first
# has G₁ = 2 · .9³ = 1.46. What is G₁ of the second, roughly?

# %% Prediction
long_response = ...

# %%
compare(long_response, 2 * 0.9**29)

# %% [markdown]
# So γ < 1 makes a good response worth less when it is long. (It makes a bad one, with a score below 0, worth more.)
# Nobody asked for that. With γ = 1 every token has the same return, the score. RLHF uses γ = 1 throughout. Episodes
# always end, so the sum stays finite.
#
# ## Exercise 0d: returns
#
# Write the returns G₁ … G_T of a list of rewards. Go from the last one to the first.


# %% Exercise 0d
def returns(rewards, gamma):
    found = []
    following = 0.0  # the return of the step after this one
    for reward in reversed(rewards):
        following = ...
        found.append(following)
    return found[::-1]


# %% Solution 0d [markdown]
# <details><summary>Solution 0d</summary>
#
# ```python
# def returns(rewards, gamma):
#     found = []
#     following = 0.0  # the return of the step after this one
#     for reward in reversed(rewards):
#         following = reward + gamma * following
#         found.append(following)
#     return found[::-1]
# ```
#
# </details>

# %% Gate 0d
check("0d", returns=returns)

# %%
rewards = play(env, prompt, tokens)
print("γ = 1: ", [round(g, 2) for g in returns(rewards, 1.0)])
print("γ = .9:", [round(g, 2) for g in returns(rewards, 0.9)])

# %% [markdown]
# ## Why tokens, when the score is of the whole response?
#
# One could also call the whole response a single action. Then there are V^T actions.

# %%
vocabulary, horizon = int(env.action_space.n), 32
print(f"V = {vocabulary}, T = {horizon}: about 10^{len(str(vocabulary**horizon)) - 1} responses")

# %% [markdown]
# Nobody can hold a table of so many actions. The model holds π(y_t|s_t) for V tokens at a time.
# Three things need single tokens:
#
# - the gradient of log π(y|x), which is a sum over tokens;
# - the advantage, which says which token made things better than expected (lesson 5);
# - the penalty for leaving π_ref, which is a sum over tokens too (lesson 3).
#
# ## Where the models come from
#
# | stage | learns from | gives |
# |---|---|---|
# | pretraining | much text | a model that continues any text |
# | supervised fine-tuning (SFT) | prompts with good responses | π_ref, where RL begins |
# | reward modelling | people's comparisons of two responses (lessons 1 and 2) | r_φ |
# | RL from human feedback (RLHF) | scores of r_φ on the policy's own responses (lessons 3 to 8) | the policy π |
#
# After that one compares the new policy's responses, trains r_φ again, and so on.
#
# The symbols: x prompt · y response · s state · π policy · π_ref reference policy · r_φ reward model · T length of
# the response · V size of the vocabulary · G return · γ discount.
