"""One attention layer of a compressed cache: all positions during a dense prefill, then only those that a method keeps, in groups."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from headwise.attention.call import Call
from headwise.caches.groups import EMPTY, Arrival, Group, Growing, Sliding, Window
from headwise.caches.held import Held
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model

PREFILLS = ("dense", "chunked", "windowed")


class View(NamedTuple):
    """What a method sees of a layer at the end of the prefill, before anything is dropped.

    Attributes:
        layer: Decoder layer.
        query: [B, H, T, d] after rotation; T tokens of the prompt's last block.
        keys: [B, G, S, d] after rotation.
        values: [B, G, S, d].
        positions: [B or 1, S] int32, position in the text, -1 for padding.
        scaling: Factor of query times key.
        softcap: As in `attend`.
        sinks: [H], as in `attend`.
        model: Whose layer it is.
    """

    layer: int
    query: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    model: Model


class Keep(NamedTuple):
    """What some KV heads of a layer keep.

    Attributes:
        heads: KV heads, None for all.
        places: [B or 1, n or 1, k], which of the S positions, ascending, -1 for none; None for all of them.
        window: From now on a sliding window instead (`places` is then None).
    """

    heads: Sequence[int] | None = None
    places: Tensor | None = None
    window: Window | None = None


class Compressor(Protocol):
    """A compression method, as the cache uses it."""

    @property
    def prefill(self) -> str:
        """One of `PREFILLS`. `dense`: full attention, then `kept`. Others: the windows of `streams` hold during the prefill already."""

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` if the method does not fit the model."""

    def streams(self, layer: int, model: Model) -> Sequence[Keep] | None:
        """The windows that hold from the first token on.

        Args:
            layer: Decoder layer, one with full attention.
            model: Whose layer it is.

        Returns:
            The layer's KV heads by window, every head once and without places; None for a method that selects tokens.
        """

    def kept(self, view: View) -> Sequence[Keep]:
        """What a layer keeps after a dense prefill.

        Args:
            view: All that the layer holds. Its tensors are the cache's own: read them, do not change them.

        Returns:
            Every KV head once; heads that keep equally many positions can share an entry.
        """


@dataclass
class Pass:
    """What the layers must know of the forward pass that is running.

    Attributes:
        real: [B, T] bool, False for padding; None: no padding.
        last: A prefill ends with this pass.
    """

    real: Tensor | None = None
    last: bool = True


class KeptLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed
    """One attention layer: all of it during a dense prefill, then the groups that the method keeps.

    Args:
        running: Of the cache; tells the layer about padding and when a prefill ends.
        streams: The heads by window, for methods whose windows hold during the prefill already; None for a dense prefill.
        exact: As `Sliding.exact`, for the windows of `streams` and for those that `kept` gives.

    Attributes:
        keys: [B, G, S, d] during a dense prefill, otherwise None.
        values: [B, G, S, d], likewise.
        groups: What is kept; None until the prefill has ended.
        seen: Tokens that passed, kept or not.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, running: Pass, streams: Sequence[Keep] | None, exact: bool) -> None:
        super().__init__()
        self.running, self._streams, self._exact = running, streams, exact
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.groups: list[Group] | None = None
        self.seen = 0
        self._counts: Tensor | None = None  # [B] real tokens so far, once there was padding
        self._positions: list[Tensor] = []
        self.is_initialized = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: room is made when it is needed."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Add new keys and values.

        Args:
            key_states: [B, G, T, d] after rotation.
            value_states: [B, G, T, d].

        Returns:
            (keys, values): full tensors [B, G, S, d] during a dense prefill; after it twice the same `Held`, which attends for itself.
        """
        self.lazy_initialization(key_states, value_states)
        new = self._arrival(key_states)
        self.seen += new.tokens
        if self.groups is None and self._streams is not None:
            self.groups = [self._empty_group(stream, key_states, value_states) for stream in self._streams]
        if self.groups is not None:
            held = Held(
                tuple(group.take(_of(group.heads, key_states), _of(group.heads, value_states), new) for group in self.groups),
                padded=self._counts is not None,
            )
            return held, held
        self._positions.append(new.positions(key_states.device))
        if self.keys is None or self.values is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys, self.values = torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)
        return self.keys, self.values

    def cut(self, compressor: Compressor, call: Call, model: Model) -> None:
        """After the attention of the last prefill pass: keep what the method says, drop the rest. In any other pass nothing happens.

        Args:
            compressor: The method.
            call: The layer's attention call, with the queries that the method may use.
            model: Whose layer it is.
        """
        if self.groups is not None or not self.running.last or self.keys is None or self.values is None:
            return
        rows = max(positions.shape[0] for positions in self._positions)
        positions = torch.cat([p.expand(rows, -1) for p in self._positions], dim=1)
        self.keep(
            compressor,
            View(call.layer, call.query, self.keys, self.values, positions, call.scaling, call.softcap, call.sinks, model),
        )

    def keep(self, compressor: Compressor, view: View) -> None:
        """End the prefill: keep what the method says of what it is shown, drop the rest.

        Args:
            compressor: The method; only its `kept` is called.
            view: The keys, values and positions to choose from. They need not be those of this layer's own pass.
        """
        self.groups = [self._group(keep, view.keys, view.values, view.positions) for keep in compressor.kept(view)]
        self.keys = self.values = None
        self._positions = []

    def _arrival(self, keys: Tensor) -> Arrival:
        """Positions of new tokens: rows count their real tokens once there was padding."""
        count, real = keys.shape[2], self.running.real
        if real is None and self._counts is None:
            return Arrival(self.seen, count)
        if real is None:
            real = torch.ones(keys.shape[0], count, dtype=torch.bool, device=keys.device)
        before = self._counts if self._counts is not None else torch.full((keys.shape[0],), self.seen, device=keys.device)
        running = before[:, None] + real.cumsum(dim=1)
        self._counts = running[:, -1]
        return Arrival(self.seen, count, torch.where(real, running - 1, EMPTY).to(torch.int32))

    def _empty_group(self, keep: Keep, keys: Tensor, values: Tensor) -> Group:
        heads = _indices(keep.heads, keys.device)
        if keep.window is not None:
            return Sliding.empty(heads, _of(heads, keys), _of(heads, values), keep.window, self._exact)
        none = (slice(None), slice(None), slice(0, 0))
        positions = torch.empty(1, 1, 0, dtype=torch.int32, device=keys.device)
        return Growing(heads, _of(heads, keys)[none], _of(heads, values)[none], positions, used=0)

    def _group(self, keep: Keep, keys: Tensor, values: Tensor, positions: Tensor) -> Group:
        heads = _indices(keep.heads, keys.device)
        keys, values = _of(heads, keys), _of(heads, values)
        rows = positions if positions.shape[0] > 1 else None
        if keep.window is not None:
            group = Sliding.empty(heads, keys, values, keep.window, self._exact)
            group.take(keys, values, Arrival(0, keys.shape[2], rows))
            return group
        if keep.places is None:
            return Growing(
                heads, keys.contiguous(), values.contiguous(), positions[:, None], keys.shape[2], holes=rows is not None
            )
        places = keep.places.clamp(min=0)
        kept = positions[:, None].expand(max(len(positions), len(places)), places.shape[1], -1)
        kept = kept.gather(2, places.expand(len(kept), -1, -1)).masked_fill(keep.places < 0, EMPTY)
        holes = rows is not None or bool((keep.places < 0).any())
        return Growing(heads, _gathered(keys, places), _gathered(values, places), kept, places.shape[2], holes=holes)

    @property
    def nbytes(self) -> int:
        """Bytes held: all keys and values during a dense prefill, then those of the groups."""
        full = sum(tensor.numel() * tensor.element_size() for tensor in (self.keys, self.values) if tensor is not None)
        return full + sum(group.nbytes for group in self.groups or ())

    def held_positions(self, row: int, kv_heads: int) -> list[Tensor]:
        """Per KV head the positions that a batch row holds.

        Args:
            row: Batch row.
            kv_heads: Of the model, G.

        Returns:
            G tensors int32, ascending, without padding; an empty list while the prefill has not ended.
        """
        found: list[Tensor] = [torch.empty(0)] * kv_heads if self.groups else []
        for group in self.groups or ():
            heads = range(kv_heads) if group.heads is None else group.heads.tolist()
            for place, head in enumerate(heads):
                own = group.positions[min(row, len(group.positions) - 1), min(place, group.positions.shape[1] - 1), : group.used]
                found[head] = own[own != EMPTY].sort().values
        return found

    def fork(self, running: Pass) -> KeptLayer:
        """The same content, shared until one side changes."""
        twin = copy.copy(self)
        twin.running = running
        twin.groups = [group.fork() for group in self.groups or ()]
        return twin

    def get_seq_length(self) -> int:
        """Tokens seen, kept or not."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if nothing had been dropped; attention over kept positions makes its own mask."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    @property
    def batch_size(self) -> int:
        """Rows; -1 while empty."""
        held = self.groups[0].keys if self.groups else self.keys
        return -1 if held is None else int(held.shape[0])

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens; what was dropped before does not come back.

        Args:
            tokens_to_remove: A negative number, as in transformers.

        Raises:
            HeadwiseError: Before the end of the prefill, in a batch with padding, for more tokens than a head holds, and for sliding windows.
        """
        count = -tokens_to_remove
        if count and (self.groups is None or self._counts is not None):
            raise HeadwiseError("only tokens after the prefill can be removed, and only from a batch without padding")
        for group in self.groups or ():
            group.drop(count)
        self.seen -= count

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make these batch rows the rows."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Make these batch rows the rows."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, indices), self.values.index_select(0, indices)
        for group in self.groups or ():
            group.select_rows(indices)
        if self._counts is not None:
            self._counts = self._counts.index_select(0, indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every batch row `repeats` times."""
        held = self.groups[0].keys if self.groups else self.keys
        if held is not None:
            self.batch_select_indices(torch.arange(len(held), device=held.device).repeat_interleave(repeats))


def _indices(heads: Sequence[int] | None, device: torch.device) -> Tensor | None:
    return None if heads is None else torch.tensor(list(heads), device=device)


def _of(heads: Tensor | None, tensor: Tensor) -> Tensor:
    return tensor if heads is None else tensor[:, heads]


def _gathered(tensor: Tensor, places: Tensor) -> Tensor:
    """[B, n, S, d] at places [B or 1, n or 1, k]."""
    batch, heads, _, width = tensor.shape
    return tensor.gather(2, places[..., None].expand(batch, heads, -1, width))
