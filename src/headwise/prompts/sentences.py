"""Answers as sentences, documents as chunks of sentences, and the plain rule that tells a refusal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from headwise.prompts.haystack import split_sentences
from headwise.prompts.passages import Passage

CHUNK_WORDS = 100  # a chunk and a sentence fit into the 512 tokens of most entailment models
# A full stop behind these ends no sentence: titles, "e.g.", initials of names, the number of an entry in a list.
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|No|vs|cf|ca|approx|Fig|e\.g|i\.e|a\.m|p\.m|U\.S)|(?:^|[\s(])[A-Z]|^\d{1,2})\.$")
_CITATION = re.compile(r"\s*\[\s*\d+(?:\s*[,;–-]\s*\d+)*\s*\]")  # [1], [2, 3]
_LIST_MARK = re.compile(r"^(?:[-*•]|\d{1,2}[.)])\s+")
# An answer is a refusal if its first sentence says one of these; capitals do not count.
_REFUSAL = re.compile(
    r"\bunanswerable\b|\bno (?:answer|information|mention)\b"
    r"|\b(?:can(?:no|')?t|can not|could(?: not|n't)|unable to|not (?:able|possible) to) (?:be )?"
    r"(?:answer|determine|tell|say|find|know|provide)"
    r"|\b(?:i|we) (?:do not|don't) (?:know|have)\b"
    r"|\b(?:does|do|did|is|are) ?(?:not|n't) (?:answer|mention|say|state|tell|contain|provide|specify|discuss|enough)"
    r"|\bnot (?:mentioned|stated|specified|provided|given|said|told|enough information)\b|\binsufficient information\b"
)


def sentences_of(text: str) -> list[str]:
    """The sentences of an answer.

    Marks of a list and of citations (`[1]`) are taken off; a line break ends a sentence, the full stop of an abbreviation does not.

    Args:
        text: The answer; may be empty.

    Returns:
        Each without outer white space, with a letter or digit in it; none for an empty answer.
    """
    found: list[str] = []
    goes_on = False
    for part in split_sentences(without_citations(text)):
        sentence = " ".join(part.split())
        if goes_on and not part.startswith("\n"):
            found[-1] += f" {sentence}" if sentence else ""
        elif sentence:
            found.append(sentence)
        goes_on = bool(found) and _ABBREVIATION.search(found[-1]) is not None
    plain = (_LIST_MARK.sub("", sentence) for sentence in found)
    return [sentence for sentence in plain if re.search(r"\w", sentence)]


def without_citations(text: str) -> str:
    """The text without marks of citations (`[1]`, `[2, 3]`): which sentences bear them would tell a scorer what was judged to be supported."""
    return _CITATION.sub("", text)


def chunks_of(documents: Sequence[Passage], words: int = CHUNK_WORDS) -> list[str]:
    """Documents in chunks of whole sentences, so that each fits beside a sentence into an entailment model.

    Args:
        documents: With their titles, which stand in front of every chunk of theirs.
        words: A chunk ends before it has more, unless a single sentence does. The last sentence of a chunk opens the next one, because what a
            sentence says may rest on the one in front of it.

    Returns:
        Document after document.
    """
    found: list[str] = []
    for document in documents:
        title = f"{document.title.strip().rstrip('.')}. " if document.title.strip() else ""
        chunk: list[str] = []
        for sentence in filter(str.strip, split_sentences(document.text.strip())):
            if chunk and len("".join((*chunk, sentence)).split()) > words:
                found.append(title + "".join(chunk).strip())
                chunk = chunk[-1:] if len((chunk[-1] + sentence).split()) <= words else []
            chunk.append(sentence)
        found.append((title + "".join(chunk).strip()).strip())
    return found


def is_refusal(answer: str) -> bool:
    """Whether an answer refuses: it is empty, or its first sentence says that nothing is known, told or found.

    A plain rule on English words, not a judgement: a sentence such as "the report does not mention the cost" counts, too.
    """
    first = next(iter(sentences_of(answer)), "")
    return not first or _REFUSAL.search(first.lower().replace("’", "'")) is not None
