"""A cache that keeps every position, in tensors with room to grow: a new token costs one row, not a copy of all that was there before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE = 256  # positions; a full tensor grows by this or by a quarter, whichever is more


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of one layer as views of larger tensors.

    Args:
        on_host: Keep them in (pinned) memory of the host, whatever device the model runs on.
    """

    def __init__(self, on_host: bool = False) -> None:
        super().__init__()
        self.on_host = on_host
        self._stores: list[Tensor] = []
        self.keys: Tensor | None
        self.values: Tensor | None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new positions.

        Args:
            key_states: [B, G, T, d].
            value_states: [B, G, T, width of values].
            args: Not used.
            kwargs: Not used.

        Returns:
            All keys and all values, [B, G, S, ...]; later updates write behind them, never into them.
        """
        if not self.is_initialized:
            self._stores = []
            self.lazy_initialization(key_states, value_states)
            if self.on_host:
                self.device = torch.device("cpu")
        used = self.get_seq_length()
        total = used + key_states.shape[2]
        if not self._fits(total):
            self._grow(key_states, value_states, total)
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            # To the host this blocks until the numbers have been computed and have arrived: whoever reads the store on the host, choosers and
            # gathers among them, needs no mark to wait for.
            store[:, :, used:total] = new.to(store.device)
        self.keys, self.values = (store[:, :, :total] for store in self._stores)
        return self.keys, self.values

    def __copy__(self) -> RoomyLayer:
        """A twin that grows into tensors of its own, so that a fork never writes behind the original's views."""
        twin = RoomyLayer(self.on_host)
        twin.__dict__.update(self.__dict__, _stores=[])
        return twin

    def _fits(self, total: int) -> bool:
        """Whether the present views begin the stores, as they do unless rows were reordered or repeated, and there is room behind them."""
        if not self._stores or self._stores[0].shape[2] < total:
            return False
        now, store = self.keys, self._stores[0]
        if store.is_inference() and not torch.is_inference_mode_enabled():  # torch lets nobody write into it any more
            return False
        return now is not None and (now.numel() == 0 or (now.data_ptr() == store.data_ptr() and now.shape[0] == store.shape[0]))

    def _grow(self, key_states: Tensor, value_states: Tensor, total: int) -> None:
        room = total + max(SPARE, total // 4)
        device = torch.device("cpu") if self.on_host else key_states.device
        stores = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            pinned = self.on_host and new.is_cuda
            store = torch.empty((*new.shape[:2], room, new.shape[3]), dtype=new.dtype, device=device, pin_memory=pinned)
            if old is not None and old.numel():
                store[:, :, : old.shape[2]] = old
            stores.append(store)
        self._stores = stores


def roomy_cache(config: Any, on_host: bool = False) -> DynamicCache:
    """An empty cache of a model: full-attention layers with room to grow, all others as transformers keeps them.

    Args:
        config: Configuration of the model.
        on_host: See `RoomyLayer`.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(on_host) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
