"""`TokenVectorEnv`: N episodes of text in progress, one token a step. Every environment here has it as its engine."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from annotated_types import Ge
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.envs.arguments import (
    check_actions,
    check_log_probs,
    check_prompts,
    read_options,
    resolve_prompts,
    resolve_reference,
    resolve_reward,
    resolve_stops,
    resolve_tokenizer,
)
from rlhf_gym.envs.episode import (
    ActionLogProb,
    Episode,
    EpisodeRewards,
    EpisodeScores,
    Observation,
    StateValues,
    StepRecord,
    earned_at_turns,
    prompts_of,
)
from rlhf_gym.envs.masks import ActionMask
from rlhf_gym.envs.prompts import PromptFeed, PromptIds, Prompts
from rlhf_gym.envs.respondents import as_respondent
from rlhf_gym.envs.shaping import ScoreTerm, Shaping
from rlhf_gym.envs.slots import Slots
from rlhf_gym.envs.token_reward import KLCoefOwner, TokenReward
from rlhf_gym.envs.turns import Dialogues, Turns
from rlhf_gym.envs.view import EpisodeView, said_between
from rlhf_gym.lm.chat import prompt_text
from rlhf_gym.lm.generation import check_room
from rlhf_gym.lm.loading import Shared
from rlhf_gym.lm.split import LowerStates
from rlhf_gym.lm.tokens import check_vocabulary, decode, pad_token_id, token_texts
from rlhf_gym.ranges import Count, NonNegative, Range, check_arguments
from rlhf_gym.rewards import EpisodeScorer, LearnedReward, RewardFunction, ScoreError
from rlhf_gym.settings.agents import KLPlace

RewardTiming = Literal["step", "deferred"]


class TokenVectorEnv(VectorEnv):
    """N slots, each one episode of the token MDP.

    - State s_t = (x, y_<t); observation `Dict(input_ids (L,) int64, attention_mask (L,) int8)`: the prompt, then the
      response so far, left-aligned and right-padded, L = max_prompt_length + max_new_tokens.
    - Action: the next token, `Discrete(V)`.
    - With `turns`, the other side's answer is appended within the step that ends the policy's turn. Its tokens are
      state and no actions, and L is larger by the room for them.
    - Reward: see `TokenReward`. The score falls on the last action, once.
    - End: `terminated` at a stop token and at `max_new_tokens` alike; the horizon is part of this MDP.
    - Information, the same keys at every step: `response_length` so far, `ref_log_prob` (Σ log π_ref of it), where a
      policy is attached `kl` (Σ log-ratio of it, in nats), `score` (0 until the end) and `stopped` (whether a stop
      token, or with `turns` the other side, has ended it). With `texts=True` also `prompt` and `response`, empty until
      the end. With `turns` also `turns` (those ended so far) and `turn_reward` (what they earned). Where r_φ or a term
      gives rewards at tokens also `dense_reward` (Σ of them so far, those of turns included).

    `reset(options={"episodes": n})` starts n episodes, refilling slots. A slot with nothing left to do is parked: its
    mask is empty, its action is not read and its reward is 0. `reset(options={"prompts": […]})` plays these prompts,
    each once. Without options the slots are refilled for ever.

    Args:
        num_envs: N.
        prompts: texts, conversations (lists of messages), token ids, or a file of texts and conversations.
        tokenizer: a tokenizer, a folder or a name; by default the one beside the reference.
        reference: π_ref: a folder, a name, or `Shared(model)`. None for no KL term.
        reward: a folder or name of a reward model, `Shared(reward model or ensemble)`, or any callable
            `(prompts, responses) -> (B,)`.
        max_new_tokens: the horizon T, the stop token included.
        max_prompt_length: room for the prompt in tokens; by default that of the longest one.
        turns: who answers the policy's turns, where an episode has several: see `Turns`.
        kl_coef: β.
        kl_in: `"reward"`, or `"loss"` where the agent adds the KL to its loss.
        reward_timing: `"step"`: each reward is complete as it is returned. `"deferred"`: steps return 0 and the agent
            asks `score_episodes` once per rollout.
        autoreset_mode: `SAME_STEP` or `NEXT_STEP`.
        action_mask: the tokens that `action_masks()` allows, for agents that take masks.
        stop_token_ids: the tokens that end a response; by default the tokenizer's EOS and the reference's own.
        missing_eos_penalty: subtracted from the score of a response that reaches the horizon.
        shaping: terms applied to r_φ's score in this order, see `rlhf_gym.envs.shaping`. The information then has
            r_φ's own as `raw_score`.
        samples_per_prompt: episodes in a row with the same prompt.
        shuffle: a new order of the prompts at every pass.
        texts: put prompt and response as text into the information.
        vocab_size: V where there is no reference; by default the tokenizer's.
        device: of π_ref and r_φ where they are loaded here. None: the CPU, and later wherever `follow` brings them.
        render_mode: None, `"ansi"` (text for a terminal), `"html"` (a snippet for a page) or `"rgb_array"` (an image).
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's convention)
        "render_modes": ["ansi", "html", "rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    @check_arguments
    def __init__(
        self,
        num_envs: Count = 1,
        *,
        prompts: Prompts | str | Path | None = None,
        reward: RewardFunction | Shared[LearnedReward] | str | Path,
        reference: Shared[PreTrainedModel] | str | Path | None,
        turns: Turns | None = None,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        max_new_tokens: Count = 48,
        max_prompt_length: Count | None = None,
        kl_coef: NonNegative = 0.05,
        kl_in: KLPlace = "reward",
        reward_timing: RewardTiming = "step",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        action_mask: ActionMask | None = None,
        stop_token_ids: Sequence[int] | None = None,
        missing_eos_penalty: float = 0.0,
        shaping: Sequence[ScoreTerm] = (),
        samples_per_prompt: Count = 1,
        shuffle: bool = True,
        texts: bool = False,
        vocab_size: Count | None = None,
        device: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            known = ", ".join(map(repr, self.metadata["render_modes"]))
            raise ValueError(f"expected render_mode to be one of None, {known}, got {render_mode!r}")
        for name, value, kind in (("action_mask", action_mask, ActionMask), ("turns", turns, Turns)):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"expected {name} to be {kind.__name__}(…) or None, got {value!r:.60}")
        if device is not None:
            torch.device(device)  # an unknown one is an error before anything is loaded
        if autoreset_mode not in (*AutoresetMode, *(mode.value for mode in AutoresetMode)):
            known = ", ".join(mode.name for mode in AutoresetMode)
            raise ValueError(f"expected autoreset_mode to be one of {known}, got {autoreset_mode!r}")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if self.autoreset_mode == AutoresetMode.DISABLED:
            raise ValueError("expected autoreset_mode SAME_STEP or NEXT_STEP, got DISABLED; TokenEnv has no autoreset")
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.max_new_tokens = max_new_tokens
        self.reward_timing = reward_timing
        self.turns = turns
        self.texts = texts

        self.tokenizer = resolve_tokenizer(tokenizer, reference)
        parts = resolve_reference(reference, device=device or "cpu")
        self.vocab_size = parts.vocab_size if parts is not None else (vocab_size or len(self.tokenizer))
        check_vocabulary(self.tokenizer, self.vocab_size, what="the reference" if parts is not None else "vocab_size")
        self.stop_token_ids = resolve_stops(stop_token_ids, self.tokenizer, parts, vocab_size=self.vocab_size)
        self._stops = np.zeros(self.vocab_size, dtype=bool)  # (V,)
        self._stops[list(self.stop_token_ids)] = True
        self._room = 0 if turns is None else turns.room  # for the replies of others
        self._context_length = parts.context_length if parts is not None else None
        opens = turns is not None and as_respondent(turns.respondent).opens
        own_prompts = [PromptIds([], ())] if opens and prompts is None else resolve_prompts(prompts, self.tokenizer)
        if opens and max_prompt_length is None:
            raise ValueError("expected max_prompt_length where a respondent speaks first, got None")
        longest = max(len(ids) for ids in own_prompts)
        self.max_prompt_length = longest if max_prompt_length is None else max_prompt_length
        if not opens:
            self._check_prompts(own_prompts)
        judge = resolve_reward(reward, device=device or "cpu")
        placed_here = device is None
        self._follows = {
            "π_ref": placed_here and isinstance(reference, str | Path),
            "r_φ": placed_here and isinstance(reward, str | Path),
        }
        scorer = EpisodeScorer(
            judge,
            self.tokenizer,
            vocab_size=self.vocab_size,
            stop_ids=self.stop_token_ids,
        )
        self.token_reward = TokenReward(
            scorer,
            parts,
            kl_coef=kl_coef,
            kl_in=kl_in,
            missing_eos_penalty=missing_eos_penalty,
            shaping=Shaping(shaping, self.tokenizer),
        )
        if turns is not None and self.token_reward.causal:
            raise ValueError(
                "expected turns=None with a causal reward function, which is asked about one response, got "
                f"Turns(…) of up to {turns.max_turns} turns"
            )
        self.action_mask = action_mask
        if action_mask is not None:
            action_mask.check(
                vocab_size=self.vocab_size, stop_token_ids=self.stop_token_ids, has_reference=parts is not None
            )
        self._policy: ActionLogProb | None = None
        self._feed = PromptFeed(own_prompts, shuffle=shuffle, samples_per_prompt=samples_per_prompt)
        width = self.max_prompt_length + max_new_tokens + self._room  # L
        self.single_observation_space = spaces.Dict(
            input_ids=spaces.Box(0, self.vocab_size - 1, (width,), np.int64),
            attention_mask=spaces.Box(0, 1, (width,), np.int8),
        )
        self.single_action_space = spaces.Discrete(self.vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._slots = Slots(
            num_envs,
            max_prompt_length=self.max_prompt_length,
            max_new_tokens=max_new_tokens,
            pad_token_id=min(pad_token_id(self.tokenizer), self.vocab_size - 1),
            room=self._room,
        )
        self._dialogues: Dialogues | None = None
        if turns is not None:
            self._dialogues = Dialogues(
                turns,
                self.tokenizer,
                self._slots,
                max_new_tokens=max_new_tokens,
                max_prompt_length=self.max_prompt_length,
                stop_token_ids=self.stop_token_ids,
                vocab_size=self.vocab_size,
                generator=self._generator,
            )
            if any(not isinstance(prompt.prompt, str | None) for prompt in own_prompts):
                self._dialogues.check_template()
        self._ended = np.zeros(num_envs, dtype=bool)  # waiting for the next step's reset (NEXT_STEP)
        self._said_late = False
        self._needs_reset = True
        self._pending: dict[int, Episode] = {}  # ended and not yet scored (deferred), by number
        self.last_step = StepRecord([], np.zeros(0, np.float32), np.zeros(num_envs, np.float32))

    # -- the agent's side -------------------------------------------------------------------------------------------

    def attach(self, policy: ActionLogProb | None) -> None:
        """Let `policy` say log π(a|s) of each action, so that each step's reward holds the whole KL term.

        Without a policy the agent is read as deterministic (log π = 0). A step's reward is then +β·log π_ref(a|s), and
        the agent must add the entropy half of the KL. None detaches.
        """
        if policy is not None and not isinstance(policy, ActionLogProb):
            raise TypeError(
                f"expected a policy with action_log_prob(observation, action) -> (N,), got {type(policy).__name__}; "
                "unattached, the agent is read as deterministic (log π = 0)"
            )
        self._policy = policy

    def follow(self, device: torch.device | str) -> None:
        """Bring π_ref and r_φ to the device of the policy that learns.

        Those that were loaded here without a `device` are moved. Others stay where they were put, and a warning says so
        if that is another device.
        """
        reward = self.token_reward
        judges = [part for part in reward.scorer.reward.parts if isinstance(part, nn.Module)]
        references = [] if reward.reference is None else [reward.reference.model]
        models: dict[str, Sequence[nn.Module]] = {"π_ref": references, "r_φ": judges}
        device = torch.empty(0, device=device).device  # with the index that tensors there have
        for name, modules in models.items():
            for module in modules:
                where = next((parameter.device for parameter in module.parameters()), device)
                if where == device:
                    continue
                if self._follows[name]:
                    module.to(device)
                    if name == "π_ref":
                        reward.use_reference(reward.reference)  # and forget what was computed elsewhere
                else:
                    warnings.warn(
                        f"the policy is on {device} and {name} on {where}: what they exchange is copied at every step. "
                        f"Give agent and environment one device, or leave the environment's out for {name} to follow",
                        stacklevel=2,
                    )

    @property
    def attached(self) -> ActionLogProb | None:
        """The policy that says log π(a|s); None where none was attached."""
        return self._policy

    def reference_logits(self) -> Tensor:
        """π_ref's next-token logits (N, V), fp32, at the present states; the next step does not compute them again.

        Rows in which nothing can act (parked, or over until the next step) hold arbitrary numbers.
        """
        return self.token_reward.ref_logits(self._slots.ids, np.where(self._ended, 0, self._slots.lengths))

    def action_masks(self) -> np.ndarray:
        """The tokens that `action_mask` allows, (N, V) bool; without one, and where nothing can act, every token.

        The agent obeys the mask. `step` takes any token, and π_ref in the reward is not filtered.
        """
        mask = self.action_mask
        if mask is None:
            return np.ones((self.num_envs, self.vocab_size), dtype=bool)
        logits = self.reference_logits() if mask.reads_reference else torch.zeros(self.num_envs, self.vocab_size)
        lengths = self._slots.response_lengths if self._dialogues is None else self._dialogues.turn_lengths
        allowed = mask.allowed(logits, response_lengths=lengths, stop_token_ids=self.stop_token_ids)  # (N, V)
        idle = self.parked | self._ended  # (N,)
        return allowed.cpu().numpy() | idle[:, None]

    @property
    def kl_coef(self) -> float:
        """β. It may be set between steps while no agent's KL controller owns it.

        Raises:
            ValueError: a controller owns it, or β is out of range.
        """
        return self.token_reward.kl_coef

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        Range(float, Ge(0)).check("kl_coef", value)
        if self.kl_controller is not None:
            raise ValueError(
                f"expected to set kl_coef={value} where it belongs, to the agent's {type(self.kl_controller).__name__} "
                f"(now {self.kl_coef}): say agent.kl_controller = FixedKL({value}), or env.kl_controller = None first"
            )
        self._check_kl_coef(value)
        self.token_reward.own_kl_coef = value

    @property
    def kl_controller(self) -> KLCoefOwner | None:
        """The owner of β, whose `kl_coef` every reward reads; None where the environment's own β counts.

        An agent of ours makes its controller the owner. Setting None gives the environment its own β back.
        """
        return self.token_reward.kl_controller

    @kl_controller.setter
    def kl_controller(self, controller: KLCoefOwner | None) -> None:
        if controller is not None:
            self._check_kl_coef(controller.kl_coef)
        self.token_reward.kl_controller = controller

    def _check_kl_coef(self, value: float) -> None:
        if value > 0 and self.token_reward.reference is None:
            raise ValueError(f"expected kl_coef=0 in an environment without a reference, got {value}")

    @property
    def parked(self) -> np.ndarray:
        """Slots with nothing left to do, shape (N,) bool."""
        return self._slots.lengths == 0

    @property
    def max_turn_tokens(self) -> int:
        """The actions of one turn, at most; of the whole response where nobody answers the policy."""
        of_turn = None if self._dialogues is None else self._dialogues.turns.max_turn_tokens
        return self.max_new_tokens if of_turn is None else min(of_turn, self.max_new_tokens)

    @property
    def num_prompts(self) -> int:
        """How many prompts there are to draw from."""
        return len(self._feed.prompts)

    @property
    def samples_per_prompt(self) -> int:
        """Episodes in a row with the same prompt."""
        return self._feed.samples_per_prompt

    @property
    def share(self) -> tuple[int, int]:
        """Which of every n prompts are drawn: (i, n); (0, 1) for all.

        n environments with the same seed and the shares (0, n) … (n − 1, n) play every prompt of their common order
        once, in rollouts of equally many episodes. Our agents set it while they learn as one of n ranks.
        """
        return self._feed.share

    @share.setter
    def share(self, share: tuple[int, int]) -> None:
        index, count = share
        if not 0 <= index < count:
            raise ValueError(f"expected share=(i, n) with 0 <= i < n, got {share}")
        self._feed.rest()
        self._feed.share = (index, count)

    def draw_prompts(self, n: int) -> list[PromptIds]:
        """The next `n` prompts in their order, as token ids, for `reset(options={"prompts": …})`."""
        self._feed.rest()
        return [self._feed.draw(self.np_random) for _ in range(n)]

    @property
    def pending_episodes(self) -> list[Episode]:
        """Deferred rewards: the episodes that have ended and wait to be scored, in the order they were started."""
        return [self._pending[number] for number in sorted(self._pending)]

    def score_episodes(
        self,
        episodes: Sequence[Episode],
        log_probs: Sequence[np.ndarray] | np.ndarray | None = None,
        *,
        lower: LowerStates | None = None,
        bf16: bool = False,
    ) -> EpisodeRewards:
        """Rewards of whole episodes at once (`reward_timing="deferred"`): the same numbers at a fraction of the cost.

        Args:
            episodes: from `pending_episodes`.
            log_probs: log π of each episode's actions, (T_e,) each, or right-padded (E, T); None reads the agent as
                deterministic.
            lower: the output of the policy's frozen lower layers for the episodes. Where π_ref has the same weights
                there, only its upper layers are run.
            bf16: run π_ref in bf16 (autocast), as a policy does that was made with `bf16=True`.
        """
        if log_probs is not None and len(log_probs) != len(episodes):
            raise ValueError(f"expected log_probs of {len(episodes)} episodes, got {len(log_probs)}")
        rewards = self.token_reward(episodes, None if log_probs is None else list(log_probs), lower, bf16)
        for episode in episodes:
            self._pending.pop(episode.number, None)
        return rewards

    def discard_episodes(self) -> None:
        """Deferred rewards: drop the episodes that were not scored, as after an interrupted rollout."""
        self._pending.clear()

    # -- Gymnasium's side -------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin anew in every slot; with a seed, the prompts' order as well."""
        left, given = read_options(options or {}, self.tokenizer)
        self._check_prompts(given)
        if self._pending:
            raise RuntimeError(
                f"{len(self._pending)} episodes have ended without being scored: with reward_timing='deferred' call "
                "score_episodes(env.pending_episodes, log_probs) first, or discard_episodes()"
            )
        self.seed(seed)
        self.token_reward.begin(endless=left is None)  # an episode does not depend, by rounding, on those before
        self._feed.begin(left, given)
        if self._dialogues is not None:
            self._dialogues.forget()
        self._ended[:] = False
        for slot in range(self.num_envs):
            self._refill(slot)
        self._needs_reset = False
        return self._slots.observation(), self._info(~self.parked)

    def step(
        self, actions: np.ndarray | Tensor
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token in every slot."""
        if self._needs_reset:
            raise ResetNeeded("call reset() before step()")
        actions = check_actions(actions, self.vocab_size, parked=self.parked, waiting=self._ended)
        slots = self._slots
        waiting = self._ended  # NEXT_STEP: these slots begin a new episode instead of acting
        acting = (slots.lengths > 0) & ~waiting
        step_rewards, log_ratios, log_probs = self._step_rewards(actions, acting)

        slots.append(acting, actions, log_ratios, log_probs)
        stopped = acting & self._stops[np.where(acting, actions, 0)]
        terminated = stopped | (acting & (slots.response_lengths >= self.max_new_tokens))
        if self.token_reward.causal and self.reward_timing == "step":
            step_rewards = step_rewards + self._dense_now(acting & ~terminated)
        if self._dialogues is not None:
            terminated, stopped, turn_rewards = self._dialogues.end_turns(acting, stopped)
            step_rewards = step_rewards + turn_rewards * (self.reward_timing == "step")
        episodes = [slots.episode(i, "stop" if stopped[i] else "length") for i in np.flatnonzero(terminated).tolist()]
        scores = self._end(episodes, step_rewards)
        slots.earn(acting, step_rewards)
        ending = self._info(terminated, episodes, scores) if episodes else {}
        each = [slots.log_ratios[e.slot, : e.response_length].copy() for e in episodes]
        self.last_step = StepRecord(episodes, scores.scores, log_ratios, each, scores.member_scores, scores.dense)
        final = self._reset_ended(episodes)
        for slot in np.flatnonzero(waiting).tolist():
            self._refill(slot)
        infos: dict[str, Any] = {**self._info(~self.parked)}
        if final is None:  # NEXT_STEP: what has ended is still in its slot
            infos |= {key: np.where(terminated, value, infos[key]) for key, value in ending.items()}
        elif episodes:
            infos |= {"final_obs": final, "final_info": ending}
            infos |= {"_final_obs": terminated.copy(), "_final_info": terminated.copy()}
        return slots.observation(), step_rewards, terminated, np.zeros(self.num_envs, dtype=bool), infos

    def render(self) -> tuple[Any, ...] | None:  # type: ignore[override]
        """Each slot's response so far as coloured tokens, `"ansi"` and `"html"` with a table: see `EpisodeView`."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; make the environment with render_mode='ansi'")
            return None
        draw = {"ansi": EpisodeView.ansi, "html": EpisodeView.html, "rgb_array": EpisodeView.image}[self.render_mode]
        return tuple(draw(self.view(slot)) for slot in range(self.num_envs))

    def view(self, slot: int = 0) -> EpisodeView:
        """The episode in a slot, taken apart: KL, value (where a critic is attached), reward of each token so far.

        Returns and advantages are known at its end. Deferred rewards are not known to the environment.
        """
        slots = self._slots
        tokens = slots.ids[slot, slots.action_mask[slot]]  # (T,)
        taken = slice(0, len(tokens))
        known: dict[str, Any] = {}
        if self.reward_timing == "step":
            known["rewards"] = slots.rewards[slot, taken].copy()
            dense = slots.dense[slot, taken] + slots.turn_rewards[slot, taken]
            known["dense"] = dense if self.token_reward.at_tokens or dense.any() else None
            if self.token_reward.reference is not None:
                known["log_probs"] = slots.log_probs[slot, taken].copy()
                known["ref_log_probs"] = known["log_probs"] - slots.log_ratios[slot, taken]
        if isinstance(self._policy, StateValues) and len(tokens):
            states = {key: torch.from_numpy(value) for key, value in slots.states(slot).items()}
            with torch.no_grad():
                known["values"] = self._policy.predict_values(states).cpu().numpy().reshape(-1)  # (T,)
        length = slots.lengths[slot]
        view = EpisodeView(
            str(self.tokenizer.decode(slots.prompt_ids(slot).tolist())),
            tuple(token_texts(self.tokenizer, tokens.tolist())),
            others=said_between(self.tokenizer, slots.ids[slot, :length], slots.action_mask[slot, :length]),
            **known,
        )
        ended = zip(self.last_step.episodes, self.last_step.scores.tolist(), strict=True)
        for episode, score in ended if self._ended[slot] else ():
            if episode.slot == slot:
                view = dataclasses.replace(view, finish_reason=episode.finish_reason)
                if self.reward_timing == "step":
                    view = dataclasses.replace(view, score=score).with_returns()
        return view

    def seed(self, seed: int | None) -> None:
        """Begin the order of prompts anew from this seed (as `reset(seed=…)` does, without resetting)."""
        super().reset(seed=seed)
        if seed is not None:
            self._feed.restart()

    # -- state, for resuming ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state between two rollouts, for JSON; episodes in progress are not in it."""
        return {
            "rng": self.np_random.bit_generator.state,
            "seed": self.np_random_seed,
            **self._feed.state_dict(),
            "kl_coef": self.token_reward.own_kl_coef,
            "shaping": self.token_reward.shaping.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; reset the environment next."""
        self.np_random.bit_generator.state = state["rng"]
        self._np_random_seed = state.get("seed", self._np_random_seed)
        self._feed.load_state_dict(state)
        self.token_reward.own_kl_coef = float(state["kl_coef"])
        self.token_reward.shaping.load_state_dict(state.get("shaping", []))
        self._needs_reset = True

    # -- inside -----------------------------------------------------------------------------------------------------

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        check_room(prompts, self.max_new_tokens, self._context_length, others=self._room)
        check_prompts(prompts, max_prompt_length=self.max_prompt_length, vocab_size=self.vocab_size)

    def _step_rewards(self, actions: np.ndarray, acting: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The KL part of this step's rewards, the log-ratios and log π, (N,) float32 each; 0 where nothing acts."""
        zeros = np.zeros(self.num_envs, dtype=np.float32)
        if self.reward_timing == "deferred" or self.token_reward.reference is None:
            return zeros, zeros.copy(), zeros.copy()
        lengths = np.where(acting, self._slots.lengths, 0)
        chosen = np.where(acting, actions, 0)
        log_ratios = -self.token_reward.ref_log_prob(self._slots.ids, lengths, chosen)
        log_probs = zeros.copy()
        if self._policy is not None:
            said = self._policy.action_log_prob(self._slots.observation(lengths), chosen)
            said = check_log_probs(said, acting, source=f"{type(self._policy).__name__}.action_log_prob")
            log_ratios += said
            log_probs = said
        log_ratios = np.where(acting, log_ratios, np.float32(0))
        return self.token_reward.penalty(log_ratios), log_ratios, log_probs

    def _reset_ended(self, episodes: list[Episode]) -> np.ndarray | None:
        """Begin new episodes at once (SAME_STEP), or note that the next step shall: the former give final observations.

        Each is at its slot in an array of objects, (N,), as Gymnasium has them.
        """
        self._ended = np.zeros(self.num_envs, dtype=bool)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            self._ended[[episode.slot for episode in episodes]] = True
            return None
        final = np.full(self.num_envs, None, dtype=object)  # (N,)
        seen = self._slots.observation() if episodes else {}
        for episode in episodes:
            final[episode.slot] = {key: value[episode.slot] for key, value in seen.items()}
            self._refill(episode.slot)
        return final

    def _end(self, episodes: list[Episode], step_rewards: np.ndarray) -> EpisodeScores:
        """Add the scores of ended episodes to their last action's reward, in place.

        Deferred, they are NaN, and the episodes wait for `score_episodes`.
        """
        if self.reward_timing == "step":
            scores = self.token_reward.scores(episodes)
            ended = [e.slot for e in episodes]
            step_rewards[ended] += scores.scores
            if scores.dense is not None:  # what is known only now falls on the last action
                step_rewards[ended] += scores.dense.sum(axis=1) - self._slots.dense[ended].sum(axis=1)
            return scores._replace(dense=self._paid(episodes, scores))
        unscored = {episode.slot for episode in self._pending.values()}
        for episode in episodes:
            if self._feed.left is None and episode.slot in unscored:
                raise RuntimeError(
                    f"slot {episode.slot} has ended a second episode while its last one waits for its score: with "
                    "reward_timing='deferred' call score_episodes(env.pending_episodes, log_probs) in between, or "
                    "say how many episodes a rollout has by reset(options={'episodes': n})"
                )
            self._pending[episode.number] = episode
        unknown = np.full(len(episodes), np.nan, dtype=np.float32)  # (episodes,)
        return EpisodeScores(unknown, unknown)

    def _dense_now(self, going_on: np.ndarray) -> np.ndarray:
        """What causal functions give the actions just appended, (N,) float32, noted; 0 in slots not `going_on`."""
        now = np.zeros(self.num_envs, dtype=np.float32)  # (N,)
        rows = np.flatnonzero(going_on)
        if len(rows):
            now[rows] = self.token_reward.now([self._slots.episode(i, "length") for i in rows.tolist()])
            self._slots.dense[rows, self._slots.response_lengths[rows] - 1] = now[rows]
        return now

    def _paid(self, episodes: list[Episode], scores: EpisodeScores) -> np.ndarray | None:
        """The dense part of each action's reward as it was paid, (episodes, T), noted; None where there is none.

        Raises:
            ScoreError: a causal function says something else of a token than it said when the token was written.
        """
        width = max((e.response_length for e in episodes), default=0)  # T
        turns = earned_at_turns(episodes, width)
        if scores.dense is None:
            return turns
        last = np.array([e.response_length - 1 for e in episodes])  # (episodes,)
        paid = np.zeros((len(episodes), width), dtype=np.float32)
        if scores.causal is not None:
            paid += scores.causal
            for row, episode in enumerate(episodes):
                self._check_causal(self._slots.dense[episode.slot, : last[row]], paid[row, : last[row]])
        late = (scores.dense - paid).sum(axis=1)  # (episodes,)
        paid[np.arange(len(episodes)), last] += late
        for row, episode in enumerate(episodes):
            self._slots.dense[episode.slot, : last[row] + 1] = paid[row, : last[row] + 1]
        if not self._said_late and (scores.causal is None or np.any(scores.dense != scores.causal)):
            self._said_late = True
            warnings.warn(
                "rewards at tokens are known only when a response has ended: with reward_timing='step' their sum falls "
                "on its last action. reward_timing='deferred' puts each at its own token",
                stacklevel=5,
            )
        return paid if turns is None else paid + turns

    @staticmethod
    def _check_causal(before: np.ndarray, after: np.ndarray) -> None:
        """What a causal function said of tokens as they were written is what it says at the end, both (T - 1,)."""
        other = np.flatnonzero(~np.isclose(before, after, rtol=1e-4, atol=1e-5))
        if len(other):
            t = int(other[0])
            raise ScoreError(
                f"expected a causal reward function to say of token {t} at the end what it said when it was written, "
                f"{before[t]}, got {after[t]}: without causal=True it is asked once, at the end"
            )

    def _info(
        self, shown: np.ndarray, episodes: Sequence[Episode] = (), scores: EpisodeScores | None = None
    ) -> dict[str, np.ndarray]:
        """The information on the slots `shown`, (N,) bool: an array a key, (N,), and its mask under `_key`.

        The keys are the same at every step. Scores are 0 until the end, and in other slots everything is.

        Args:
            shown: the slots.
            episodes: those of them that end now.
            scores: of these episodes.
        """
        slots = self._slots
        ended = [episode.slot for episode in episodes]
        info: dict[str, np.ndarray] = {}
        if self.reward_timing == "step":
            info["score"] = np.zeros(self.num_envs)  # (N,)
            if self.token_reward.shaping:
                info["raw_score"] = info["score"].copy()
            if self.token_reward.at_tokens:
                info["dense_reward"] = (slots.dense + slots.turn_rewards).sum(axis=1, dtype=np.float64)
            if scores is not None:
                info["score"][ended] = scores.scores
                if "raw_score" in info:
                    info["raw_score"][ended] = scores.raw_scores
            if self.token_reward.reference is not None:
                log_ratios = slots.log_ratios.sum(axis=1, dtype=np.float64)  # (N,)
                if self._policy is not None:  # without one Σ log-ratio is −log π_ref(y|x), which is no KL
                    info["kl"] = log_ratios
                info["ref_log_prob"] = slots.log_probs.sum(axis=1, dtype=np.float64) - log_ratios
        info["response_length"] = slots.response_lengths.copy()
        if self._dialogues is not None:
            info["turns"] = self._dialogues.counts.copy()
            info["turn_reward"] = slots.turn_rewards.sum(axis=1, dtype=np.float64)
        info["stopped"] = np.zeros(self.num_envs, dtype=bool)
        info["stopped"][ended] = [episode.finish_reason == "stop" for episode in episodes]
        info = {key: np.where(shown, value, np.zeros_like(value)) for key, value in info.items()}
        if self.texts:
            prompts = [prompt_text(prompt) for prompt in prompts_of(episodes, self.tokenizer)]
            responses = decode(self.tokenizer, [episode.answer_ids.tolist() for episode in episodes])
            for key, texts in {"prompt": prompts, "response": responses}.items():
                info[key] = np.where(shown, "", np.full(self.num_envs, None, dtype=object))
                info[key][ended] = texts
        return info | {f"_{key}": shown.copy() for key in info}

    def _refill(self, slot: int) -> None:
        """Begin the next episode in a slot, or park it."""
        episode = self._feed.next(self.np_random)
        if episode is None:
            self._slots.park(slot)
            return
        prompt, number = episode
        if self._dialogues is not None:
            prompt = self._dialogues.begin(slot, prompt, number)
        self._slots.begin(slot, prompt, number)

    def _generator(self, episode: int, turn: int) -> np.random.Generator:
        """The randomness of the other side at a turn; of what it says first (turn 0), the same for a whole group."""
        number = episode - self._feed.since
        place = number // self.samples_per_prompt if turn == 0 else number
        seed = self.np_random_seed
        assert seed is not None  # there is one once it is asked for; −1 stands for a generator that was set by hand
        return np.random.default_rng([seed % 2**128, place, turn])
