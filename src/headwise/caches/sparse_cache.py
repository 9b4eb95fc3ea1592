"""`headwise.sparse_decode`: every decoding step reads only chosen positions; the cache keeps all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from transformers import DynamicCache

from headwise.attention.plan import attached
from headwise.attention.sparse import Chooser, SparseDecoding, SparseOptions
from headwise.caches.roomy import RoomyLayer, roomy_cache
from headwise.heads.errors import HeadwiseError
from headwise.models.model import as_model

PLACEMENTS = ("device", "slots", "host")
_at_work: list[Chooser] = []  # choosers of open blocks: they remember one text, so none can serve two


class SparseCache(DynamicCache):  # type: ignore[misc]  # transformers is not typed
    """The cache of one `sparse_decode` block. Pass it as `past_key_values` to the model or to `model.generate`.

    Attributes:
        skipped: Layers that are left as they are, because they have no full attention (sliding windows, recurrent states).
    """

    def __init__(self, config: Any, step: SparseDecoding, on_host: bool) -> None:
        super().__init__(config=config)
        self.layers = roomy_cache(config, on_host).layers
        self._step = step
        self.skipped = [i for i in range(len(self.layers)) if i not in step.layers]

    def report(self) -> dict[str, Any]:
        """What has been read and moved so far; see `headwise.attention.selected.Counts.summary`."""
        return self._step.counts.summary()

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all positions, without spare room."""
        stored = [tensor for layer in self.layers if isinstance(layer, RoomyLayer) for tensor in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in stored if tensor is not None)

    @property
    def slot_bytes(self) -> int:
        """Bytes of the keys and values in slots, where the model runs; with `placement="host"`, all that it holds of layers with full attention."""
        return self._step.slot_bytes

    def reorder_cache(self, *_: Any, **__: Any) -> NoReturn:
        """Not possible. Always raises `HeadwiseError`."""
        raise HeadwiseError("sparse decoding does not follow rows that change places (beam search); use num_beams=1")

    batch_repeat_interleave = batch_select_indices = reorder_cache


@contextmanager
def sparse_decode(
    model: Any,
    chooser: Chooser,
    *,
    budget: int,
    sinks: int = 4,
    recent: int = 32,
    placement: str = "device",
    check: bool = True,
) -> Iterator[SparseCache]:
    """Read only chosen positions in every decoding step (SpeContext, Xu et al. 2025, arXiv:2512.00722, with any chooser).

    Prompts, and later turns of several tokens, are read with full attention; so are steps whose context fits the budget, bit for bit. Layers with
    sliding windows or recurrent states are left as they are (`cache.skipped`). All keys and values stay in the cache: what is not read now can be
    read later.

    Args:
        model: A `Model`, or a transformers model.
        chooser: Who chooses; see `headwise.caches.choosers`.
        budget: Positions per KV head and step, `sinks` and `recent` included.
        sinks: First positions that are always read.
        recent: Last positions that are always read, the newest token included.
        placement: `device`: everything where the model runs, gathered anew at every step. `slots`: what is read is kept in slots, into which only
            what changed is moved (elastic loading). `host`: the same with everything else in the host's memory (for a model on CUDA pinned, and
            copied on a stream of its own).
        check: Compare the chooser with chance at the first sparse step, and read everything if it is no better (a warning says so).

    Yields:
        An empty cache; `report()` tells what was read and moved, `reset()` empties it for the next prompt.

    Raises:
        HeadwiseError: A budget that leaves nothing to choose, an unknown placement, a chooser that does not fit the model, a model without
            full attention, or a sparse block inside another.
    """
    if placement not in PLACEMENTS:
        raise HeadwiseError(f"unknown placement {placement!r}; use {', '.join(PLACEMENTS)}")
    options = SparseOptions(budget, sinks, recent, placement != "device", check)
    own = as_model(model)
    if any(other is chooser for other in _at_work):
        raise HeadwiseError(f"this {chooser.name} chooser is at work in another open block; make one for each")
    step = SparseDecoding(own, chooser, options)
    with attached(own) as plan:
        if any(isinstance(other, SparseDecoding) for other in plan.choosing):
            raise HeadwiseError("one sparse_decode block of this model is open already; leave it first")
        _at_work.append(chooser)
        try:
            with chooser.opened(own), plan.running(step):
                yield SparseCache(own.hf.config, step, placement == "host")
        finally:
            del _at_work[next(i for i, other in enumerate(_at_work) if other is chooser)]
