"""One attention call: where its keys and values come from, and the stages at which steps take part in it.

Every layer's attention is a pipeline: *choose keys, edit query and keys, attend, edit the output, look*. A step says by its methods in which of
these it takes part; `Plan.running(step)` lets it do so inside a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.maths.attend import attend

if TYPE_CHECKING:
    from headwise.attention.plan import Plan


class KeyPart(NamedTuple):
    """Keys and values that the query heads of some KV heads attend to.

    Attributes:
        heads: [n] int64, which KV heads; None for all in order.
        keys, values: Segments [B or 1, n, S_i, d] along the sequence; S positions in all.
        mask: Bool [B or 1, 1 or n, R, S] for the newest R rows, or None where these are the last R keys and look back at everything.
        positions: [B or 1, 1 or n, S] int32, position in the text of each key, -1 for none; None where key i stands at `first` + i.
        first: Position of the first key; counts only where `positions` is None.
    """

    heads: Tensor | None
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None = None
    positions: Tensor | None = None
    first: int = 0

    @property
    def length(self) -> int:
        """Positions S in all segments."""
        return sum(segment.shape[2] for segment in self.keys)


class KeyProvider(Protocol):
    """Keys and values of one layer in a form of their own (whole, compressed, sparse, on another device)."""

    def attend(self, query: Tensor, *, scaling: float, softcap: float | None, sinks: Tensor | None) -> Tensor:
        """Softmax attention over what is held.

        Args:
            query: [B, H, T, d] after rotation, the newest T positions.
            scaling: Factor of query times key.
            softcap: See `row_statistics`.
            sinks: [H], see `row_statistics`.

        Returns:
            [B, T, H, d].
        """

    def parts(self, rows: int, stop: int) -> Sequence[KeyPart]:
        """What the newest query rows attend to.

        Args:
            rows: How many of the newest query rows.
            stop: Position behind the last of them.

        Returns:
            Every KV head once.

        Raises:
            HeadwiseError: What is held cannot be named by position.
        """


@dataclass(frozen=True)
class Whole:
    """All keys and values of a layer that its cache holds.

    Attributes:
        keys, values: Segments [B or 1, G, S_i, d]; a first one with batch 1 is a past that all rows share. The T queries are the last positions.
        mask: [B or 1, 1, T, S] bool, or float (added), or None for causal.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None

    @property
    def length(self) -> int:
        """Positions in all segments."""
        return sum(segment.shape[2] for segment in self.keys)

    @property
    def visible(self) -> Tensor | None:
        """The mask as bool. Others come from callers who pass a 4D mask of their own; its finite entries are visible."""
        if self.mask is None or self.mask.dtype == torch.bool:
            return self.mask
        return self.mask > torch.finfo(self.mask.dtype).min / 2

    def attend(self, query: Tensor, *, scaling: float, softcap: float | None, sinks: Tensor | None) -> Tensor:
        """Attention of the newest rows; `query` may hold fewer than the mask. See `KeyProvider.attend`."""
        mask = None if self.mask is None else self.mask[:, :, -query.shape[2] :]
        past = (self.keys[0], self.values[0]) if len(self.keys) == 2 else None
        return attend(query, self.keys[-1], self.values[-1], scaling=scaling, mask=mask, past=past, softcap=softcap, sinks=sinks)

    def parts(self, rows: int, stop: int) -> Sequence[KeyPart]:
        """One part, see `KeyProvider.parts`.

        Caches of transformers drop what a sliding window no longer sees, so the first key need not stand at 0.
        """
        mask = self.visible
        mask = None if mask is None else mask[:, :, -rows:]
        return (KeyPart(None, self.keys, self.values, mask, first=max(0, stop - self.length)),)


@dataclass(frozen=True)
class Pass:
    """One pass of the whole model, as it begins.

    Attributes:
        before: Positions in front of it, in its cache.
        inputs: Token ids [B, T] or embeddings [B, T, width]; None if the caller hides them.
        mask: The attention mask as it was given.
        has_cache: The caller gave a cache, be it an empty one.
        ends_prompt: Whether a prompt ends with this pass; None where nobody knows.
    """

    before: int
    inputs: Tensor | None
    mask: Any
    has_cache: bool
    ends_prompt: bool | None


@dataclass
class Call:
    """One attention call on its way through the pipeline.

    Attributes:
        plan: The plan of its model.
        layer: Decoder layer.
        query: [B, H, T, d] after position encoding.
        source: Where its keys and values come from.
        scaling: Factor of query times key.
        softcap, sinks: As in `row_statistics`.
    """

    plan: Plan
    layer: int
    query: Tensor
    source: KeyProvider
    scaling: float
    softcap: float | None
    sinks: Tensor | None

    @cached_property
    def output(self) -> Tensor:
        """[B, T, H, d] with all edits. Made when it is first asked for: a look that stops the pass then costs no attention."""
        for step in self.plan.attending:
            out = step.attend(self)
            if out is not None:
                break
        else:
            out = self.source.attend(self.query, scaling=self.scaling, softcap=self.softcap, sinks=self.sinks)
        for edit in self.plan.outputs:
            out = edit.edit_output(self, out)
        return out

    @cached_property
    def start(self) -> int:
        """Position of the first query row in the text (padding counts)."""
        return self.plan.start(self.layer, self.query.shape[2], self.source)

    @property
    def whole(self) -> Whole:
        """The source, for steps that need all keys. Raises `HeadwiseError` over a compressed cache."""
        if isinstance(self.source, Whole):
            return self.source
        raise HeadwiseError(
            f"layer {self.layer}: this needs all keys, but a compressed cache holds only some of them; run it over a full cache"
        )

    @property
    def keys(self) -> tuple[Tensor, ...]:
        """Segments [B or 1, G, S_i, d] of all keys; see `whole`."""
        return self.whole.keys

    @property
    def values(self) -> tuple[Tensor, ...]:
        """Segments [B or 1, G, S_i, d] of all values; see `whole`."""
        return self.whole.values

    @property
    def mask(self) -> Tensor | None:
        """Mask over all keys, None for causal; see `whole`."""
        return self.whole.mask

    @property
    def visible(self) -> Tensor | None:
        """The mask as bool; see `whole`."""
        return self.whole.visible


@runtime_checkable
class ChoosesKeys(Protocol):
    """First stage: over which keys a layer attends."""

    def choose_keys(self, call: Call) -> KeyProvider:
        """The source that takes the place of `call.source`."""


@runtime_checkable
class EditsInputs(Protocol):
    """Second stage: changes query, keys or values."""

    def edit_inputs(self, call: Call) -> tuple[Tensor, KeyProvider]:
        """The query and the source to go on with."""


@runtime_checkable
class Attends(Protocol):
    """Third stage: attends in its own way."""

    def attend(self, call: Call) -> Tensor | None:
        """The output [B, T, H, d], or None to leave the call to others."""


@runtime_checkable
class EditsOutput(Protocol):
    """Fourth stage: changes what heads give."""

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """Change what heads give.

        Args:
            call: The attention call of one layer.
            output: [B, T, H, d], what the steps before have made of it. Return a new tensor if it changes.

        Returns:
            The output to go on with, of the same shape and dtype.
        """


@runtime_checkable
class Looks(Protocol):
    """Last stage: sees the call and changes nothing."""

    def look(self, call: Call) -> None:
        """One layer of one pass. `call.output` is what the model goes on with."""


@runtime_checkable
class Begins(Protocol):
    """A step that must know each pass before its first layer."""

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins."""


Step = ChoosesKeys | EditsInputs | Attends | EditsOutput | Looks | Begins
