"""What each alarm means and what to try, in plain words."""

from __future__ import annotations

WORDS: dict[str, tuple[str, str]] = {
    "disagreement": (
        "The reward models know no responses like these, and the policy may be climbing an error of theirs.",
        "Stop before this point, label fresh responses of this policy and train the reward models again, aggregate by "
        "the minimum or with an uncertainty penalty, or raise kl_coef.",
    ),
    "repetition": (
        "The policy has found that saying the same again is rewarded.",
        "Read some responses; raise kl_coef, add a RepetitionPenalty to the score, or label pairs in which the "
        "repetitive response loses.",
    ),
    "length": (
        "What looks like progress may be mere length.",
        "Compare responses of equal length; add a LengthPenalty to the score, or label pairs that the shorter wins.",
    ),
    "entropy": (
        "The policy writes nearly the same every time: of what it does not write any more it will not learn.",
        "Lower the learning rate or the epochs, raise kl_coef, or set a small ent_coef.",
    ),
    "kl_high": (
        "So far from π_ref the reward model judges texts unlike any it was trained on.",
        "Raise kl_coef, let a controller hold the KL, lower the learning rate, or go back to an earlier policy.",
    ),
    "kl_low": (
        "The policy is still π_ref: nothing is being learned.",
        "Raise the learning rate or lower kl_coef, and see that scores differ between responses to one prompt.",
    ),
    "critic": (
        "Advantages are then no better than plain returns, and noisier: the value function guesses.",
        "Raise vf_coef, take larger rollouts, use critic='separate', or an agent without a critic such as TokenRLOO.",
    ),
    "missing_eos": (
        "Responses run into the length limit, so what is scored is a fragment.",
        "Set a missing_eos_penalty, raise max_new_tokens, or look whether the score rewards going on.",
    ),
    "drift": (
        "The responses have become ones that π_ref would hardly write.",
        "Read the tokens that carry the KL; raise kl_coef, or use an earlier checkpoint.",
    ),
    "held_out": (
        "The policy is forgetting how to write texts that it is not rewarded for.",
        "Raise kl_coef, lower the learning rate, train an adapter (LoRA) instead of all weights, or mix in supervised "
        "steps.",
    ),
    "evaluation": (
        "A capability that you measure is being lost.",
        "Raise kl_coef, lower the learning rate, or use the checkpoint before the fall.",
    ),
    "pattern": (
        "A way of answering that you watch for is spreading, so it may be what the reward pays for.",
        "Read responses that match; look at how the reward model scores them against others.",
    ),
}
"""For each kind of alarm why it matters, and what to try."""
