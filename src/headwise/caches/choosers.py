"""Who chooses what a sparse decoding step reads, without any training: the rivals of SpeContext's distilled chooser, and the controls.

All of them are `headwise.attention.sparse.Chooser`. Shared ones name positions once per step, before layer 0, from what is known by then: the
attention of the step before (`RetrievalHeads`), of the last full step (`RefreshEvery`); of a smaller model (`SmallModel`, in a file of its own). The
others choose in every layer: by the query of the step before (`PreviousQuery`, the rule of FreeKV, arXiv:2505.13109), by bounds on pages of keys
(`Pages`, the idea of Quest, arXiv:2406.10774), by a layer below (`AnchorLayers`), or by the layer's own attention, which saves nothing (`Oracle`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from headwise.attention.call import Call, Pass, Whole
from headwise.attention.sparse import row_weights
from headwise.caches.chooser_parts import check_whole, head_weights, in_layers, key_bytes
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.maths.importance import group_largest
from headwise.maths.rows import grouped_product
from headwise.models.model import Model


class FreeChooser:
    """Base: no opinion. Subclasses give `scores`, and learn in `look` or `begin`."""

    name = ""
    shared = True
    checked = True
    page = 1
    reads_text = False

    @contextmanager
    def opened(self, model: Model) -> Iterator[None]:
        """See `Chooser.opened`."""
        yield

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """See `Chooser.start`."""

    def begin(self, now: Pass) -> None:
        """See `Chooser.begin`."""

    def reads_all(self, layer: int) -> bool:
        """See `Chooser.reads_all`."""
        return False

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """See `Chooser.scores`."""
        return None

    def look(self, call: Call, whole: Whole) -> None:
        """See `Chooser.look`."""

    def reads(self, layer: int, whole: Whole) -> int:
        """See `Chooser.reads`; here nothing."""
        return 0


class Streaming(FreeChooser):
    """Control: the first and the last positions, nothing in between."""

    name, checked = "streaming", False

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """Later is better."""
        return torch.arange(whole.length, dtype=torch.float32).view(1, 1, -1)


class Random(FreeChooser):
    """Control: positions at random, anew at every step.

    Args:
        seed: Of the draws.
    """

    name, checked = "random", False

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """Begin the draws anew."""
        self._generator = torch.Generator().manual_seed(self._seed)

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """[B, G, S] in [0, 1)."""
        return torch.rand((len(call.query), whole.keys[-1].shape[1], whole.length), generator=self._generator)


class Oracle(FreeChooser):
    """Reference: every layer and KV head reads what it attends to most at this very step. It saves nothing: all keys are read to know that."""

    name, shared, checked = "oracle", False, False

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """[B, G, S], the largest weight among the heads of each group."""
        return group_largest(row_weights(call, whole), whole.keys[-1].shape[1])

    def reads(self, layer: int, whole: Whole) -> int:
        """All keys."""
        return key_bytes(whole)


class PreviousQuery(FreeChooser):
    """Every layer scores its keys with the query of the step before, which can be done while other work is going on (FreeKV).

    A KV head whose query has turned too far is scored anew with the query of this step ("correction").

    Args:
        threshold: Least cosine between the two queries, mean over the heads of a KV head, in [-1, 1].

    Attributes:
        corrected: Share of KV heads that were scored anew so far.
    """

    name, shared = "previous_query", False

    def __init__(self, threshold: float = 0.8) -> None:
        if not -1 <= threshold <= 1:
            raise HeadwiseError(f"the threshold of the cosine must lie in [-1, 1]; got {threshold!r}")
        self._threshold = threshold

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """Forget queries."""
        self._queries: dict[int, Tensor] = {}
        self._turned = self._asked = 0

    @property
    def corrected(self) -> float:
        """See the class."""
        return self._turned / max(1, self._asked)

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """[B, G, S]."""
        before, groups = self._queries.get(call.layer), whole.keys[-1].shape[1]
        query = call.query
        if before is not None and before.shape == query.shape:
            cosine = torch.cosine_similarity(query.float(), before.float(), dim=-1).view(len(query), groups, -1).mean(dim=2)
            turned = cosine < self._threshold
            self._turned, self._asked = self._turned + int(turned.sum()), self._asked + turned.numel()
            each = query.shape[1] // groups
            query = torch.where(turned.repeat_interleave(each, dim=1)[..., None, None], query, before)
        return group_largest(row_weights(replace(call, query=query), whole), groups)

    def reads(self, layer: int, whole: Whole) -> int:
        """All keys; they are read once, whichever query is used."""
        return key_bytes(whole)

    def look(self, call: Call, whole: Whole) -> None:
        """Keep the newest query."""
        self._queries[call.layer] = call.query[:, :, -1:]


class Pages(FreeChooser):
    """Every layer bounds the logits of pages of keys by the smallest and largest number of each channel, and reads the most promising pages (Quest).

    Args:
        size: Keys per page.
    """

    name, shared = "pages", False

    def __init__(self, size: int = 16) -> None:
        check_whole(size, 1, "a page must hold at least one key")
        self.page = size

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """Forget bounds."""
        self._bounds: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, now: Pass) -> None:
        """Drop bounds of tokens that were taken back."""
        full = now.before // self.page
        self._bounds = {layer: (low[:, :, :full], high[:, :, :full]) for layer, (low, high) in self._bounds.items()}

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """[B, G, full pages]; the rest of the text is recent."""
        low, high = self._bounds_of(call.layer, whole, call.query.device)
        if not low.shape[2]:
            return None
        query = call.query.float()
        # The larger of q * low and q * high per channel is what the best imaginable key of the page would give.
        bound = grouped_product(query.clamp(min=0), high.transpose(-1, -2)) + grouped_product(
            query.clamp(max=0), low.transpose(-1, -2)
        )
        return group_largest(bound[:, :, 0], low.shape[1])

    def reads(self, layer: int, whole: Whole) -> int:
        """The bounds, two rows per page, as they are held."""
        return sum(bound.numel() * bound.element_size() for bound in self._bounds.get(layer, ()))

    def _bounds_of(self, layer: int, whole: Whole, device: torch.device) -> tuple[Tensor, Tensor]:
        """[B, G, pages, d] each, where the queries are, wherever the keys may be; only pages that are new are read."""
        keys, full = whole.keys[-1], whole.length // self.page
        known = self._bounds.get(layer)
        done = 0 if known is None else known[0].shape[2]
        if done < full:
            new = keys[:, :, done * self.page : full * self.page].float()
            new = new.view(*new.shape[:2], full - done, self.page, new.shape[3])
            low, high = new.amin(dim=3).to(device), new.amax(dim=3).to(device)
            known = (low, high) if known is None else (torch.cat([known[0], low], dim=2), torch.cat([known[1], high], dim=2))
            self._bounds[layer] = known
        return known if known is not None else (keys[:, :, :0].float().to(device), keys[:, :, :0].float().to(device))


class AnchorLayers(FreeChooser):
    """Every n-th layer with full attention reads everything and chooses for the layers behind it.

    Args:
        every: n, at least 2.
    """

    name, shared = "anchor_layers", False

    def __init__(self, every: int = 6) -> None:
        check_whole(every, 2, "anchor layers must be at least every second layer apart")
        self._every = every

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """Fix the anchors."""
        self._anchors = frozenset(layers[:: self._every])
        self._found: Tensor | None = None

    def reads_all(self, layer: int) -> bool:
        """Anchors do."""
        return layer in self._anchors

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """[B, G, S] of the nearest anchor below."""
        return self._found

    def look(self, call: Call, whole: Whole) -> None:
        """What an anchor attends to."""
        if call.layer in self._anchors and call.query.shape[2] == 1:
            self._found = group_largest(row_weights(call, whole), whole.keys[-1].shape[1])


class Summed(FreeChooser):
    """Base of shared choosers that add up attention rows while a pass runs, and use the sum from the next pass on."""

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """Forget sums."""
        self._last: Tensor | None = None
        self._sum: Tensor | None = None

    def begin(self, now: Pass) -> None:
        """What the last pass gave is what the next one uses."""
        self._last, self._sum = self._sum if self._sum is not None else self._last, None

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """[B, 1, n], n = positions of the pass that was looked at."""
        return self._last

    def _add(self, weights: Tensor, factor: float = 1.0) -> None:
        """Add rows [B, n heads, S]."""
        found = weights.sum(dim=1, keepdim=True) * factor
        self._sum = found if self._sum is None else self._sum + found


class RetrievalHeads(Summed):
    """All layers read what a few heads of the model itself attended to at the step before, such as retrieval heads found by `headwise detect`.

    Args:
        heads: A few heads; every one costs its share of a full attention step.
    """

    name = "retrieval_heads"

    def __init__(self, heads: Heads) -> None:
        self._heads = heads

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """Refuse heads of another model, and heads in layers without full attention."""
        super().start(model, layers)
        self._by_layer = in_layers(model, self._heads, layers)
        each = model.heads.shape[1] // model.heads.kv_heads
        self._groups = {layer: len({head // each for head in own}) for layer, own in self._by_layer.items()}

    def reads(self, layer: int, whole: Whole) -> int:
        """The keys of the KV heads of its heads."""
        return key_bytes(whole) * self._groups.get(layer, 0) // whole.keys[-1].shape[1]

    def look(self, call: Call, whole: Whole) -> None:
        """Add the newest rows of the chosen heads."""
        if call.layer in self._by_layer:
            self._add(head_weights(call, whole, self._by_layer[call.layer]))


class RefreshEvery(Summed):
    """Every n-th step reads everything; the steps between read what it attended to, on average over all heads and over retrieval heads.

    Args:
        every: n, at least 2.
        heads: Heads whose mean counts as much as the mean of all heads; None for all heads alone.
    """

    name = "refresh_every"

    def __init__(self, every: int = 8, heads: Heads | None = None) -> None:
        check_whole(every, 2, "a full step must be at least every second step")
        self._every, self._heads = every, heads

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """Begin to count steps."""
        super().start(model, layers)
        self._by_layer = {} if self._heads is None else in_layers(model, self._heads, layers)
        self._all = len(layers) * model.heads.shape[1]
        self._steps, self._full = 0, False

    def begin(self, now: Pass) -> None:
        """Count; a prompt is a full step too."""
        super().begin(now)
        self._full = self._steps % self._every == self._every - 1
        self._steps += 1

    def reads_all(self, layer: int) -> bool:
        """At every n-th step."""
        return self._full

    def look(self, call: Call, whole: Whole) -> None:
        """Add the newest rows of a full step."""
        if call.query.shape[2] > 1:
            self._steps = 0  # counted from the end of the prompt
        elif not self._full:
            return
        weights = row_weights(call, whole)
        self._add(weights, 1 / self._all)
        if own := self._by_layer.get(call.layer):
            self._add(weights[:, own], 1 / sum(map(len, self._by_layer.values())))
