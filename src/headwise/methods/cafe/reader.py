"""Passages read once in all layers, then looked at by heads and answered from, with or without steering, any number of times.

Steering touches rows behind the passages only, so that one pass over them serves the question that chooses and every answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from headwise.attention.steer import steer
from headwise.caches.shared import full_cache, shared_past
from headwise.heads.types import HeadSet
from headwise.maths.columns import pool_passages
from headwise.models.model import as_model
from headwise.prompts.passages import PassageComposer
from headwise.runtime.answer import decode_one
from headwise.runtime.passage_index import Text, as_passage
from headwise.runtime.passages import CHUNK, Scoring, check_positions, suffix_columns
from headwise.runtime.runner import prefill


class Boost(NamedTuple):
    """Steering towards passages; `rows` and `bias_position` as in `steer`.

    Attributes:
        passages: Indices from 0, in the order of the prompt.
        delta: Bias in natural-log units; 0 steers not at all.
    """

    passages: tuple[int, ...]
    delta: float
    rows: str = "question"
    bias_position: str = "post_scale"


class PassageReader:
    """Keys and values of passages in every layer.

    Attributes:
        spans: Positions [start, stop) of each passage in the prompt.
        lengths: [P], tokens of each passage.
        ids: The prompt up to the last passage.
        tokens: Number of `ids`.
    """

    def __init__(self, model: Any, composer: PassageComposer, passages: Sequence[Text]) -> None:
        """Read the passages, in the order given.

        Raises:
            PromptError: A passage is empty, there are none, or they leave no position for a question.
        """
        prompt = composer.passages([as_passage(passage) for passage in passages])
        self.spans = [(s.start, s.stop) for s in (prompt.span(f"passage/{i}") for i in range(1, len(passages) + 1))]
        self.lengths = np.array([stop - start for start, stop in self.spans])
        self.ids, self.tokens = prompt.ids, len(prompt.ids)
        self._model, self._composer, self._positions = model, composer, as_model(model).positions
        check_positions(self._positions, self.tokens + 1)
        self._cache = full_cache(model)
        for start in range(0, self.tokens, CHUNK):
            prefill(model, self._cache, self.ids[start : start + CHUNK])

    def head_masses(self, query: str, heads: HeadSet, scoring: Scoring) -> NDArray[np.float64]:
        """Mean attention of the query's rows to each passage (alpha in eq. 1, summed over the passage's tokens).

        Args:
            query: The question.
            heads: Whose attention counts; H of them.
            scoring: Decides which rows are the query's.

        Returns:
            [H, P], heads in the order of layer and head.
        """
        suffix = scoring.suffixes(self._composer, [query])[0]
        check_positions(self._positions, self.tokens + len(suffix.ids))
        pool = lambda columns: pool_passages(columns, self.spans)  # noqa: E731
        by_layer = suffix_columns(self._model, self._cache, self.tokens, heads, [suffix], pool)
        masses = torch.cat([by_layer[layer][0] for layer in sorted(by_layer)])
        return np.asarray(masses.double().cpu().numpy())

    @contextmanager
    def asking(self, query: str, boost: Boost | None = None) -> Iterator[tuple[tuple[int, ...], DynamicCache]]:
        """Inside the block passes continue the passages.

        Args:
            query: The question.
            boost: Steer towards these passages from the question, which is all that stands behind the passages in the prompt.

        Yields:
            The ids of the whole prompt, and a cache that holds the passages; the reader's own cache stays as it is.
        """
        ids = (*self.ids, *self._composer.query(query).ids)
        check_positions(self._positions, len(ids))
        with self._steered(boost, len(ids)), shared_past(self._model, self._cache, 1) as cache:
            yield ids, cache

    def answer(self, query: str, stop: Collection[int], limit: int, boost: Boost | None = None) -> tuple[int, ...]:
        """Greedy ids, the stop token included if one came; at most `limit`. `boost` is that of `asking`."""
        with self.asking(query, boost) as (ids, cache):
            return decode_one(self._model, cache, ids, stop, limit)

    def _steered(self, boost: Boost | None, length: int) -> Any:
        if boost is None or not boost.passages or not boost.delta:
            return nullcontext()
        spans = [self.spans[i] for i in boost.passages]
        question = None if boost.rows == "all" else (self.tokens, length)
        return steer(self._model, None, spans, boost.delta, boost.rows, question, boost.bias_position)
