"""Retrieval measures of a run, with intervals over queries (ir-measures, an extra), a BM25 first stage (bm25s, an extra), ranks of gold passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError, MissingExtraError
from headwise.stats.paired import bootstrap_mean

MEASURES = ("nDCG@10", "RR", "R@5", "R@10")
Judgements = Mapping[str, Mapping[str, int]]
Scores = Mapping[str, Mapping[str, float]]


def without_identical(run: Scores) -> dict[str, dict[str, float]]:
    """The run without passages that have the id of their query, which BEIR's evaluation ignores (in ArguAna a query is a passage, too)."""
    return {query: {passage: score for passage, score in scores.items() if passage != query} for query, scores in run.items()}


def per_query(qrels: Judgements, run: Scores, measures: Sequence[str] = MEASURES) -> dict[str, dict[str, float]]:
    """Values of single queries: of those that the run holds and that have a relevant passage.

    Args:
        qrels: query -> passage -> grade.
        run: query -> passage -> score; equal scores keep the order given.
        measures: names of ir-measures (https://ir-measur.es).

    Returns:
        Measure -> query -> value.

    Raises:
        HeadwiseError: a measure is unknown, or no query is judged.
        MissingExtraError: ir-measures is not installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError("ir-measures", "rank") from error
    try:
        parsed = {ir_measures.parse_measure(name): name for name in measures}
    except (NameError, ValueError, SyntaxError) as error:
        raise HeadwiseError(
            f"unknown retrieval measure among {', '.join(measures)}; known forms: nDCG@10, RR, R@10, AP"
        ) from error
    judged = {q: dict(grades) for q, grades in qrels.items() if q in run and any(grade > 0 for grade in grades.values())}
    if not judged:
        raise HeadwiseError("no query of the run has a judged relevant passage; do run and judgements belong together?")
    found: dict[str, dict[str, float]] = {name: {} for name in measures}
    for metric in ir_measures.iter_calc(list(parsed), judged, {q: _untied(run[q]) for q in judged}):
        found[parsed[metric.measure]][metric.query_id] = float(metric.value)
    return found


def summary(qrels: Judgements, run: Scores, measures: Sequence[str] = MEASURES, seed: int = 0) -> list[dict[str, Any]]:
    """Measures of a run with 95 % bootstrap intervals over queries.

    Args:
        qrels: as in `per_query`.
        run: as in `per_query`.
        measures: as in `per_query`.
        seed: of the intervals.

    Returns:
        Per measure a row with `measure`, `value` (the mean), `low`, `high` and the number of `queries`.

    Raises:
        HeadwiseError: as `per_query`.
        MissingExtraError: as `per_query`.
    """
    rows = []
    for name, values in per_query(qrels, run, measures).items():
        mean, low, high = bootstrap_mean(np.array(list(values.values())), seed=seed)
        rows.append({"measure": name, "value": mean, "low": low, "high": high, "queries": len(values)})
    return rows


def gold_by_rank(values: NDArray[np.float64], gold: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the passage at each rank is a gold one, if passages are ranked by value.

    Args:
        values: [..., P]. Among equal values those that are not gold come first, so that a head which sees nothing ranks nothing.
        gold: [P].

    Returns:
        [..., P], the highest value first.
    """
    order = np.lexsort((np.broadcast_to(gold, values.shape), -values), axis=-1)
    return np.asarray(gold[order])


def bm25_candidates(queries: Mapping[str, str], passages: Mapping[str, str], most: int) -> dict[str, dict[str, float]]:
    """The best passages of each query by BM25 (Lucene's variant, k1 = 1.5, b = 0.75; English stop words left out).

    Args:
        queries: id -> text.
        passages: id -> text.
        most: how many passages per query.

    Returns:
        Query -> passage -> score, best first. For a query of stop words alone the first passages, with score 0.

    Raises:
        HeadwiseError: `most` is below 1.
        MissingExtraError: bm25s is not installed.
    """
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("bm25s", "rank") from error
    if most < 1:
        raise HeadwiseError(f"the number of candidates must be at least 1; got {most}")
    ids = list(passages)
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(bm25s.tokenize(list(passages.values()), stopwords="en", show_progress=False), show_progress=False)
    count = min(most, len(ids))
    words = bm25s.tokenize(list(queries.values()), stopwords="en", show_progress=False, return_ids=False)
    asked = [query for query, own in zip(queries, words, strict=True) if own]
    found = {query: dict.fromkeys(ids[:count], 0.0) for query in queries}  # of a query of stop words alone
    if asked:
        # Older versions of bm25s fail at a query without words, so only the others are looked up.
        places, scores = index.retrieve([own for own in words if own], k=count, show_progress=False)
        for row, query in enumerate(asked):
            found[query] = {ids[int(place)]: float(score) for place, score in zip(places[row], scores[row], strict=True)}
    return found


def _untied(scores: Mapping[str, float]) -> dict[str, float]:
    """Places instead of scores: judged by the order of the run, not by how a tool breaks ties."""
    ordered = sorted(scores, key=lambda passage: -scores[passage])
    return {passage: float(len(ordered) - place) for place, passage in enumerate(ordered)}
