"""python scripts/mutants.py [WORD]: do the tests notice a mistake in the maths? Each mutant is one.

    python scripts/mutants.py              # all of them, some minutes
    python scripts/mutants.py kl           # those of files with "kl" in their path

The package is copied, one line of the copy is replaced, and the tests of that file run until one fails; a mutant that
none of them notices survives. It leaves out what no line can show: a mistake that the maths and its tests share.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = r"""
rlhf_gym/functional/masks.py: functional/test_masks.py functional/test_properties.py
    return x.masked_fill(mask == 0, 0) ⇒ return x * mask
    return total / denominator ⇒ return total / torch.count_nonzero(mask)
    return total / count ⇒ return total / mask.numel()
    centred = zero_masked(x, mask) - mean ⇒ centred = zero_masked(x, mask)
    masked_mean(centred.square(), mask) + epsilon ⇒ centred.square().mean() + epsilon
rlhf_gym/functional/policy_gradient.py: functional/test_p*.py functional/test_losses.py
    + gamma * next_value ⇒ + next_value
    + gamma * gae_lambda * next_advantage ⇒ + gae_lambda * next_advantage
    torch.where(acted[:, t], advantage, next_advantage) ⇒ advantage
    torch.where(acted[:, t], values[:, t], next_value) ⇒ values[:, t]
    return advantages, advantages + values ⇒ return advantages, advantages
    torch.get_default_dtype()))).clamp(min=0) ⇒ torch.get_default_dtype())))
    gamma=gamma, gae_lambda=1.0)[0] ⇒ gamma=gamma, gae_lambda=gamma)[0]
    returns.amax(dim=1) > returns ⇒ returns.amax(dim=1) >= returns
    _centred(scores) * (k / (k - 1)) ⇒ _centred(scores)
    std(dim=1, keepdim=True) ⇒ std(dim=1, keepdim=True, correction=0)
    apart = scores - scores[:, :1] ⇒ apart = scores
    if dual_clip is not None ⇒ objective = ratio.clamp(1 - low, 1 + high) * advantages\n    if dual_clip is not None
    torch.where(advantages < 0 ⇒ torch.where(advantages > 0
    (mask != 0).sum(dim=1, keepdim=True) ⇒ (mask == mask).sum(dim=1, keepdim=True)
    * (own - own.detach()).exp() ⇒ * (own - own).exp()
    ratio = log_ratio.detach().exp() ⇒ ratio = log_ratio.exp()
    torch.expm1(log_ratio) - log_ratio ⇒ torch.expm1(-log_ratio) + log_ratio
    (ratio < 1 - clip_range[0]) ⇒ (ratio < 1 - clip_range[1])
    masked_mean(torch.maximum(error, clipped_error) ⇒ masked_mean(clipped_error
    old_values + (values - old_values).clamp ⇒ values + (values - old_values).clamp
    return -masked_mean(zero_masked(log_prob ⇒ return masked_mean(zero_masked(log_prob
    entropies = log_total - mean ⇒ entropies = log_total + mean
    shifted + (entropies - log_total) ⇒ shifted + (log_total - log_total)
    .clamp_(min=LOWEST) ⇒ + 0
rlhf_gym/functional/kl.py: functional/test_kl.py functional/test_properties.py
    0.5 * k1 ⇒ k1
    torch.expm1(-log_ratio) + log_ratio ⇒ torch.expm1(log_ratio) - log_ratio
    (log_prob - old_log_prob).exp() ⇒ (log_prob - old_log_prob).exp().detach()
    - differentiated).detach() ⇒ - differentiated)
    never = pi == 0 ⇒ never = pi < 0
    kl / target - 1.0 ⇒ kl - target
    error * n / horizon ⇒ error / horizon
rlhf_gym/functional/losses.py: functional/test_losses.py functional/test_properties.py
    chosen - rejected - margin ⇒ chosen - rejected + margin
    label_smoothing * logsigmoid(-delta) ⇒ label_smoothing * logsigmoid(delta)
    (chosen + rejected).square() ⇒ (chosen - rejected).square()
    weight.sum() if denominator ⇒ weight.numel() if denominator
    beta * rejected_log_ratio,\n ⇒ rejected_log_ratio,\n
    1 / (2 * beta)).square() ⇒ 1 / beta).square()
rlhf_gym/functional/best_of_n.py: functional/test_best_of_n.py
    _tied_means(np.take_along_axis(proxy, order, 1), np ⇒ (np
agents/kl_control.py: agents/test_kl_control.py
    self.average + self.lookahead * self.trend ⇒ self.average - self.lookahead * self.trend
    self.integral + self.proportional * error ⇒ self.integral
    before + (1 - self.smoothing) * kl ⇒ kl + (1 - self.smoothing) * before
    float(np.clip(self.integral + self.learning_rate * error, low, high)) ⇒ float(self.integral + error / 2)
agents/rollout.py: agents/test_rollout.py agents/test_remedies.py
    mask = self.mask & self.learned[:, None] ⇒ mask = self.mask
    batch.advantages * size.weights(batch) ⇒ batch.advantages
    self.mask, gamma=gamma, gae_lambda=critic_lambda ⇒ self.mask, gamma=gamma, gae_lambda=lambdas
agents/policy_gradients.py: agents/test_family.py agents/test_remedies.py
    MEMORY * self._running + (1 - MEMORY) * mean ⇒ mean
envs/token_reward.py: envs/test_rewards.py envs/test_dense.py
    return -self.kl_coef * log_ratios ⇒ return self.kl_coef * log_ratios
    shaped - np.float32(self.missing_eos_penalty) ⇒ shaped + np.float32(self.missing_eos_penalty)
    rewards[np.arange(len(episodes)), lengths - 1] ⇒ rewards[np.arange(len(episodes)), -1]
rlhf_gym/rewards/reward.py: rewards/test_rewards.py rewards/test_scoring.py
    member_scores.var(dim=0, correction=0) ⇒ member_scores.var(dim=0)
    (scores - self.mean) / self.std ⇒ scores / self.std - self.mean
rlhf_gym/training/reward_modeling.py: training/test_reward.py
    weight=batch.weight.expand_as(chosen).flatten() ⇒ weight=None
"""
"""A file and the tests of it; below it each mutant, what stands there once ⇒ what stands there instead."""


def run_tests(folder: Path, files: list[str]) -> None:
    """Run these tests in the folder's copy of the package, in this process, which ends with pytest's status."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with (folder / "said").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        options = '-x -q -m "not slow" -p no:cacheprovider -W ignore::pytest.PytestAssertRewriteWarning'
        os._exit(pytest.main([*shlex.split(options), *files]))


def fails(folder: Path, files: list[str]) -> bool:
    """Whether a test of these fails, in a process forked from this one, which has imported what takes long."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, files))
    process.start()
    process.join()
    return process.exitcode != 0


def main() -> None:
    import stable_baselines3  # noqa: F401 (so that no process has to)
    import transformers.models.auto  # noqa: F401

    sys.dont_write_bytecode = True
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    killed: list[bool] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("rlhf_gym", "envs", "agents", "tests", "scripts"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "docs").symlink_to(ROOT / "docs")  # tests run what stands there
        for line in MUTANTS.strip().splitlines():
            if not line.startswith(" "):
                file, _, patterns = line.partition(": ")
                tests = [str(path) for pattern in patterns.split() for path in (folder / "tests").glob(pattern)]
                text = (ROOT / file).read_text()
                if word in file and fails(folder, tests):
                    raise SystemExit(f"expected {patterns} to pass without a mutant:\n{(folder / 'said').read_text()}")
            if not line.startswith(" ") or word not in file:
                continue
            old, new = line.strip().replace(r"\n", "\n").split(" ⇒ ")
            if text.count(old) != 1:
                raise SystemExit(f"expected {old!r} once in {file}, got it {text.count(old)} times")
            (folder / file).write_text(text.replace(old, new))
            killed.append(fails(folder, tests))
            (folder / file).write_text(text)
            print(f"{'killed  ' if killed[-1] else 'SURVIVED'}  {file}: {line.strip()}", flush=True)
    print(f"{sum(killed)} of {len(killed)} mutants killed")
    raise SystemExit(not all(killed))


if __name__ == "__main__":
    main()
