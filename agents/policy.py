"""`LMActorCriticPolicy`: a causal language model as Stable-Baselines3's actor-critic policy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlhf_gym.agents.observations import check_spaces, pack_prefixes, read
from rlhf_gym.agents.sharding import Networks, Shards, held_bytes, whole_state
from rlhf_gym.envs.episode import Observation
from rlhf_gym.functional.kl import full_kl
from rlhf_gym.lm.decoder import Decoder, LowPrecisionActor
from rlhf_gym.lm.loading import Shared, load_causal_lm
from rlhf_gym.lm.lora import (
    LoRASettings,
    adapter_settings,
    add_adapter,
    has_adapter,
    share_frozen,
    train_adapter_only,
    unwrap,
)
from rlhf_gym.lm.parts import LMParts, Trunk, ValueHead, in_chunks
from rlhf_gym.lm.sampling import (
    SamplingParams,
    behaviour_logits,
    greedy,
    sample,
    taken_log_prob_and_entropy,
    token_log_prob,
)
from rlhf_gym.lm.split import LowerStates, Split
from rlhf_gym.ranges import Positive, PositiveShare, Whole, check_arguments
from rlhf_gym.rewards import RewardModel

Critic = Literal["shared", "separate", "reward_model"]
Result = TypeVar("Result")

ModelSource = str | Path | Shared[PreTrainedModel] | PretrainedConfig
"""A folder, a name, a model to copy, or a configuration (random weights)."""


class EpisodeEvaluation(NamedTuple):
    """Whole episodes evaluated by a policy, packed by action and right-padded with 0."""

    log_probs: Tensor
    """log π(a_t|s_t), (B, T)."""
    values: Tensor
    """V(s_t), (B, T)."""
    entropy: Tensor
    """H(π(·|s_t)) in nats, (B, T)."""
    states: Tensor
    """The actor's last hidden states at the real actions, (n, H), row by row (for a KL over the vocabulary)."""


class LMActorCriticPolicy(ActorCriticPolicy):
    """A causal LM as the actor, and a value head, by default on the same trunk, as the critic.

    Acting and updating use one behaviour distribution, temperature and filters included. The policy works in stock SB3
    (`PPO`, `A2C`) and sb3-contrib (`TRPO`) by `policy=LMActorCriticPolicy, policy_kwargs={"model": "folder or name"}`.

    Acting is incremental: the decoder keeps keys and values per slot and feeds only what is new in the observation. In
    training mode, and whenever weights may have changed, nothing is reused. Dropout stays off in both modes, so that
    the ratio of PPO is 1 before the first update whatever the checkpoint's configuration says.

    An action that an update pushes out of the top k or top p keeps its probability: see `taken_log_prob_and_entropy`.

    Args:
        observation_space, action_space, lr_schedule: as SB3 passes them.
        model: where the actor starts from: a folder, a name, `Shared(model)` (copied: the policy owns its weights) or a
            configuration (random weights). It is kept in fp32, as small steps would round away in less. Of a model
            with an adapter, that adapter alone is trained.
        lora: the settings of a fresh adapter, which alone is trained: `LoRA(…)`, or a dict of `peft.LoraConfig`'s
            arguments.
        critic: `"shared"`: a value head on the actor's trunk; `"separate"`: on a trunk of its own, a copy of the
            actor's; `"reward_model"`: on a copy of the trunk of `critic_model`.
        critic_model: a reward model (folder, name or `Shared`) with the actor's vocabulary.
        value_head: a folder whose value head the critic begins with, TRL's or a classifier's, see `ValueHead.load`; by
            default it begins at 0. It should have been trained on the trunk that the critic has.
        temperature, top_k, top_p, forbidden_token_ids: see `SamplingParams`.
        freeze_layers: how many of the lower layers stay as they are, with the embeddings and a head tied to them. The
            updates of a rollout then run these layers once. π_ref skips them where its weights are the same.
        bf16: run forward passes in bf16 (autocast) over the fp32 weights, and act with a bf16 copy of them. Softmax,
            values and losses stay in fp32. As acting and training round differently, an agent takes the old
            log-probabilities from the forward it trains with.
        use_cache: see `Decoder`.
        optimizer_class, optimizer_kwargs: as in SB3; Adam with eps 1e-5, fused, by default.
        use_sde: must stay False (SB3 passes it).
    """

    @check_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        model: ModelSource,
        lora: LoRASettings | None = None,
        critic: Critic = "shared",
        critic_model: str | Path | Shared[RewardModel] | PretrainedConfig | None = None,
        value_head: str | Path | None = None,
        temperature: Positive = 1.0,
        top_k: Whole = 0,
        top_p: PositiveShare = 1.0,
        forbidden_token_ids: tuple[Whole, ...] = (),
        freeze_layers: Whole = 0,
        bf16: bool = False,
        use_cache: bool | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        if use_sde:
            raise ValueError("expected use_sde=False: state-dependent exploration is for continuous actions")
        if (critic == "reward_model") != (critic_model is not None):
            raise ValueError(f"expected critic_model exactly with critic='reward_model', got {critic=} {critic_model=}")
        check_spaces(observation_space, action_space)
        self._sources: dict[str, Any] = {"model": model, "lora": lora, "critic": critic, "critic_model": critic_model}
        self._sources["value_head"] = value_head
        self._use_cache = use_cache
        self.freeze_layers = freeze_layers
        self.bf16 = bf16
        self.sampling = SamplingParams(
            temperature=temperature, top_k=top_k, top_p=top_p, forbidden_token_ids=tuple(forbidden_token_ids)
        )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    # -- construction -----------------------------------------------------------------------------------------------

    def _build(self, lr_schedule: Schedule) -> None:
        """SB3's hook for the networks and the optimizer."""
        self.model = own_model(self._sources["model"], self._sources["lora"])
        self.parts = LMParts(self.model)
        expected = int(self.action_space.n)  # type: ignore[attr-defined]
        if self.parts.vocab_size != expected:
            raise ValueError(
                f"expected a model with the environment's vocabulary of {expected} tokens, got {self.parts.vocab_size}"
            )
        self.split = Split(self.parts, self.freeze_layers) if self.freeze_layers else None
        self.critic: Critic = self._sources["critic"]
        self.value_trunk: nn.Module | None = None
        self._value_parts: Trunk = self.parts
        if self.critic != "shared":
            self._value_parts = critic_trunk(self.critic, self._sources["critic_model"], self.parts)
            self.value_trunk = self._value_parts.module
        self.value_head = ValueHead(self._value_parts.hidden_size)
        if self._sources["value_head"] is not None:
            self.value_head.load(self._sources["value_head"])
        self._decoder = Decoder(self.parts, use_cache=self._use_cache)
        self._actor: LowPrecisionActor | None = None
        separate = self.value_trunk is not None
        self._value_decoder = Decoder(self._value_parts, use_cache=self._use_cache) if separate else None
        self._answer: tuple[tuple[int, int, int], Tensor] | None = None  # what it was asked, and the behaviour logits
        self._shared: list[nn.Parameter] = []  # whose memory is π_ref's as well
        self._shards: Shards | None = None
        if self.split is not None:
            for parameter in self.split.lower_parameters:
                parameter.requires_grad_(False)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        kwargs = dict(self.optimizer_kwargs)
        adam = self.optimizer_class in (torch.optim.Adam, torch.optim.AdamW)
        if adam and not kwargs.keys() & {"fused", "foreach", "differentiable"}:
            kwargs["fused"] = True  # one pass over the weights instead of ten
        self.optimizer = self.optimizer_class(trained, lr=lr_schedule(1), **kwargs)  # type: ignore[call-arg]
        self.optimizer.register_step_post_hook(lambda *_: self.invalidate())

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "model": self.model.config,
            "lora": adapter_settings(self.model),
            "critic": self.critic,
            "critic_model": self.value_trunk.config if self.critic == "reward_model" else None,  # type: ignore[union-attr]
            "value_head": None,  # its weights are saved with the others
            "temperature": self.sampling.temperature,
            "top_k": self.sampling.top_k,
            "top_p": self.sampling.top_p,
            "forbidden_token_ids": self.sampling.forbidden_token_ids,
            "freeze_layers": self.freeze_layers,
            "bf16": self.bf16,
            "use_cache": self._use_cache,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    def train(self, mode: bool = True) -> LMActorCriticPolicy:
        """SB3's training mode. The language models stay in eval mode: dropout would make the ratio differ from 1."""
        changed = mode != self.training
        super().train(mode)
        self.model.eval()
        if self.value_trunk is not None:
            self.value_trunk.eval()
        if changed:
            self.invalidate()
        return self

    def share_frozen(self, reference: LMParts) -> None:
        """Hold the frozen weights that are equal to π_ref's once, as under an adapter: the memory is then π_ref's.

        They stay the policy's own in every other respect: before others are loaded it takes a copy, see `own_frozen`.
        """
        self._shared = share_frozen(self.model, reference.model)
        self.invalidate()

    def own_frozen(self) -> None:
        """Give the policy a copy of the weights whose memory is π_ref's: writing to them then changes π_ref no more."""
        for parameter in self._shared:
            parameter.data = parameter.data.clone()
        self._shared = []
        self.invalidate()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch; the decoders forget what they hold."""
        self.own_frozen()
        result = super().load_state_dict(*args, **kwargs)
        self.invalidate()
        return result

    def invalidate(self) -> None:
        """Drop the cached results of earlier weights."""
        self._answer = None
        self._decoder.invalidate()
        self._actor_is_old = True
        if self._value_decoder is not None:
            self._value_decoder.invalidate()

    # -- many processes ---------------------------------------------------------------------------------------------

    @property
    def sharded(self) -> bool:
        """Whether its updates have the weights that are trained, their gradients and moments in parts on all ranks."""
        return self._shards is not None

    def shard(self) -> None:
        """Spread what updates need over the ranks, from now on; see `Shards`. The optimizer has taken no step yet."""
        networks = Networks(self.model, self.parts, self.split, self.value_trunk, self._value_parts, self.value_head)
        known = {id(parameter) for parameter in networks.together().parameters()}
        odd = [name for name, parameter in self.named_parameters() if id(parameter) not in known]
        if odd:
            raise ValueError(
                f"expected a policy whose weights are its model's and its critic's with sharding=\"full\", got "
                f"{type(self).__name__} with {odd[0]}"
            )
        self._shards = Shards(networks, self.optimizer)
        self.invalidate()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """What an update runs in. Sharded weights lie in parts on all ranks inside, and are whole outside."""
        if self._shards is None:
            yield
            return
        self._shards.scatter()
        self._use(self._shards.spread)
        try:
            yield
        except BaseException:
            self._use(self._shards.whole)
            self._shards.lose()
            raise
        self._use(self._shards.whole)
        self._shards.gather()
        self.invalidate()

    def forward_pass(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """`function(*args, **kwargs)`, of which an update takes the gradient.

        Whatever an update computes with the policy's weights goes through here, once for each backward pass and equally
        often on all ranks: sharded weights are brought together for it.
        """
        if self._shards is None:
            return function(*args, **kwargs)
        return self._shards.forward(function, *args, **kwargs)

    def clip_gradients(self, max_norm: float) -> float:
        """Scale the gradients of all ranks down to a norm of at most `max_norm`; returns what it was."""
        if self._shards is None:
            return float(torch.nn.utils.clip_grad_norm_(self.parameters(), max_norm))
        return float(self._shards.clip_gradients(max_norm))

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's `state_dict`, as one process has it; with sharded weights only rank 0 has the moments."""
        return self.optimizer.state_dict() if self._shards is None else whole_state(self.optimizer)

    def held_bytes(self) -> int:
        """Memory in this process of the weights that are trained, their gradients and the optimizer's state."""
        tensors: list[Any] = [] if self._shards is None else self._shards.whole_weights()
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                tensors += [parameter, parameter.grad, *self.optimizer.state.get(parameter, {}).values()]
        return held_bytes(tensor for tensor in tensors if isinstance(tensor, Tensor))

    def _use(self, networks: Networks) -> None:
        self.model = networks.model
        self.parts = networks.parts
        self.split = networks.split
        self.value_trunk = networks.value_trunk
        self._value_parts = networks.value_parts
        self.value_head = networks.value_head

    # -- acting -----------------------------------------------------------------------------------------------------

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (N,), values (N, 1) and log-probabilities (N,), without gradients."""
        actions, values, log_probs = self.act(obs, deterministic=deterministic)
        return actions, values[:, None], log_probs

    @torch.no_grad()
    def act(
        self, observation: PyTorchObs | Observation, *, deterministic: bool = False, with_values: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log-probabilities, (N,) each, on the policy's device; parked rows (empty mask) are idle.

        With a critic on a trunk of its own, `with_values=False` saves stepping it; values are then 0.
        """
        ids, lengths = read(observation)
        logits = self._act_logits(ids, lengths)  # (N, V)
        actions, log_probs = greedy(logits) if deterministic else sample(logits)
        if with_values or self._value_decoder is None:
            values = self._act_values(ids, lengths)
        else:
            values = torch.zeros_like(log_probs)
        return actions, values, log_probs

    @torch.no_grad()
    def action_log_prob(self, observation: Observation, action: np.ndarray | Tensor) -> Tensor:
        """log π(a|s), (N,); nothing is computed again if this observation was just acted on."""
        logits = self._act_logits(*read(observation))
        return token_log_prob(logits, torch.as_tensor(action, device=logits.device))

    def _act_logits(self, ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Behaviour logits (N, V) of the observation's last state, incrementally outside training mode."""
        if self.training:
            self.invalidate()
        decoder = self._acting_decoder()
        hidden = decoder(ids, lengths)  # (N, H)
        head = sum(parameter._version for parameter in self.parts.lm_head.parameters())  # the decoder sees the trunk's
        question = decoder.serial, head, len(ids)
        if self._answer is None or self._answer[0] != question:
            self._answer = question, behaviour_logits(decoder.head(hidden), self.sampling)
        return self._answer[1]

    def _acting_decoder(self) -> Decoder:
        """The decoder that steps the actor: over its own weights, or over a bf16 copy of them as they are now."""
        if not self.bf16:
            return self._decoder
        if self._actor is None or self._actor.device != self.parts.device:
            self._actor = LowPrecisionActor(self.model, use_cache=self._use_cache)
        elif self._actor_is_old or not self._actor.up_to_date():
            self._actor.refresh()
        self._actor_is_old = False
        return self._actor.decoder

    def _act_values(self, ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        decoder = self._acting_decoder() if self._value_decoder is None else self._value_decoder
        return self.value_head(decoder(ids, lengths))  # (N,)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.act(observation, deterministic=deterministic)[0]

    # -- learning ---------------------------------------------------------------------------------------------------

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,) of single steps, differentiable.

        Observations that are prefixes of one another share one forward over the longest.
        """
        hidden, value_hidden = self._packed_hidden(obs)
        log_probs, entropies = self._taken(hidden, actions.long().reshape(-1), with_entropy=True)  # (B,) each
        return self.value_head(value_hidden)[:, None], log_probs, entropies

    def get_distribution(self, obs: PyTorchObs) -> CategoricalDistribution:
        """The behaviour distribution of each row's next token, differentiable in training mode, twice as well.

        TRPO asks for its Hessian-vector products here, which torch's fused attention kernels have no derivative for.
        """
        if not self.training:
            ids, lengths = read(obs)
            return self._distribution(self._act_logits(ids, lengths))
        with sdpa_kernel(SDPBackend.MATH), self.autocast():
            hidden, _ = self._packed_hidden(obs, values=False)
            logits = self.parts.logits(hidden)  # (B, V)
        return self._distribution(behaviour_logits(logits, self.sampling))

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """V(s), (B, 1): incrementally without gradients outside training mode, else differentiable."""
        if not self.training and not torch.is_grad_enabled():
            return self._act_values(*read(obs))[:, None]
        _, value_hidden = self._packed_hidden(obs)
        return self.value_head(value_hidden)[:, None]

    def evaluate_episodes(
        self,
        input_ids: Tensor,
        action_mask: Tensor,
        *,
        with_entropy: bool = True,
        lower_states: Tensor | None = None,
    ) -> EpisodeEvaluation:
        """Log-probabilities, values and entropies of whole episodes in one forward, differentiable.

        Args:
            input_ids: (B, L) right-padded.
            action_mask: True where the token is an action, (B, L) bool.
            with_entropy: also let gradients through the entropy; else it is computed without.
            lower_states: the frozen lower layers' output for these rows, (B, L, H), from `lower_states`.
        """
        acted_from = input_ids[:, :-1]  # (B, L - 1): nothing is done after the last token
        with self.autocast():
            if lower_states is None or self.split is None:
                hidden = self.parts.hidden_states(acted_from)  # (B, L - 1, H)
            else:
                hidden = self.split.upper(lower_states[:, :-1])  # (B, L - 1, H)
        acts = action_mask[:, 1:]  # (B, L - 1): whether the next token is an action
        states = hidden[acts]  # (n, H)
        log_probs, entropies = self._taken(states, input_ids[:, 1:][acts], with_entropy=with_entropy)  # (n,) each
        if self.value_trunk is not None:
            with self.autocast():
                hidden = self._value_parts.hidden_states(acted_from)  # (B, L - 1, H')
        values = self.value_head(hidden[acts])  # (n,)
        return EpisodeEvaluation(
            _by_row(log_probs, action_mask), _by_row(values, action_mask), _by_row(entropies, action_mask), states
        )

    @torch.no_grad()
    def lower_states(self, input_ids: Tensor, *, batch_size: int = 64) -> LowerStates | None:
        """The frozen lower layers' output for right-padded rows (E, L); None where none are frozen."""
        if self.split is None:
            return None
        with self.autocast():
            chunks = [self.split.lower(rows.to(self.device)) for rows in input_ids.split(batch_size)]
        return LowerStates(self.split, torch.cat(chunks))

    def episode_values(self, input_ids: Tensor, action_mask: Tensor) -> Tensor:
        """V(s_t) of whole episodes, right-padded with 0: (B, L), (B, L) → (B, T)."""
        with self.autocast():
            hidden = self._value_parts.hidden_states(input_ids[:, :-1])  # (B, L - 1, H')
        return _by_row(self.value_head(hidden[action_mask[:, 1:]]), action_mask)  # (B, T)

    def vocabulary_kl(self, states: Tensor, reference: LMParts, ref_states: Tensor) -> Tensor:
        """KL(π‖π_ref) over the whole vocabulary, (n,), differentiable, from last hidden states (n, H) and (n, H')."""

        def kl(states: Tensor, ref_states: Tensor) -> tuple[Tensor]:
            with torch.no_grad(), self.autocast():
                ref_logits = reference.logits(ref_states.to(reference.device)).to(states.device)  # (n, V)
            with self.autocast():
                logits = self.parts.logits(states)  # (n, V)
            return (full_kl(logits, ref_logits),)

        return in_chunks(kl, states, ref_states, vocab_size=self.parts.vocab_size)[0]

    def _taken(self, states: Tensor, actions: Tensor, *, with_entropy: bool) -> tuple[Tensor, Tensor]:
        """log π of actions taken earlier, and the entropy there, (n,) each, from hidden states (n, H)."""

        def taken(states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
            with self.autocast():
                logits = self.parts.logits(states)  # (n, V)
            log_probs, entropies = taken_log_prob_and_entropy(logits, actions, self.sampling)
            return log_probs, entropies if with_entropy else entropies.detach()

        log_probs, entropies = in_chunks(taken, states, actions, vocab_size=self.parts.vocab_size)
        return log_probs, entropies

    def autocast(self) -> torch.autocast:
        """The context of forward passes: bf16 if the policy was made with it."""
        return torch.autocast(self.parts.device.type, torch.bfloat16, enabled=self.bf16)

    def _packed_hidden(self, obs: PyTorchObs, *, values: bool = True) -> tuple[Tensor, Tensor]:
        """Last hidden state (B, H) of each row for actor and critic, one forward per family of prefixes."""
        ids, lengths = read(obs)
        packing = pack_prefixes(ids, lengths)
        device = self.parts.device
        rows = torch.from_numpy(ids[packing.leaders, : int(lengths.max())]).to(device)
        where = torch.from_numpy(packing.leader_of).to(device), torch.from_numpy(lengths - 1).to(device)
        with self.autocast():
            hidden = self.parts.hidden_states(rows)[where]  # (B, H)
            if self.value_trunk is None or not values:
                return hidden, hidden
            return hidden, self._value_parts.hidden_states(rows)[where]

    def _distribution(self, logits: Tensor) -> CategoricalDistribution:
        return CategoricalDistribution(logits.shape[-1]).proba_distribution(action_logits=logits)


def _by_row(flat: Tensor, action_mask: Tensor) -> Tensor:
    """Amounts of all actions, (n,) row by row, as right-padded rows (B, T)."""
    counts = action_mask.sum(dim=1, keepdim=True)  # (B, 1)
    places = torch.arange(int(counts.max()), device=flat.device) < counts  # (B, T)
    return flat.new_zeros(places.shape).masked_scatter(places, flat)


def own_model(source: ModelSource, lora: LoRASettings | None = None) -> PreTrainedModel:
    """A model that belongs to the policy alone, in eval mode (no dropout).

    Every weight is trainable, or with an adapter (a fresh one of `lora`, or the model's own) the adapter alone.
    """
    if isinstance(source, PretrainedConfig):
        model = AutoModelForCausalLM.from_config(source, dtype=torch.float32)
    elif isinstance(source, Shared):
        if not isinstance(source.value, PreTrainedModel):  # such as peft's wrapper, whose folder will do
            raise TypeError(f"expected Shared(model) of a PreTrainedModel, got {type(source.value).__name__}")
        model = copy.deepcopy(source.value).float()
    elif isinstance(source, str | Path):
        model = load_causal_lm(source, dtype=torch.float32)
    else:
        raise TypeError(
            f"expected model to be a folder, a name, Shared(model) or a configuration, got {type(source).__name__}; "
            "a bare module would be pickled whole by SB3's save"
        )
    if lora is not None:
        add_adapter(model, lora)
    if has_adapter(model):
        train_adapter_only(model)
    else:
        model.requires_grad_(True)
    return model.eval()


def critic_trunk(
    critic: Critic, source: str | Path | Shared[RewardModel] | PretrainedConfig | None, actor: LMParts
) -> Trunk:
    """A trunk for the value head alone, with every weight trainable.

    It is a copy of the actor's (`"separate"`) or of the reward model's in `source`; a configuration gives random
    weights.

    Raises:
        ValueError: the reward model reads later tokens too, or has another vocabulary than the actor.
    """
    trunk: Any
    if critic == "separate":
        trunk = copy.deepcopy(actor.module)
        trunk = unwrap(trunk, merge=True) if has_adapter(actor.model) else trunk  # trained whole
    elif isinstance(source, PretrainedConfig):
        trunk = AutoModelForCausalLM.from_config(source, dtype=torch.float32).get_decoder()
    else:
        reward = source.value if isinstance(source, Shared) else RewardModel.from_pretrained(source)  # type: ignore[arg-type]
        if reward.reads != "last_token":
            raise ValueError(
                "expected a critic_model that reads from left to right, got an encoder: its state of a token "
                "knows the tokens after it"
            )
        trunk = copy.deepcopy(reward.trunk).float()
    trunk.requires_grad_(True)
    parts = Trunk(trunk.eval())
    pad = parts.module.config.get_text_config().pad_token_id  # a reward model's own is a row more than the actor has
    if parts.vocab_size - (pad == actor.vocab_size) != actor.vocab_size:
        raise ValueError(
            f"expected a critic with the actor's vocabulary of {actor.vocab_size} tokens, "
            f"got {parts.vocab_size}: use critic='shared' or 'separate'"
        )
    return parts
