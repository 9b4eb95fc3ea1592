"""How much memory decoding takes, and how many layers must keep their keys and values on the host (SpeContext, arXiv:2512.00722, sec. 5).

The device holds the weights, a share of them as run-time buffers, and per request the keys and values of the layers that stay there; a layer on the
host keeps `budget` positions on the device. Layers leave from the last to the first. Different from the paper, and why:

- Algorithm 1 leaves the factor of 4 bytes (keys and values in 16 bits) out of the term of the layers on the host; equation 7 has it, so has this.
- A threshold is the longest length that fits, so a layer leaves when the length is *above* it; the paper's example counts one layer too few.
- The last threshold is tested: what does not fit with all layers on the host is refused.
- The draft keeps keys only (half a layer), and attention that knows KV groups needs no copy of them (alpha = 0). Both are options.
- Requests may differ in length, and no request holds more positions than it has: a context within the budget gains nothing on the host.
- Layers with a sliding window hold at most their window and stay on the device.

Not counted: recurrent states of layers without attention heads, and what an allocator loses between its blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_number
from headwise.runtime.options import check_least

LONGEST = 2**40  # tokens; a length that fits up to here has no limit
MOST_SHARE = 1000  # of draft layers, alpha and buffers


@dataclass(frozen=True)
class LayerShape:
    """Keys and values of one layer with attention heads.

    Attributes:
        kv_heads: KV heads.
        key_width: Numbers per key.
        value_width: Numbers per value.
        window: Positions that a sliding window holds; None for full attention.
    """

    kv_heads: int
    key_width: int
    value_width: int
    window: int | None = None

    def __post_init__(self) -> None:
        check_least(1, kv_heads=self.kv_heads, key_width=self.key_width, value_width=self.value_width, window=self.window)

    @property
    def numbers(self) -> int:
        """Numbers that one position takes."""
        return self.kv_heads * (self.key_width + self.value_width)


@dataclass(frozen=True)
class Sizes:
    """What the memory of a model depends on, apart from the requests.

    Attributes:
        weights: Bytes of the model's weights (M_O in the paper).
        layers: Layers with attention heads, first to last.
        item_size: Bytes of one number of a key or value (2 for bfloat16).
        budget: Positions per request that a layer on the host keeps on the device (B).
        draft_weights: Bytes of the chooser's own weights (M_D).
        draft_layers: Layers' worth of keys and values that the chooser keeps: 0.5 for keys of one layer, 1 as in the paper, 0 without a draft.
        alpha: Layers' worth of keys and values copied to all query heads at run time; the paper has query heads per KV head.
        buffer_share: Run-time buffers as a share of the weights.

    Raises:
        HeadwiseError: A number out of its range, or no layer.
    """

    weights: int
    layers: tuple[LayerShape, ...]
    item_size: int = 2
    budget: int = 2048
    draft_weights: int = 0
    draft_layers: float = 0.5
    alpha: float = 0.0
    buffer_share: float = 0.3

    def __post_init__(self) -> None:
        if not self.layers:
            raise HeadwiseError("a memory plan needs at least one layer with attention heads")
        check_least(0, weights=self.weights, draft_weights=self.draft_weights)
        check_least(1, item_size=self.item_size, budget=self.budget)
        for name in ("draft_layers", "alpha", "buffer_share"):
            if not 0 <= checked_number(getattr(self, name), name) <= MOST_SHARE:
                raise HeadwiseError(f"{name} must lie in [0, {MOST_SHARE}]; got {getattr(self, name)!r}")

    @property
    def movable(self) -> tuple[int, ...]:
        """Layers that can live on the host, in the order in which they leave: those with full attention, from the last to the first."""
        return tuple(i for i in reversed(range(len(self.layers))) if self.layers[i].window is None)


def fixed_bytes(sizes: Sizes) -> int:
    """Bytes on the device that do not depend on the requests: weights of model and draft, and run-time buffers."""
    weights = sizes.weights + sizes.draft_weights
    return weights + math.ceil(sizes.buffer_share * weights)


def request_bytes(sizes: Sizes, length: int, on_host: int = 0) -> int:
    """Bytes on the device for one request.

    Args:
        sizes: Of the model.
        length: Tokens of the request, those to come included.
        on_host: Layers whose keys and values are on the host, 0 to `len(sizes.movable)`.

    Raises:
        HeadwiseError: A negative length, or `on_host` out of its range.
    """
    check_least(0, length=length)
    away = _away(sizes, on_host)
    held = sum(_held(sizes, layer, length, layer in away) * shape.numbers for layer, shape in enumerate(sizes.layers))
    extra = (sizes.draft_layers + sizes.alpha) * max(shape.numbers for shape in sizes.layers)
    return held * sizes.item_size + math.ceil(extra * sizes.item_size) * length


def device_bytes(sizes: Sizes, lengths: Sequence[int], on_host: int = 0) -> int:
    """Bytes on the device with `on_host` layers' keys and values on the host (equation 7; 0: equation 6, all on the device).

    Args:
        sizes: Of the model.
        lengths: Tokens of each request; they need not be equal.
        on_host: 0 to `len(sizes.movable)`.
    """
    return fixed_bytes(sizes) + sum(request_bytes(sizes, length, on_host) for length in lengths)


def host_bytes(sizes: Sizes, lengths: Sequence[int], on_host: int) -> int:
    """Bytes of keys and values on the host: the whole text of every request, in the layers that left the device."""
    return sum(sizes.layers[layer].numbers for layer in _away(sizes, on_host)) * sizes.item_size * sum(lengths)


def thresholds(sizes: Sizes, memory: int, requests: int) -> tuple[int | None, ...]:
    """ST[i]: the longest length that fits with i layers on the host, for requests of equal length (Algorithm 1).

    Args:
        sizes: Of the model.
        memory: Bytes of the device.
        requests: Number of requests.

    Returns:
        [layers that can leave + 1], never falling: tokens per request, 0 if not one fits, None if every length fits.
    """
    check_least(1, requests=requests)
    room = (memory - fixed_bytes(sizes)) // requests
    return tuple(_longest(sizes, room, on_host) for on_host in range(len(sizes.movable) + 1))


def layers_on_host(sizes: Sizes, memory: int, lengths: Sequence[int]) -> int:
    """The smallest number of layers on the host with which the requests fit, so that the most stay on the device.

    Args:
        sizes: Of the model.
        memory: Bytes of the device.
        lengths: Tokens of each request.

    Raises:
        HeadwiseError: The weights and buffers alone do not fit, or the requests do not with all layers on the host.
    """
    fixed = fixed_bytes(sizes)
    if fixed > memory:
        raise HeadwiseError(
            f"{size_text(memory)} of memory cannot hold the weights with their run-time buffers, which take {size_text(fixed)}"
        )
    every = len(sizes.movable)
    found = next((count for count in range(every + 1) if device_bytes(sizes, lengths, count) <= memory), None)
    if found is None:
        least = device_bytes(sizes, lengths, every)
        where = (
            "with the keys and values of every full-attention layer on the host" if every else "(no layer can leave the device)"
        )
        raise HeadwiseError(
            f"the requests do not fit: {where} they need {size_text(least)} of {size_text(memory)}; take fewer or shorter requests"
        )
    return found


def largest_batch(sizes: Sizes, memory: int, length: int, on_host: int) -> int:
    """The most requests of one length that fit with `on_host` layers on the host; 0 if none does.

    Raises:
        HeadwiseError: A length below 1, or `on_host` out of its range.
    """
    check_least(1, length=length)
    each = request_bytes(sizes, length, on_host)
    return max(0, memory - fixed_bytes(sizes)) // each


def moved_bytes(sizes: Sizes, lengths: Sequence[int], on_host: int, overlap: float = 0.8) -> int:
    """Expected bytes that move to the device per step (elastic loading, sec. 4.3).

    Args:
        sizes: Of the model.
        lengths: Tokens of each request. One within the budget lies on the device as a whole, so nothing moves for it.
        on_host: Layers on the host.
        overlap: Share of a step's positions that the step before had too, in [0, 1]; the paper has above 0.8, chance is budget / length.

    Raises:
        HeadwiseError: An overlap outside [0, 1].
    """
    if not 0 <= checked_number(overlap, "overlap") <= 1:
        raise HeadwiseError(f"overlap must lie in [0, 1]; got {overlap!r}")
    reading = sum(length > sizes.budget for length in lengths)
    position = sum(sizes.layers[layer].numbers for layer in _away(sizes, on_host)) * sizes.item_size
    return round((1 - overlap) * sizes.budget * position * reading)


def transfer_seconds(moved: int, bandwidth: float) -> float:
    """Seconds that bytes take from the host to the device.

    Args:
        moved: Bytes.
        bandwidth: Bytes per second, above 0.

    Raises:
        HeadwiseError: A bandwidth that is not above 0.
    """
    if checked_number(bandwidth, "bandwidth") <= 0:
        raise HeadwiseError(f"bandwidth must be above 0 bytes per second; got {bandwidth!r}")
    return moved / bandwidth


def read_break_even(sizes: Sizes) -> int | None:
    """The shortest length at which a sparse step reads fewer bytes of keys and values than a full one, the draft's own reading included.

    A full step reads every position in every full-attention layer; a sparse one `budget` of them, and all positions of the draft.

    Returns:
        Tokens; None if there is no such length, as the draft is no smaller than the layers that it chooses for.
    """
    full = sum(sizes.layers[layer].numbers for layer in sizes.movable) * sizes.item_size
    draft = math.ceil(sizes.draft_layers * max(shape.numbers for shape in sizes.layers) * sizes.item_size)
    return None if draft >= full else full * sizes.budget // (full - draft) + 1


def size_text(count: int) -> str:
    """Bytes as a person reads them: 1.50 GiB (GiB is 2**30 bytes, MiB 2**20)."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def _held(sizes: Sizes, layer: int, length: int, is_away: bool) -> int:
    """Positions of a request that the device holds in a layer."""
    limit = sizes.budget if is_away else sizes.layers[layer].window
    return length if limit is None else min(length, limit)


def _away(sizes: Sizes, on_host: int) -> frozenset[int]:
    """The layers on the host."""
    check_least(0, on_host=on_host)
    if on_host > len(sizes.movable):
        raise HeadwiseError(f"{on_host} layers cannot be on the host; {len(sizes.movable)} have full attention")
    return frozenset(sizes.movable[:on_host])


def _longest(sizes: Sizes, room: int, on_host: int) -> int | None:
    """The longest length of one request within `room` bytes. Bytes never fall with the length, so the limit is found by halving."""
    if request_bytes(sizes, LONGEST, on_host) <= room:
        return None
    fits, beyond = 0, LONGEST
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if request_bytes(sizes, middle, on_host) <= room else (fits, middle)
    return fits
