/* The formulas of the picture: pure functions of numbers, tested against the package's Python to 1e-9. */
const maths = (() => {
  "use strict";

  /** σ(x) = 1/(1 + e^{−x}), without overflow. */
  function sigmoid(x) {
    return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
  }

  /** log(1 + e^x), without overflow. */
  function softplus(x) {
    return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  }

  /** One comparison in the reward model's loss: P = σ(Δ), L = −log P, and L's gradients by both scores. */
  function comparison(chosen, rejected) {
    const delta = chosen - rejected;
    return {
      delta,
      probability: sigmoid(delta),
      loss: softplus(-delta),
      chosenGradient: -sigmoid(-delta),
      rejectedGradient: sigmoid(-delta),
    };
  }

  /** π*(y) = π_ref(y)·e^{(r(y) − J*)/β} with J* = β·log Σ_y π_ref(y)·e^{r(y)/β}; KL(π*‖π_ref), E[r] and J of it. */
  function optimum(rewards, refLogProbs, beta) {
    const exponents = rewards.map((reward, i) => refLogProbs[i] + reward / beta);
    const highest = Math.max(...exponents);
    const best = beta * (highest + Math.log(exponents.reduce((sum, x) => sum + Math.exp(x - highest), 0)));
    const logRatios = rewards.map((reward) => (reward - best) / beta);
    const probabilities = logRatios.map((ratio, i) => Math.exp(refLogProbs[i] + ratio));
    const kl = probabilities.reduce((sum, p, i) => sum + p * logRatios[i], 0);
    const reward = probabilities.reduce((sum, p, i) => sum + p * rewards[i], 0);
    return { probabilities, kl, reward, objective: reward - beta * kl, best };
  }

  /** A surrogate at one token; `larger` says whether the larger of its two terms counts. Gradient: by log π. */
  function surrogate(ratio, advantage, epsilon, larger) {
    const unclipped = ratio * advantage;
    const clipped = Math.min(Math.max(ratio, 1 - epsilon), 1 + epsilon) * advantage;
    const objective = larger ? Math.max(unclipped, clipped) : Math.min(unclipped, clipped);
    return { unclipped, clipped, objective, gradient: objective === unclipped ? unclipped : 0 };
  }

  /** PPO's clipped surrogate, to be maximised: min(ratio·Â, clip(ratio, 1 − ε, 1 + ε)·Â). */
  function clipped(ratio, advantage, epsilon) {
    return surrogate(ratio, advantage, epsilon, false);
  }

  /** A widespread error: for Â < 0 the maximum of the two terms instead of the minimum. */
  function misclipped(ratio, advantage, epsilon) {
    return surrogate(ratio, advantage, epsilon, advantage < 0);
  }

  /** The ratio after 0 … `steps` steps of gradient ascent on log π, by one of the two rules: steps + 1 numbers. */
  function ascent(rule, ratio, advantage, epsilon, rate, steps) {
    const path = [ratio];
    for (let step = 0; step < steps; step += 1) {
      const last = path[step];
      path.push(last * Math.exp(rate * rule(last, advantage, epsilon).gradient));
    }
    return path;
  }

  return { sigmoid, softplus, comparison, optimum, clipped, misclipped, ascent };
})();
if (typeof module !== "undefined") module.exports = maths;
