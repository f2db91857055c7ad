"""SB3 callbacks for token environments."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback


class AttachPolicy(BaseCallback):
    """Attach a stock SB3 agent's policy to its environment when learning starts, so that each step's reward holds the
    whole KL term: `PPO(LMActorCriticPolicy, env, …).learn(…, callback=AttachPolicy())`.
    """

    def _on_training_start(self) -> None:
        self.training_env.env_method("attach", self.model.policy)

    def _on_step(self) -> bool:
        return True
