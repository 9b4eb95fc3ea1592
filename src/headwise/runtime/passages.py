"""Passages computed once, then asked about any number of times: what a set of passages and a query's attention to it share.

The passages' keys and values do not depend on the query, which stands behind them. So they are computed once, up to the deepest layer
that is looked at, and every query is a short pass over its own tokens; several queries are rows of one batch over the shared past.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headwise.attention.columns import Reduce, column_sums
from headwise.attention.depth import run_to_layer
from headwise.caches.shared import full_cache, shared_past
from headwise.heads.errors import HeadwiseError, TooLongError
from headwise.heads.types import HeadId, HeadSet
from headwise.maths.columns import NORMALIZE
from headwise.models.forward import set_length, table_of, token_tensor
from headwise.models.model import Model, as_model, device_of
from headwise.prompts.passages import NULL_QUERY, PassageComposer
from headwise.prompts.prompt import Prompt, Span
from headwise.runtime.options import SPANS

CHUNK = 4096  # tokens of passages per pass
BATCH_TOKENS = 2048  # tokens of queries per pass


class Suffix(NamedTuple):
    """What stands behind the passages, and which of its rows count.

    Attributes:
        ids: Tokens from behind the last passage to the end of the prompt.
        rows: Positions in `ids` of the query rows whose attention is averaged.
    """

    ids: tuple[int, ...]
    rows: Span


@dataclass(frozen=True)
class Scoring:
    """How the attention of a query's rows becomes one value per passage (QRHead, Zhang et al. 2025, arXiv:2506.09944, sec. 3).

    Attributes:
        span: Rows that are averaged: everything behind the passages (`official`, as in the released code), the `query`'s own words; or one row
            alone: the `last` token of the prompt, or the last token of the query's words (`query_last`).
        trim: See `pool_passages`; it acts on calibrated values only.
        normalize: See `pool_passages`.
        strict: See `pool_passages`.
        null_query: A query without content, whose attention calibration subtracts.

    Raises:
        HeadwiseError: An unknown span or way to normalize, or a trim that is not above 0.
    """

    span: str = "official"
    trim: float | None = None
    normalize: str = "sum"
    strict: bool = False
    null_query: str = NULL_QUERY

    def __post_init__(self) -> None:
        for name, allowed in (("span", SPANS), ("normalize", NORMALIZE)):
            if getattr(self, name) not in allowed:
                raise HeadwiseError(f"unknown {name} {getattr(self, name)!r}; use {', '.join(allowed)}")
        if self.trim is not None and self.trim <= 0:
            raise HeadwiseError(f"trim must be above 0 standard deviations; got {self.trim:g}")

    def suffixes(self, composer: PassageComposer, queries: Iterable[str]) -> list[Suffix]:
        """What stands behind the passages for each query, with the rows that count.

        Args:
            composer: The one that also made the passages' part of the prompt.
            queries: Texts.

        Raises:
            PromptError: A query that cannot be used, such as an empty one.
        """
        prompts = [composer.query(query) for query in queries]
        return [Suffix(prompt.ids, self._rows(prompt)) for prompt in prompts]

    def _rows(self, prompt: Prompt) -> Span:
        """The rows that count: `official` ends with the prompt, so its last row is the prompt's."""
        if self.span in ("official", "query"):
            return prompt.span(self.span)
        stop = prompt.span("official" if self.span == "last" else "query").stop
        return Span(stop - 1, stop)


# The released procedure: everything behind the passages, tokens at or below mean - 2 standard deviations left out.
OFFICIAL = Scoring(trim=2.0, strict=True)


class PassageCache:
    """Keys and values of a text up to one layer.

    Args:
        hf: A transformers model.
        ids: The text, [T]. It is read at once, `CHUNK` tokens a pass.
        heads: Whose attention is wanted; None: all.

    Attributes:
        model: As given.
        length: T.
        heads: As given.
        deepest: The last layer with a wanted head; layers above it are never computed.

    Raises:
        HeadwiseError: Heads of another model.
        PromptError: The text leaves no position for a query.
    """

    def __init__(self, hf: Any, ids: Sequence[int], heads: HeadSet | None) -> None:
        model = as_model(hf)
        if heads is not None:
            model.check(heads)
        self.model, self.length, self.heads = hf, len(ids), heads
        self.deepest = deepest_layer(hf, heads)
        self._positions = model.positions
        check_positions(self._positions, self.length + 1)
        self._ids = tuple(ids)
        self._caches: dict[int | None, Any] = {}
        self._past(self.length + 1)

    def _past(self, tokens: int) -> Any:
        """The text's cache, for a whole text of `tokens` tokens; made anew where that length asks for another rotary table."""
        table = table_of(self.model, tokens)
        if table not in self._caches:
            cache = full_cache(self.model)
            set_length(cache, tokens)
            for start in range(0, self.length, CHUNK):
                run_to_layer(self.model, self.deepest, token_tensor(self.model, self._ids[start : start + CHUNK]), cache)
            self._caches = {table: cache}
        return self._caches[table]

    def columns(self, suffixes: Sequence[Suffix], reduce: Reduce = lambda x: x) -> dict[int, Tensor]:
        """Mean attention of each suffix's rows to every position of the text.

        Args:
            suffixes: At least one; each is read for itself, none sees another.
            reduce: Applied to a layer's [batch, heads, T] at once. A batch is as many suffixes as fit into `BATCH_TOKENS`, but at least two if
                there are two.

        Returns:
            Layer -> `reduce` of [suffixes, wanted heads of the layer, T] float32.

        Raises:
            PromptError: Text and suffix need more positions than the model has.
        """
        longest = max(len(suffix.ids) for suffix in suffixes)
        check_positions(self._positions, self.length + longest)
        size = max(2, BATCH_TOKENS // longest)
        by_table: dict[int | None, list[int]] = {}
        for i, suffix in enumerate(suffixes):
            by_table.setdefault(table_of(self.model, self.length + len(suffix.ids)), []).append(i)
        parts = []
        for places in by_table.values():
            past = self._past(self.length + max(len(suffixes[i].ids) for i in places))
            for start in range(0, len(places), size):
                batch = [suffixes[i] for i in places[start : start + size]]
                own = reduce if len(by_table) == 1 else _whole
                parts.append(suffix_columns(self.model, past, self.length, self.heads, batch, own))
        found = {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
        if len(by_table) == 1:
            return found
        back = [[i for places in by_table.values() for i in places].index(i) for i in range(len(suffixes))]
        found = {layer: columns[back] for layer, columns in found.items()}
        return {
            layer: torch.cat([reduce(columns[i : i + size]) for i in range(0, len(back), size)]) for layer, columns in found.items()
        }


def _whole(columns: Tensor) -> Tensor:
    return columns


def suffix_columns(
    model: Any, past: Any, length: int, heads: HeadSet | None, suffixes: Sequence[Suffix], reduce: Reduce
) -> dict[int, Tensor]:
    """`PassageCache.columns` of one batch over any cache of the text.

    Args:
        model: A transformers model.
        past: One row that holds the text's tokens in every wanted layer; it is not changed.
        length: Tokens of the text, T.
        heads: Whose attention is wanted; None: all.
        suffixes: The rows of the batch.
        reduce: Applied to a layer's [suffixes, heads, T].

    Returns:
        Layer -> `reduce` of [suffixes, wanted heads of the layer, T] float32.
    """
    deepest = deepest_layer(model, heads)
    width = max(len(suffix.ids) for suffix in suffixes)
    padded = [[*s.ids, *[s.ids[-1]] * (width - len(s.ids))] for s in suffixes]  # nothing looks at the padding behind
    weights = torch.zeros(len(suffixes), width)
    for row, suffix in enumerate(suffixes):
        weights[row, suffix.rows.start : suffix.rows.stop] = 1 / suffix.rows.length
    with shared_past(model, past, len(suffixes)) as cache, column_sums(model, heads, length, weights, reduce) as seen:
        ids = torch.tensor(padded).to(device_of(model))
        run_to_layer(model, deepest, ids, cache)
        return seen.by_layer


def deepest_layer(model: Any, heads: HeadSet | None) -> int:
    """The last layer with a wanted head, beyond which nothing need be computed.

    Args:
        model: A `Model`, or a transformers model.
        heads: At least one; None: all heads of attention layers.
    """
    return max(as_model(model).modules) if heads is None else max(head.layer for head in heads)


def check_positions(positions: int | None, tokens: int) -> None:
    """Raise `PromptError` if passages and query need more tokens than the model has positions.

    Args:
        positions: Of the model; None: no limit.
        tokens: Of passages and query together.
    """
    if positions is not None and tokens > positions:
        raise TooLongError(
            f"passages and query need {tokens} tokens, but the model has {positions} positions; use fewer passages at a time"
        )


def scorable_heads(model: Model) -> HeadSet:
    """Heads of layers that see the whole text. Raises `HeadwiseError` if there are none."""
    heads = [HeadId(layer, head) for layer in model.heads.full_layers for head in range(model.heads.shape[1])]
    if not heads:
        raise HeadwiseError(f"all layers of {model.name} have a sliding window, so no head sees far passages")
    return HeadSet(tuple(heads), model.heads.shape, "all heads that see the whole text")
