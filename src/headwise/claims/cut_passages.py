"""Long passages cut to the words around an answer, for the claims about training with heads."""

from __future__ import annotations

from dataclasses import replace

from headwise.prompts.passages import Passage, RankingExample


def cut(example: RankingExample, words: int) -> RankingExample:
    """Passages of at most so many words; where an answer would be lost, the words around it."""
    return replace(example, passages=tuple(_short(passage, example.answers, words) for passage in example.passages))


def _short(passage: Passage, answers: tuple[str, ...], words: int) -> Passage:
    text = " ".join(passage.text.split())
    whole = text.split()
    if len(whole) <= words:
        return passage._replace(text=text)
    found = [text.casefold().find(answer.casefold()) for answer in answers]
    place = min((at for at in found if at >= 0), default=0)
    before = len(text[:place].split())
    start = max(0, min(before - words // 2, len(whole) - words))
    return passage._replace(text=" ".join(whole[start : start + words]))
