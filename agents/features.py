"""`LMFeaturesExtractor`: hidden states of a frozen language model as features for any SB3 policy."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TensorDict
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_gym.agents.observations import pack_prefixes, read
from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.loading import Shared, load_causal_lm
from rlhf_gym.lm.parts import Trunk
from rlhf_gym.ranges import check_arguments


class LMFeaturesExtractor(BaseFeaturesExtractor):
    """The last hidden state at the last real token, (B, H), of a frozen language model.

        DQN("MultiInputPolicy", env, policy_kwargs={
            "features_extractor_class": LMFeaturesExtractor, "features_extractor_kwargs": {"model": folder}})

    The model is not registered as a submodule: SB3 averages the parameters of a network into those of its target, and
    would write into weights that both share. So SB3 does not save it either; loading takes it from its folder again. A
    `Shared(model)` would be pickled whole.

    When acting, rows that continue those of the last call are stepped incrementally. A minibatch of a replay buffer is
    run in one forward, each family of prefixes once.

    Args:
        observation_space: as SB3 passes it.
        model: a causal LM, usually π_ref: a folder, a name, or `Shared(model)`. One copy serves all extractors.
        device: of the model where it is loaded here.
        use_cache: see `Decoder`.
    """

    @check_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        model: str | Path | Shared[PreTrainedModel],
        device: str = "cpu",
        use_cache: bool | None = None,
    ) -> None:
        trunk = Trunk(_frozen_trunk(model, device))
        super().__init__(observation_space, features_dim=trunk.hidden_size)
        self._trunk = trunk
        self._decoder = Decoder(trunk, use_cache=use_cache)
        self._last = np.zeros((0, 0), dtype=np.int64), np.zeros(0, dtype=np.int64)

    @torch.no_grad()
    def forward(self, observations: TensorDict) -> Tensor:
        """(B, H) fp32, on the observations' device; a parked row's features are 0."""
        ids, lengths = read(observations)
        hidden = self._decoder(ids, lengths) if self._goes_on(ids, lengths) else self._run(ids, lengths)  # (B, H)
        # a copy: the decoder's answer is its own memory
        return hidden.to(observations["input_ids"].device, torch.float32, copy=True)

    def _goes_on(self, ids: np.ndarray, lengths: np.ndarray) -> bool:
        """Whether most rows continue those of the last call, as an environment's do and a minibatch's do not."""
        if self.training:
            return False
        last_ids, last_lengths = self._last
        self._last = (ids, lengths)
        if last_ids.shape != ids.shape:
            return False
        held = np.arange(ids.shape[1]) < last_lengths[:, None]  # (B, L)
        same = ((ids == last_ids) | ~held).all(axis=1) & (lengths >= last_lengths)  # (B,)
        return bool(2 * same.sum() >= len(same))

    def _run(self, ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        packing = pack_prefixes(ids, lengths)
        device = self._trunk.device
        width = max(int(lengths.max()), 1)
        hidden = self._trunk.hidden_states(torch.from_numpy(ids[packing.leaders, :width]).to(device))  # (G, l, H)
        row = torch.from_numpy(packing.leader_of)  # (B,)
        column = torch.from_numpy(np.maximum(lengths - 1, 0))  # (B,)
        here = torch.from_numpy(lengths > 0).to(device)[:, None]  # (B, 1)
        return hidden[row.to(device), column.to(device)] * here  # (B, H)


_loaded: weakref.WeakValueDictionary[tuple[str, str], PreTrainedModel] = weakref.WeakValueDictionary()
"""Trunks loaded here and still in use: a Q-network and its target each make an extractor, and share one."""


def _frozen_trunk(source: str | Path | Shared[PreTrainedModel], device: str) -> PreTrainedModel:
    if isinstance(source, Shared):
        return source.value.eval().get_decoder()
    if not isinstance(source, str | Path):
        raise TypeError(f"expected model to be a folder, a name or Shared(model), got {type(source).__name__}")
    trunk = _loaded.get((str(source), device))
    if trunk is None:
        model = load_causal_lm(source, dtype=torch.float32, device=device).requires_grad_(False)
        trunk = model.get_decoder()
        _loaded[str(source), device] = trunk
    return trunk
