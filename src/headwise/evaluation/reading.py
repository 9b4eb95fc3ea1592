"""A prompt that is read once for many compression methods, and the answers behind what each of them keeps.

Decoding reads all weights for every token, which costs far more than the prompt once there are dozens of methods and budgets: so their caches go
on as rows of one batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from headwise.caches.kept_cache import KeptCache
from headwise.caches.kept_layer import Compressor, Keep, View
from headwise.caches.stacked import can_be_stacked, stacked
from headwise.maths.memory import cache_bytes, full_counts
from headwise.models.forward import check_finite, token_tensor
from headwise.models.model import Model
from headwise.runtime.answer import decode_rows

CHUNK = 64  # tokens that are read at a time by methods whose prefill is `chunked`
ROWS = 16  # caches that are decoded together, at most
# Bytes that they may hold together. Where a full cache holds more, that counts: no more memory is then needed than for one method at a time.
ROOM = 2**30


class Compressed(NamedTuple):
    """What a method keeps of a prompt.

    Attributes:
        number: Which method.
        cache: Right after the prefill.
        logits: [1, vocabulary] behind the prompt.
    """

    number: int
    cache: KeptCache
    logits: Tensor


class Size(NamedTuple):
    """Of a cache with one row.

    Attributes:
        positions: Held, mean per KV head.
        nbytes: Held, spare room included.
        formula: Bytes by the formula.
        full: Bytes of the full cache by the formula.
    """

    positions: float
    nbytes: int
    formula: int
    full: int


class _Recorder:
    """Keeps everything, and what each layer looked like at the end of the prefill."""

    prefill = "dense"

    def __init__(self) -> None:
        self.views: dict[int, View] = {}

    def check(self, model: Model) -> None:
        """Fits all models."""

    def streams(self, layer: int, model: Model) -> None:
        """No windows."""

    def kept(self, view: View) -> Sequence[Keep]:
        """All positions."""
        self.views[view.layer] = view
        return [Keep()]


class Reading:
    """A prompt that was read once with full attention and can be compressed by many methods: what they see is the same."""

    def __init__(self, model: Model, ids: Sequence[int]) -> None:
        self._model, self._ids, recorder = model.hf, token_tensor(model.hf, ids), _Recorder()
        self._full, self._views = KeptCache(model.hf, recorder), recorder.views
        self._logits = self._full.prefill(self._ids)

    def compressed(self, compressor: Compressor) -> tuple[KeptCache, Tensor]:
        """The cache as the method's own prefill would leave it, and the logits [1, vocabulary] behind the prompt."""
        cache = KeptCache(self._model, compressor)
        if compressor.prefill != "dense":
            return cache, cache.prefill(self._ids, chunk=CHUNK if compressor.prefill == "chunked" else None)
        others = self._full.fork().layers
        for i, view in self._views.items():
            cache.layers[i].update(view.keys, view.values)
            cache.kept_layers[i].keep(compressor, view)
        for i in cache.skipped:
            cache.layers[i] = others[i]
        return cache, self._logits

    def batches(self, methods: Sequence[tuple[int, Compressor]]) -> Iterator[list[Compressed]]:
        """What each (number, compressor) keeps, in their order; those of one batch can go on together, and their logits are the same."""
        full = sum(layer.nbytes for layer in self._full.kept_layers.values())
        batch: list[Compressed] = []
        for number, compressor in methods:
            one = Compressed(number, *self.compressed(compressor))
            sole = compressor.prefill != "dense" or not can_be_stacked(one.cache)
            held = sum(other.cache.nbytes for other in (*batch, one))
            if batch and (sole or len(batch) == ROWS or held > max(full, ROOM)):
                yield batch
                batch = []
            batch.append(one)
            if sole:
                yield batch
                batch = []
        if batch:
            yield batch


def decoded(
    model: Any, caches: Sequence[KeptCache], rest: Sequence[int], stop: Collection[int], limit: int
) -> list[tuple[int, ...]]:
    """Greedy answers behind `rest` over each cache, which is left as it is; several caches go on as rows of one batch."""
    cache = caches[0].fork() if len(caches) == 1 else stacked(caches, len(rest) + limit)
    return decode_rows(model, cache, rest, stop, limit, len(caches))


def continuations(
    model: Any, caches: Sequence[KeptCache], logits: Tensor, stop: Collection[int], limit: int
) -> list[tuple[int, ...]]:
    """Greedy answers behind a prompt whose prefill gave `logits` [1, vocabulary] to all; an answer ends with a stop token or after `limit` tokens."""
    check_finite(logits)
    token = int(logits[0].argmax())
    if token in stop or limit <= 1:
        return [(token,)] * len(caches)
    return [(token, *ids) for ids in decoded(model, caches, [token], stop, limit - 1)]


def continuation(model: Any, cache: KeptCache, logits: Tensor, stop: Collection[int], limit: int) -> tuple[int, ...]:
    """Greedy answer behind a prompt that a cache has just read.

    Args:
        model: A transformers model.
        cache: Of one row; it grows.
        logits: [1, vocabulary] behind the prompt, which give the first token.
        stop: Tokens that end an answer.
        limit: Longest answer in tokens; one token is said in any case.

    Returns:
        The tokens, a stop token included.

    Raises:
        HeadwiseError: A logit behind the prompt is NaN or infinite.
    """
    check_finite(logits)
    token = int(logits[0].argmax())
    if token in stop or limit <= 1:
        return (token,)
    return (token, *decode_rows(model, cache, [token], stop, limit - 1, rows=1)[0])


def size_of(cache: KeptCache) -> Size:
    """Sizes of the layers that are compressed; `cache.skipped` are not counted.

    Args:
        cache: Of one row, after its prefill.

    Returns:
        Measured bytes, and beside them what the formula says of the same and of a full cache.
    """
    layers = list(cache.kept_layers.values())
    counts = [[len(head) for head in heads] for heads in cache.held_positions().values()]
    some = (layers[0].groups or [])[0]
    widths = {"key_width": some.keys.shape[3], "value_width": some.values.shape[3], "item_size": some.keys.element_size()}
    whole = full_counts(cache.get_seq_length(), len(layers), cache.model.heads.kv_heads)
    nbytes = sum(layer.nbytes for layer in layers)
    return Size(float(np.mean(counts)), nbytes, cache_bytes(counts, **widths), cache_bytes(whole, **widths))
