"""Sparse decoding: a step of one new token reads only the positions that a chooser names, within a budget.

The mechanism of SpeContext (Xu et al. 2025, arXiv:2512.00722) with everything replaceable: who chooses (`Chooser`), how often, and where keys and
values live. Passes of several tokens, layers with sliding windows, and steps whose context fits the budget run exactly as they would without.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from headwise.attention.call import Call, KeyProvider, Pass, Whole
from headwise.attention.selected import Counts, Found, Selected
from headwise.attention.transfer import Loader, Move
from headwise.heads.errors import HeadwiseError
from headwise.maths.attend import softmax_rows
from headwise.maths.importance import group_mean
from headwise.maths.rows import Keys, visible_logits
from headwise.maths.select import best_pages, best_places, protected
from headwise.maths.slots import marked, overlap, take_rows
from headwise.models.model import Model

LEAST = -3e38  # a score that is never chosen, except to fill the budget
MARGIN = 0.02  # a chooser that is not this much above chance is not used


class Chooser(Protocol):
    """Says how much each position is wanted by the step that comes.

    Attributes:
        name: What it is called.
        shared: One choice per step for all layers, made at the first of them. False: every layer has its own.
        checked: Its recall is compared with chance before it is relied on; False for controls.
        page: Its scores are for so many positions each, one behind the other.
        reads_text: It must itself read every token, and so cannot join behind a prompt that was read without it.
    """

    name: str
    shared: bool
    checked: bool
    page: int
    reads_text: bool

    def opened(self, model: Model) -> AbstractContextManager[None]:
        """Entered for as long as the block is open: the place for hooks on the model."""

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """A block opens: refuse a model that does not fit, forget everything.

        Args:
            model: That will run.
            layers: Its layers with full attention.
        """

    def begin(self, now: Pass) -> None:
        """A pass begins, before its first layer; passes of several tokens too."""

    def reads_all(self, layer: int) -> bool:
        """Whether a layer attends to everything in this step, as layers that choose for others do."""

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """[B, G or 1, n], larger = rather, for the first n (pages of) positions; those behind are kept as recent ones. None: as at the step before.

        Args:
            call: The attention call of the layer that asks (the first one if `shared`).
            whole: All its keys and values.
        """

    def look(self, call: Call, whole: Whole) -> None:
        """A layer has attended; the place to learn for later steps."""

    def reads(self, layer: int, whole: Whole) -> int:
        """Bytes that choosing reads in a step because of one layer, beside what attention reads; asked where a layer reads less than everything.

        What is read once per step is told at the first layer only.

        Args:
            layer: Number of the layer.
            whole: All its keys and values, batch rows together.
        """


@dataclass(frozen=True)
class SparseOptions:
    """How a step reads.

    Attributes:
        budget: Positions per KV head and step, everything below included.
        sinks: First positions, always read.
        recent: Last positions, always read, the newest token among them.
        slots: Keep what is read in slots beside the cache and move only what changed (elastic loading, sec. 4.3); False: gather every step.
        check: Compare the chooser with chance at the first sparse step.
    """

    budget: int
    sinks: int = 4
    recent: int = 32
    slots: bool = False
    check: bool = True

    def __post_init__(self) -> None:
        for name, least in (("budget", 1), ("sinks", 0), ("recent", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise HeadwiseError(f"{name} must be a whole number from {least} on; got {value!r}")
        if self.budget < self.sinks + self.recent + 1:
            raise HeadwiseError(
                f"a budget of {self.budget} leaves nothing to choose beside {self.sinks} first and {self.recent} last positions; "
                f"use {self.sinks + self.recent + 1} or more"
            )


@dataclass
class Choice:
    """What one layer, or all layers together, read.

    Attributes:
        scores: Of the chooser, None before the first ones.
        positions: [B, G or 1, budget] of the newest step, -1 for nothing.
        moves: Of this step. Layers whose slots held the same share one.
    """

    scores: Tensor | None = None
    positions: Tensor | None = None
    moves: list[Move] = field(default_factory=list)


class SparseDecoding:
    """Step of the pipeline: hands over the chosen keys only. Opened by `headwise.sparse_decode`.

    Args:
        model: That runs.
        chooser: Who chooses.
        options: Budget and the rest.
    """

    def __init__(self, model: Model, chooser: Chooser, options: SparseOptions) -> None:
        self.layers = frozenset(model.heads.full_layers)
        if not self.layers:
            raise HeadwiseError(f"{model.name} has no layer with full attention, so there is nothing to choose")
        self.model, self.chooser, self.options = model, chooser, options
        self.counts = Counts()
        self._loader = Loader()
        chooser.start(model, sorted(self.layers))
        self._forget()

    def _forget(self) -> None:
        self._choices: dict[int, Choice] = {}
        self._loader.forget()
        self._whole: dict[int, Whole] = {}
        self._earlier: dict[int, Whole] = {}  # of the pass before, until later layers have been sent what they need of it
        self._ahead: Choice | None = None
        self._made: set[int] = set()
        self._places: tuple[Tensor, Tensor] | None = None
        self._checking: list[Found] = []
        self._counted = self._reads_less = False
        self._seen = 0  # positions that some layer has held

    @property
    def slot_bytes(self) -> int:
        """Bytes of the keys and values in slots."""
        return self._loader.nbytes

    def begin(self, now: Pass) -> None:
        """A pass begins: what was chosen for the one before is old."""
        self._finish_check()
        if now.before == 0:
            self._forget()
            self.chooser.start(self.model, sorted(self.layers))
        elif now.before < self._seen:  # tokens were taken back: their places will hold others
            self._loader.forget()
            self._choices.clear()
        self._seen = now.before
        self._made.clear()
        self._loader.begin()
        self._earlier, self._whole, self._ahead = self._whole if self._loader.beside else {}, {}, None
        self._places = None
        self._counted = self._reads_less = False
        self.chooser.begin(now)

    def choose_keys(self, call: Call) -> KeyProvider:
        """The chosen keys of one layer, or all of them."""
        if call.layer not in self.layers:
            return call.source
        whole = call.whole
        self._whole[call.layer], self._seen = whole, whole.length
        if call.query.shape[2] > 1 or whole.length <= self.options.budget:
            return self._on_device(whole, call)
        self._count_step()
        if self.counts.note or self.chooser.reads_all(call.layer):
            return self._on_device(whole, call)
        choice = self._choice(call, whole)
        if choice.positions is None:
            return self._on_device(whole, call)
        if self.options.check and self.chooser.checked and self.counts.found is None:
            self._checking.append(quality_of(call, whole, choice.positions, *self._visible(whole)))
            return self._on_device(whole, call)
        return self._selected(call, whole, choice.positions, choice)

    def look(self, call: Call) -> None:
        """Let the chooser see what the layer did."""
        if self._ahead is not None:
            self._send_ahead(call, self._ahead)
        if call.layer in self._whole:
            self.chooser.look(call, self._whole[call.layer])

    def _send_ahead(self, call: Call, choice: Choice) -> None:
        """Send what later layers will read, where copies run beside the computation."""
        self._ahead, positions = None, choice.positions
        _ = call.output  # given to the device first, so that it has something to do meanwhile
        for layer, earlier in sorted(self._earlier.items()):
            if layer > call.layer and positions is not None and not self.chooser.reads_all(layer):
                self._loader.send_ahead(layer, *_single(earlier), positions, choice.moves, self._seen)
        self._earlier = {}

    def _count_step(self) -> None:
        if not self._counted:
            self._counted = True
            self.counts.steps += 1

    @staticmethod
    def _on_device(whole: Whole, call: Call) -> Whole:
        """All keys, brought to where the query is."""
        device = call.query.device
        if whole.keys[-1].device == device:
            return whole
        keys, values = (tuple(segment.to(device, non_blocking=True) for segment in parts) for parts in (whole.keys, whole.values))
        return Whole(keys, values, whole.mask)

    def _visible(self, whole: Whole) -> tuple[Tensor, Tensor]:
        """[B or 1, S] what may be read, and what must be; the same for all layers of a pass."""
        if self._places is None:
            mask, device = whole.visible, whole.keys[-1].device
            everything = torch.ones((1, whole.length), dtype=torch.bool, device=device)
            visible = everything if mask is None else mask[:, 0, -1].to(device)
            self._places = visible, _forced(visible, self.options.sinks, self.options.recent)
        return self._places

    def _choice(self, call: Call, whole: Whole) -> Choice:
        """The choice that holds for a layer in this step, made if need be; without positions before the chooser has said anything."""
        key = -1 if self.chooser.shared else call.layer
        choice = self._choices.setdefault(key, Choice())
        if key in self._made:
            return choice
        scores = self.chooser.scores(call, whole)
        choice.scores = choice.scores if scores is None else scores
        if choice.scores is None:
            return choice
        before, choice.positions = choice.positions, self._positions(choice.scores, whole, call.query.shape[0])
        self._made.add(key)
        if before is not None and before.shape == choice.positions.shape:
            self._count_overlap(before, choice.positions, whole.length)
        choice.moves = []
        return choice

    def _positions(self, scores: Tensor, whole: Whole, batch: int) -> Tensor:
        """[B, G or 1, budget] from scores that may be older than this step."""
        options, (visible, forced) = self.options, self._visible(whole)
        page, scores = self.chooser.page, scores.to(visible.device)
        if page > 1 and -(-options.sinks // page) * page + options.recent <= options.budget and bool(visible.all()):
            return best_pages(scores, page, whole.length, options.budget, options.sinks, options.recent)
        scores = scores.repeat_interleave(page, dim=-1)
        scores = scores[..., : whole.length]
        new = whole.length - scores.shape[-1]
        if new > 0:
            scores = torch.nn.functional.pad(scores, (0, new), value=-torch.inf)
        if new > options.recent:
            forced = _forced(visible, options.sinks, min(new, options.budget - options.sinks))
        visible, forced = (table.expand(batch, -1) for table in (visible, forced))
        scores = scores.float().nan_to_num(nan=LEAST, neginf=LEAST, posinf=-LEAST).expand(batch, -1, -1)
        return best_places(scores, forced, visible, options.budget)

    def _selected(self, call: Call, whole: Whole, positions: Tensor, choice: Choice) -> Selected:
        keys, values = _single(whole)
        moved = positions.numel()
        self.counts.chosen_by += self.chooser.reads(call.layer, whole)
        if self.options.slots:
            slots, moved = self._loader.load(call.layer, keys, values, positions, choice.moves, call.query.device)
            keys, values, positions = slots.keys, slots.values, slots.held
            self._ahead = choice if self.chooser.shared and self._earlier else None
        else:
            keys, values = (take_rows(table, positions.clamp(min=0)) for table in (keys, values))
        self._count_read(whole, moved * keys.shape[0] * keys.shape[1] // (positions.shape[0] * positions.shape[1]))
        device, wide = call.query.device, positions.expand(*keys.shape[:2], -1)
        mask = (wide >= 0).to(device) if bool((positions < 0).any()) else None
        return Selected(keys.to(device, non_blocking=True), values.to(device, non_blocking=True), mask, wide)

    def _count_overlap(self, before: Tensor, now: Tensor, length: int) -> None:
        same = overlap(before, now, length)
        self.counts.kept += float(same.sum())
        self.counts.compared += same.numel()
        self.counts.chance += same.numel() * now.shape[-1] / length

    def _count_read(self, whole: Whole, moved: int) -> None:
        counts, (batch, groups) = self.counts, whole.keys[-1].shape[:2]
        counts.row_bytes = sum(t.shape[-1] * t.element_size() for t in (whole.keys[-1], whole.values[-1]))
        counts.read += batch * groups * self.options.budget
        counts.whole += batch * groups * whole.length
        counts.moved += moved
        if not self._reads_less:
            self._reads_less = True
            counts.sparse_steps += 1

    def _finish_check(self) -> None:
        """Behind the step in which everything was read: rely on the chooser, or say why not."""
        if not self._checking:
            return
        found = Found(*(sum(each) / len(self._checking) for each in zip(*self._checking, strict=True)))
        self._checking = []
        self.counts.found = found
        if max(found.recall, found.mass) < found.chance + MARGIN:
            self.counts.note = (
                f"chooser {self.chooser.name!r} names {found.recall:.0%} of the positions that {self.model.name} attends to most, which hold "
                f"{found.mass:.0%} of its attention, and chance would name {found.chance:.0%}; everything is read instead"
            )
            warnings.warn(self.counts.note, stacklevel=2)


def _forced(visible: Tensor, sinks: int, recent: int) -> Tensor:
    """[B, S] bool: the first and the last visible positions."""
    return protected((visible.cumsum(dim=1) - 1).masked_fill(~visible, -1), sinks, recent)


def _single(whole: Whole) -> tuple[Tensor, Tensor]:
    if len(whole.keys) != 1:
        raise HeadwiseError("sparse decoding does not work over a past that several rows share; give every row its own cache")
    return whole.keys[0], whole.values[0]


def row_weights(call: Call, whole: Whole) -> Tensor:
    """[B, H, S] float32: attention weights of the newest row over all keys; a sink logit takes its share.

    One block: `attention_rows`, made for any number of rows, takes twice as long for a single one.
    """
    mask, device = whole.visible, whole.keys[-1].device
    mask = None if mask is None else mask[:, :, -1:].to(device)
    query, sinks = call.query[:, :, -1:].to(device), None if call.sinks is None else call.sinks.to(device)
    blocks = visible_logits(query, Keys(whole.keys), call.scaling, mask, call.softcap, whole.length)
    logits = [block for _, block in blocks]  # one per segment of keys
    return softmax_rows(logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1), sinks)[:, :, 0]


def quality_of(call: Call, whole: Whole, positions: Tensor, visible: Tensor, forced: Tensor) -> Found:
    """How much of what a layer attends to a choice holds.

    Args:
        call: The attention call of the layer.
        whole: Its keys.
        positions: [B, G or 1, budget], -1 for nothing.
        visible: [B or 1, S].
        forced: [B or 1, S].
    """
    weights = group_mean(row_weights(call, whole), whole.keys[-1].shape[1])
    batch, groups, length = weights.shape
    free = (visible & ~forced).expand(batch, -1)[:, None]
    chosen = marked(positions.expand(batch, groups, -1), length) & free
    count = int(chosen.sum(dim=-1).min())
    if not count:
        return Found(0.0, 0.0, 0.0)
    best = weights.masked_fill(~free, -1).topk(count, dim=-1).indices
    own = weights.masked_fill(~free, 0)
    mass = own.masked_fill(~chosen, 0).sum(dim=-1) / own.sum(dim=-1).clamp(min=1e-12)
    return Found(float(chosen.gather(-1, best).float().mean()), float(mass.mean()), float((count / free.sum(dim=-1)).mean()))
