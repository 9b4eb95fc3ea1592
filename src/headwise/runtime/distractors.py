"""More passages that do not answer: filled up with those of other examples that look most like the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headwise.heads.errors import HeadwiseError
from headwise.prompts.mentions import mentions
from headwise.prompts.passages import Passage, RankingExample
from headwise.stats.ranking import bm25_candidates


def fill_up(examples: Sequence[RankingExample], passages: int) -> list[RankingExample]:
    """The examples with `passages` passages each: behind their own stand the best ones by BM25 among the passages of all examples.

    Left out are passages that mention one of the example's answers, which would be right without being called so, and those that it has already.

    Args:
        examples: Labelled queries.
        passages: How many passages each shall have; examples with more stay as they are.

    Returns:
        As many examples; some have fewer passages where the others do not suffice.

    Raises:
        HeadwiseError: `passages` is below 2.
        MissingExtraError: bm25s is not installed.
    """
    if passages < 2:
        raise HeadwiseError(f"examples need at least 2 passages; got {passages}")
    short = {str(i): one for i, one in enumerate(examples) if len(one.passages) < passages}
    if not short:
        return list(examples)
    pool = {str(j): one for j, one in enumerate(dict.fromkeys(p for each in examples for p in each.passages))}
    texts = {key: f"{one.title}\n{one.text}" for key, one in pool.items()}
    found = bm25_candidates({key: one.query for key, one in short.items()}, texts, 4 * passages)
    filled = list(examples)
    for key, one in short.items():
        filled[int(key)] = _filled(one, [pool[place] for place in found[key]], passages)
    return filled


def _filled(example: RankingExample, candidates: Sequence[Passage], passages: int) -> RankingExample:
    known = {passage.text for passage in example.passages}
    new = [p for p in candidates if p.text not in known and not mentions(f"{p.title}\n{p.text}", example.answers)]
    return replace(example, passages=(*example.passages, *new[: passages - len(example.passages)]))
