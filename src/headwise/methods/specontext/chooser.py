"""The distilled chooser: a draft head names positions for all layers before the model runs (SpeContext, Xu et al. 2025, arXiv:2512.00722)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from headwise.attention.call import Call, Pass, Whole
from headwise.attention.taps import tapped
from headwise.caches.chooser_parts import check_whole, token_order
from headwise.caches.choosers import FreeChooser
from headwise.caches.roomy import RoomyLayer
from headwise.heads.errors import HeadwiseError
from headwise.maths.attend import softmax_rows
from headwise.maths.importance import group_largest
from headwise.maths.rotation import frequencies, rotated, yarn
from headwise.maths.rows import grouped_product
from headwise.models.draft_head import DraftHead, read_draft_head
from headwise.models.eagle import read_eagle
from headwise.models.model import Model, device_of

LEVELS = ("head", "batch")
KEPT = 256  # newest features that are kept, so that so many tokens can be taken back


class Distilled(FreeChooser):
    """A draft head, distilled from the model or taken from an EAGLE-3 draft, attends to the text; all layers read what it attends to.

    Args:
        file: A `DraftHead`, the file of one that `headwise train chooser` wrote, or the folder of a released EAGLE-3 draft.
        level: `head`: a choice per KV head, by the largest weight of its query heads; head h of every layer uses choice h. `batch`: one choice for
            all, by the largest weight of any head ("batch" as the paper says it; rows of a batch always choose for themselves).
        dilate: So many positions behind a chosen one are wanted as much as it is: an embedding alone cannot see what came in front.
        stretch: Stretch the rotary positions (YaRN) for texts longer than those of training.

    Raises:
        HeadwiseError: A file that holds no draft head, or options that do not exist.
    """

    name, reads_text = "distilled", True

    def __init__(self, file: DraftHead | str | Path, level: str = "head", dilate: int = 0, stretch: bool = True) -> None:
        if level not in LEVELS:
            raise HeadwiseError(f"unknown level {level!r}; use {' or '.join(LEVELS)}")
        check_whole(dilate, 0, "dilate must be a whole number from 0 on")
        if not isinstance(file, DraftHead | str | Path):
            raise HeadwiseError(f"a distilled chooser is made from a draft head, a file or a folder; got {file!r}")
        self._folder = None if isinstance(file, DraftHead) or not Path(file).is_dir() else Path(file)
        if self._folder is None:
            self.head = file if isinstance(file, DraftHead) else read_draft_head(file)
        self._level, self._dilate, self._stretch = level, dilate, stretch
        self._taps: dict[int, Tensor] = {}

    @contextmanager
    def opened(self, model: Model) -> Iterator[None]:
        """Listen to the hidden states that the draft head reads."""
        try:
            with tapped(model, sorted(set(self.head.shape.taps))) as self._taps:
                yield
        finally:
            self._taps = {}

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """Refuse a model that the draft head was not made for; forget the text."""
        if self._folder is not None:
            self.head, self._folder = read_eagle(self._folder, model), None
        self.head.check(model)
        self._first = min(layers)
        self._model, device = model, device_of(model.hf)
        self._base = frequencies(self.head.shape.head_dim, self.head.shape.theta)
        self.head.to(device, torch.float32)  # a head that somebody made in another dtype too
        self._layer, self._factor = RoomyLayer(), 1.0
        self._turning, self._scale = self._base.to(device), 1.0
        self._features: Tensor | None = None  # [B, up to KEPT, width], fused, of the newest positions
        self._unread: tuple[Tensor, Tensor] | None = (
            None  # embeddings of a pass whose features are not known yet, and what stands in front
        )
        self._places = torch.zeros((1, 0), dtype=torch.int64)  # [B or 1, S] of all positions, without padding
        self._query: Tensor | None = None
        self._taps.clear()

    @torch.no_grad()
    def begin(self, now: Pass) -> None:
        """Read the tokens of a pass: at once if it is a single one, else when its hidden states are known."""
        if now.inputs is None:
            raise HeadwiseError("a distilled chooser must see the tokens; give input_ids or inputs_embeds")
        self._finish()
        self._take_back(now.before)
        given = now.inputs
        embeddings: Tensor = given if given.is_floating_point() else self._model.hf.get_input_embeddings()(given)
        embeddings = embeddings.detach().to(self._turning.device).float()
        earlier, self._places = (table.to(embeddings.device) for table in token_order(now, embeddings.shape[1]))
        self._query = None
        if given.shape[1] > 1 and self.head.shape.taps:
            self._unread = embeddings, earlier
            return
        inputs = self.head.inputs(embeddings, self._before(embeddings, embeddings[:, :0], earlier))
        self._add_keys(inputs)
        if given.shape[1] == 1:
            self._query = rotated(self.head.queries(inputs), self._places[:, None, -1:], self._turning, self._scale)

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """[B, G, S], or [B, 1, S] for `batch`: the largest weight among the query heads of a KV head."""
        keys = self._layer.values  # rotated; its `keys` are those before rotation
        if self._query is None or keys is None or keys.shape[2] != whole.length:
            return None
        logits = grouped_product(self._query * self.head.shape.head_dim**-0.5, keys.transpose(-1, -2))
        if whole.visible is not None:
            logits = logits.masked_fill(~whole.visible[:, :, -1:].to(logits.device), -torch.inf)
        weights = softmax_rows(logits, None)[:, :, 0]
        if self._level == "batch":
            wanted = weights.amax(dim=1, keepdim=True)
        else:
            own, theirs = self.head.shape.kv_heads, whole.keys[-1].shape[1]
            wanted = group_largest(weights, own)
            if own != theirs:
                wanted = wanted[:, torch.arange(theirs) * own // theirs]
        return _dilated(wanted, self._dilate)

    def reads(self, layer: int, whole: Whole) -> int:
        """Its keys and its weights, once per step."""
        if layer != self._first:
            return 0
        keys = self._layer.values
        held = 0 if keys is None else keys.numel() * keys.element_size()
        return held + sum(weight.numel() * weight.element_size() for weight in self.head.parameters())

    def _finish(self) -> None:
        """What the pass before has left: its features, and the keys that waited for them."""
        taps = self.head.shape.taps
        if not taps or not all(layer in self._taps for layer in taps):
            return
        device = self._turning.device
        fused = self.head.fused(torch.cat([self._taps[layer].to(device).float() for layer in taps], dim=-1))
        if self._unread is not None:
            embeddings, earlier = self._unread
            if fused.shape[1] == embeddings.shape[1]:  # else the pass was broken off
                self._add_keys(self.head.inputs(embeddings, self._before(embeddings, fused[:, :-1], earlier)))
        self._unread = None
        self._features = fused if self._features is None else torch.cat([self._features, fused], dim=1)
        self._features = self._features[:, -KEPT:]
        self._taps.clear()

    def _before(self, embeddings: Tensor, fused: Tensor, earlier: Tensor) -> Tensor | None:
        """[B, T, width]: features of the token in front of each; zeros where a text begins, and where they are known no more."""
        if not self.head.shape.taps:
            return None
        known = fused if self._features is None else torch.cat([self._features, fused], dim=1)
        if not known.shape[1]:
            return torch.zeros_like(embeddings)
        length = self._layer.get_seq_length() if self._layer.is_initialized else 0
        index = (earlier - (length + embeddings.shape[1] - 1 - known.shape[1])).expand(len(embeddings), -1)[..., None]
        return known.gather(1, index.clamp(min=0).expand_as(embeddings)).masked_fill((index < 0) | (earlier < 0)[..., None], 0)

    def _take_back(self, before: int) -> None:
        """Forget tokens behind `before`. Raises `HeadwiseError` if the text in front was read without the chooser."""
        length = self._layer.get_seq_length() if self._layer.is_initialized else 0
        if before > length:
            raise HeadwiseError(
                f"the distilled chooser has read {length} of the {before} tokens in front; let it read the whole text"
            )
        back = length - before
        if back:
            self._layer.crop(-back)
            if self._features is not None:
                self._features = self._features[:, : max(0, self._features.shape[1] - back)]

    def _add_keys(self, inputs: Tensor) -> None:
        raw, first = self.head.keys(inputs), self._layer.get_seq_length() if self._layer.is_initialized else 0
        length = first + raw.shape[2]
        if self._stretch and length > self._factor * self.head.shape.length:
            self._lengthen(length)
        self._layer.update(raw, rotated(raw, self._places[:, None, first:length], self._turning, self._scale))

    def _lengthen(self, length: int) -> None:
        """Stretch positions by the next power of two that is enough, those of earlier keys too."""
        while length > self._factor * self.head.shape.length:
            self._factor *= 2
        shape = self.head.shape
        turning, self._scale = yarn(self._base, shape.theta, shape.length, self._factor)
        self._turning = turning.to(self._turning.device)
        raw, turned = self._layer.keys, self._layer.values
        if raw is not None and turned is not None:
            turned.copy_(rotated(raw, self._places[:, None, : raw.shape[2]], self._turning, self._scale))


def _dilated(scores: Tensor, places: int) -> Tensor:
    """Each position takes the largest score of itself and of so many in front of it."""
    found = scores
    for back in range(1, places + 1):
        found = torch.maximum(found, torch.nn.functional.pad(scores, (back, 0))[..., : scores.shape[-1]])
    return found
