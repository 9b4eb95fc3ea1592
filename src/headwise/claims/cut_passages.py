"""Long passages cut to the words around an answer, so that real models read them in the time of a night."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headwise.prompts.passages import Passage, RankingExample


def cut(example: RankingExample, words: int) -> RankingExample:
    """Passages of at most so many words; where an answer would be lost, the words around it."""
    return replace(example, passages=tuple(shortened(passage, example.answers, words) for passage in example.passages))


def shortened(passage: Passage, answers: Sequence[str], words: int) -> Passage:
    """A passage of at most so many words; where the first answer in it would be lost, the words around that."""
    text = " ".join(passage.text.split())
    whole = text.split()
    if len(whole) <= words:
        return passage._replace(text=text)
    found = [text.casefold().find(answer.casefold()) for answer in answers]
    place = min((at for at in found if at >= 0), default=0)
    before = len(text[:place].split())
    start = max(0, min(before - words // 2, len(whole) - words))
    return passage._replace(text=" ".join(whole[start : start + words]))
