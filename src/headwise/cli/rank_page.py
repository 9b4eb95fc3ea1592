"""What the page of `headwise rank` shows: the best passages of the first queries, with the value of every piece of text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwise.methods.query.ranker import Ranker
    from headwise.prompts.passages import Passage

QUERIES, SHOWN = 10, 5
Run = Mapping[str, Mapping[str, float]]


def write_ranking(
    path: Path,
    ranker: Ranker,
    passages: Mapping[str, Passage],
    queries: Mapping[str, str],
    run: Run,
    first: Run,
    judged: Mapping[str, Mapping[str, int]] | None,
) -> None:
    """Write the page. The values come from one more pass per query, over the passages that are shown."""
    from headwise.report.ranking_page import write_page

    shown = [_query(ranker, passages, queries[q], run[q], list(first[q]), (judged or {}).get(q)) for q in list(run)[:QUERIES]]
    result: dict[str, Any] = {
        "model": ranker.model.name,
        "heads": [str(head) for head in ranker.heads],
        "total": len(run),
        "queries": shown,
        "measures": None,
    }
    if judged is not None:
        from headwise.stats.ranking import summary

        result["measures"] = summary(
            {q: dict(grades) for q, grades in judged.items()}, {q: dict(scores) for q, scores in run.items()}
        )
    write_page(result, path)


def _query(
    ranker: Ranker,
    passages: Mapping[str, Passage],
    query: str,
    scores: Mapping[str, float],
    before: list[str],
    grades: Mapping[str, int] | None,
) -> dict[str, Any]:
    from headwise.runtime.head_trace import text_pieces

    best = [key for key in sorted(scores, key=lambda key: -scores[key])[:SHOWN] if not passages[key].is_empty]
    if not best:
        return {"query": query, "candidates": len(scores), "passages": []}
    values = ranker.index([passages[key] for key in best]).token_values(query)
    rows = []
    for rank, (key, (ids, weights)) in enumerate(zip(best, values, strict=True), 1):
        pieces = list(zip(text_pieces(ranker.model.tokenizer, ids), weights.tolist(), strict=True))
        grade = None if grades is None else grades.get(key, 0)
        rows.append(
            {"id": key, "rank": rank, "before": before.index(key) + 1, "score": scores[key], "grade": grade, "pieces": pieces}
        )
    return {"query": query, "candidates": len(scores), "passages": rows}
