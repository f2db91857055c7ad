"""The stages of a run: pretrain → SFT → collect preferences → reward model → train an agent → evaluate → report."""

from rlhf_gym.pipeline.adversarial import add_adversarial_pairs
from rlhf_gym.pipeline.candidates import draw_candidates
from rlhf_gym.pipeline.collect import all_preferences
from rlhf_gym.pipeline.comparison import difference_at_equal, win_rate
from rlhf_gym.pipeline.context import Run
from rlhf_gym.pipeline.preparation import prepare
from rlhf_gym.pipeline.reward import adversarial_folder, normalise, reference_samples, train_member
from rlhf_gym.pipeline.samples import Samples, draw, gold_scores, log_probs, proxy_scores
from rlhf_gym.pipeline.selection import label_actively
from rlhf_gym.pipeline.stages import Interrupted, execute, run
from rlhf_gym.pipeline.train import train_agent

__all__ = [
    "Interrupted",
    "Run",
    "Samples",
    "add_adversarial_pairs",
    "adversarial_folder",
    "all_preferences",
    "difference_at_equal",
    "draw",
    "draw_candidates",
    "execute",
    "gold_scores",
    "label_actively",
    "log_probs",
    "normalise",
    "prepare",
    "proxy_scores",
    "reference_samples",
    "run",
    "train_agent",
    "train_member",
    "win_rate",
]
