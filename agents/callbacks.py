"""SB3 callbacks for token environments."""

from __future__ import annotations

import warnings

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv

from rlhf_gym.envs.episode import ActionLogProb


class AttachPolicy(BaseCallback):
    """Attach a stock SB3 agent's policy to its environment when learning starts, so that each step's reward holds the
    whole KL term: `PPO(LMActorCriticPolicy, env, gamma=1.0, …).learn(…, callback=AttachPolicy())`.

    It looks at what would go wrong in silence: a policy that cannot say log π(a|s), environments in other processes
    (which would ask a copy with the weights of the start for ever), and γ ≠ 1.
    """

    def _on_training_start(self) -> None:
        policy, env = self.model.policy, self.training_env
        if not isinstance(policy, ActionLogProb):
            raise TypeError(
                f"expected a policy with action_log_prob, such as LMActorCriticPolicy, got {type(policy).__name__}; "
                "learn without AttachPolicy() and the agent is read as deterministic (log π = 0)"
            )
        if isinstance(env.unwrapped, SubprocVecEnv):
            raise TypeError(
                "expected the environment in this process, got a SubprocVecEnv: it would ask a copy of the policy that "
                "never learns. Use SB3VecEnv(gym.make_vec(…, num_envs=…)), which batches the slots instead"
            )
        if isinstance(self.model, OnPolicyAlgorithm) and self.model.gamma != 1.0:
            warnings.warn(
                f"gamma={self.model.gamma} discounts the score at the end of a response against the KL of its first "
                "tokens: rewards no longer add up to score − β·KL. Expected gamma=1.0 (SB3's own default is .99)",
                stacklevel=2,
            )
        env.env_method("attach", policy)

    def _on_step(self) -> bool:
        return True
