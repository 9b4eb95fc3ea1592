"""Labelled queries with their passages: files of the user, and needle questions over passages of novels.

Layouts, told by their fields: `own` (our JSON lines), `hotpotqa` (Yang et al. 2018, arXiv:1809.09600; the original list and the Hugging Face rows),
`nq` (NQ-open with gold passages, Liu et al. 2023, arXiv:2307.03172).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwise.heads.errors import PromptError
from headwise.heads.text import reason
from headwise.prompts.haystack import bundled_texts
from headwise.prompts.needles import bundled_needles
from headwise.prompts.passages import Passage, RankingExample, passage_of, read_rows

PASSAGE_WORDS = 40
WANTED = '{"query": "...", "passages": ["...", {"title": "...", "text": "..."}], "gold": [0], "answers": ["..."]}'


def read_ranking_examples(path: str | Path) -> list[RankingExample]:
    """Queries of a file in one of the layouts above.

    Our own lines have `query`, `passages` (texts, or objects with text and title), `gold` (indices from 0), and, if wanted, `answers` and `id`.

    Raises:
        PromptError: the file cannot be read, or something in it is no example; its place is named.
    """
    rows = read_rows(Path(path), "queries")
    read = next((reader for mark, reader in LAYOUTS.items() if isinstance(rows[0][1], Mapping) and mark in rows[0][1]), _own)
    found = []
    for place, row in rows:
        try:
            found.append(read(row, place))
        except PromptError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise PromptError(f"{place}: not a row like the first one of the file: {reason(error)}") from error
    return found


def needle_examples(count: int, passages: int, seed: int = 0, split: str = "detect") -> list[RankingExample]:
    """Queries over passages of the bundled novels; one passage of each holds the sentence that answers the query.

    Queries are the questions of a split of the bundled needles, in turn, with their answers. A passage has about `PASSAGE_WORDS` words.

    Args:
        count: number of queries.
        passages: number of passages of each query.
        seed: of passages and of the gold passage's place; at least 0.
        split: of the needles, see `bundled_needles`.

    Returns:
        `count` examples; an example depends on its number and the seed, so more of them begin with the same ones.

    Raises:
        PromptError: a negative seed.
    """
    if seed < 0:
        raise PromptError(f"the seed must be at least 0; got {seed}")
    words = [word for text in bundled_texts() for word in text.split()]
    needles = bundled_needles(split)
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, 29, number])
        places = rng.choice(len(words) // PASSAGE_WORDS, size=passages, replace=False) * PASSAGE_WORDS
        texts = [words[place : place + PASSAGE_WORDS] for place in places]
        needle, gold = needles[number % len(needles)], int(rng.integers(passages))
        at = int(rng.integers(PASSAGE_WORDS))
        texts[gold] = [*texts[gold][:at], *needle.needle.split(), *texts[gold][at:]]
        told = tuple(Passage(" ".join(text)) for text in texts)
        made.append(RankingExample(needle.question, told, frozenset({gold}), answers=(needle.answer,)))
    return made


def _own(row: Any, place: str) -> RankingExample:
    if not isinstance(row, Mapping) or not {"query", "passages", "gold"} <= set(row):
        raise PromptError(f"{place}: expected {WANTED}")
    passages, gold, answers = row["passages"], row["gold"], row.get("answers", [])
    if not isinstance(passages, Sequence) or isinstance(passages, str) or not passages:
        raise PromptError(f"{place}: passages must be a list that is not empty")
    if not isinstance(gold, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in gold):
        raise PromptError(f"{place}: gold must be a list of passage numbers from 0; got {str(gold)[:60]}")
    made = tuple(passage_of(passage, place) for passage in passages)
    wrong = [i for i in gold if not 0 <= i < len(made)]
    if wrong:
        raise PromptError(f"{place}: gold passage {wrong[0]} does not exist; there are {len(made)}")
    return RankingExample(_query(row["query"], place), made, frozenset(gold), str(row.get("id", "")), _answers(answers, place))


def _hotpotqa(row: Any, place: str) -> RankingExample:
    """Paragraphs without a text are left out, as nothing can be read there."""
    context, facts = row["context"], row["supporting_facts"]
    if isinstance(context, Mapping):  # the Hugging Face rows hold columns
        context = list(zip(context["title"], context["sentences"], strict=True))
        titles = set(facts["title"])
    else:
        titles = {title for title, _ in facts}
    made = [Passage("".join(sentences).strip(), title) for title, sentences in context if "".join(sentences).strip()]
    gold = frozenset(i for i, passage in enumerate(made) if passage.title in titles)
    name = str(row.get("id") or row.get("_id") or "")
    return RankingExample(_query(row["question"], place), tuple(made), gold, name, _answers(row["answer"], place))


def _nq(row: Any, place: str) -> RankingExample:
    made = tuple(passage_of(ctx, place) for ctx in row["ctxs"])
    gold = frozenset(i for i, ctx in enumerate(row["ctxs"]) if ctx.get("isgold", ctx.get("hasanswer")))
    return RankingExample(_query(row["question"], place), made, gold, "", _answers(row["answers"], place))


def _query(given: Any, place: str) -> str:
    if not isinstance(given, str) or not given.strip():
        raise PromptError(f"{place}: the query is empty or no text")
    return given


def _answers(given: Any, place: str) -> tuple[str, ...]:
    """Distinct answers that are not empty."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise PromptError(f"{place}: answers must be a list of texts; got {str(given)[:60]}")
    return tuple(dict.fromkeys(text for each in texts if (text := " ".join(each.split()))))


# A field that only this layout has -> how its rows are read.
LAYOUTS: Mapping[str, Callable[[Any, str], RankingExample]] = {"passages": _own, "supporting_facts": _hotpotqa, "ctxs": _nq}
