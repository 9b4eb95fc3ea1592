"""Passages that were computed once, ready for any number of queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadSet
from headwise.maths.columns import pool_passages
from headwise.prompts.passages import Passage, PassageComposer
from headwise.runtime.passages import PassageCache, Scoring

Text = str | Passage
Scores = NDArray[np.float64]


class PassageIndex:
    """Keys and values of a set of passages, and what calibration subtracts.

    Attributes:
        passages: What was given, in its order.
        tokens: Of all passages with what opens the prompt.
    """

    def __init__(
        self,
        model: Any,
        composer: PassageComposer,
        heads: HeadSet,
        passages: Sequence[Text],
        scoring: Scoring,
        calibrate: bool = True,
        backwards: bool = False,
    ) -> None:
        """Read the passages, in layers up to the deepest head.

        Args:
            model: A transformers model.
            composer: Words around passages and query.
            heads: Whose attention counts.
            passages: Texts, or passages with a title.
            scoring: How attention becomes one value per passage.
            calibrate: Subtract what a query without content gets.
            backwards: The last passage comes first in the prompt, so that the first one stands next to the query.

        Raises:
            PromptError: The passages do not fit, or one of them is empty.
        """
        self.passages, self._composer, self._scoring = tuple(passages), composer, scoring
        composer.check([as_passage(text) for text in passages])
        self._order = list(range(len(passages)))[:: -1 if backwards else 1]
        prompt = composer.passages([as_passage(passages[i]) for i in self._order])
        self.tokens, self._ids = len(prompt.ids), prompt.ids
        self._spans = [(s.start, s.stop) for s in (prompt.span(f"passage/{i}") for i in range(1, len(passages) + 1))]
        self._cache = PassageCache(model, prompt.ids, heads)
        self._calibrate = calibrate
        self._null: Tensor | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[passage]: tokens of each."""
        out = np.empty(len(self._order), dtype=np.int64)
        out[self._order] = [stop - start for start, stop in self._spans]
        return out

    def scores(self, queries: Sequence[str]) -> Scores:
        """[query, passage], summed over heads; higher is more relevant. Not comparable between queries or sets of passages."""
        if not queries:
            return np.empty((0, len(self.passages)))
        columns, scoring = self._calibrated(queries), self._scoring
        return self._in_given_order(pool_passages(columns, self._spans, scoring.trim, scoring.normalize, scoring.strict))

    def head_masses(self, query: str) -> Scores:
        """[head, passage]: mean attention of the query's rows to each passage, head by head in the order of layer and head; not calibrated."""
        suffixes = self._scoring.suffixes(self._composer, [query])
        by_layer = self._cache.columns(suffixes, lambda columns: pool_passages(columns, self._spans))
        return self._in_given_order(torch.cat([by_layer[layer][0] for layer in sorted(by_layer)]))

    def token_values(self, query: str) -> list[tuple[tuple[int, ...], Scores]]:
        """Per passage its token ids and the value of each, which `scores` pools: attention summed over heads, calibrated if the index is."""
        values = self._calibrated([query])[0].double().cpu().numpy()
        found = [(self._ids[start:stop], values[start:stop]) for start, stop in self._spans]
        return [found[self._order.index(i)] for i in range(len(found))]

    def rank(self, query: str, top_k: int | None = None, return_documents: bool = False) -> list[dict[str, Any]]:
        """Passages from the most to the least relevant.

        Args:
            query: Its text.
            top_k: How many, at least 1; None: all.
            return_documents: Add the passages' texts.

        Returns:
            As `ranked`.

        Raises:
            PromptError: Passages and query need more positions than the model has.
            HeadwiseError: A `top_k` below 1.
        """
        return ranked(self.scores([query])[0], self.passages, top_k, return_documents)

    def _calibrated(self, queries: Sequence[str]) -> Tensor:
        """`_columns`, minus those of the null query if the index calibrates. The null query shares the first queries' pass."""
        if not self._calibrate:
            return self._columns(queries)
        if self._null is None:
            columns = self._columns([self._scoring.null_query, *queries])
            self._null = columns[:1]
            return columns[1:] - self._null
        return self._columns(queries) - self._null

    def _columns(self, queries: Sequence[str]) -> Tensor:
        """[query, T]: attention to each token, summed over heads."""
        by_layer = self._cache.columns(self._scoring.suffixes(self._composer, queries), lambda columns: columns.sum(dim=1))
        return torch.stack([by_layer[layer] for layer in sorted(by_layer)]).sum(dim=0)

    def _in_given_order(self, values: Tensor) -> Scores:
        out = np.empty(values.shape, dtype=np.float64)
        out[:, self._order] = values.double().cpu().numpy()
        return out


def as_passage(text: Text) -> Passage:
    """A plain text as a passage without a title."""
    return Passage(text) if isinstance(text, str) else text


def ranked(scores: Scores, passages: Sequence[Text], top_k: int | None, with_text: bool) -> list[dict[str, Any]]:
    """Passages in the order of their scores, as cross-encoders of sentence-transformers give them.

    Args:
        scores: [passage], higher is better.
        passages: As many.
        top_k: How many, at least 1; None: all.
        with_text: Add the passages' texts, without titles.

    Returns:
        Best first, of equal ones the earlier first: `corpus_id` (its place in `passages`), `score` and, if wanted, `text`.

    Raises:
        HeadwiseError: A `top_k` below 1.
    """
    if top_k is not None and top_k < 1:
        raise HeadwiseError(f"top_k must be at least 1; got {top_k}")
    order = np.argsort(-scores, kind="stable")[:top_k]
    rows = [{"corpus_id": int(i), "score": float(scores[i])} for i in order]
    return [row | {"text": as_passage(passages[int(row["corpus_id"])]).text} for row in rows] if with_text else rows
