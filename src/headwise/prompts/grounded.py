"""Questions that are answered in whole sentences from documents: records, and readers of the files they come from, by path.

The data sets themselves are never part of headwise. Layouts: `clapnq` (Rosenthal et al. 2024, arXiv:2404.02103), `expertqa` (Malaviya et al.
2024, arXiv:2309.07852), `quotesum` (Schuster et al. 2024, arXiv:2311.04886), `hagrid` (Kamalloo et al. 2023, arXiv:2307.16883), `webgpt`
(comparisons of WebGPT, Nakano et al. 2021, arXiv:2112.09332, most of whose questions are ELI5's), `own` (our JSON lines).
Labelled queries with passages and short answers (`prompts.ranking_data`) are read, too: `hotpotqa`, `nq`, and `query` (our lines).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headwise.heads.errors import PromptError
from headwise.heads.files import read_json_rows
from headwise.heads.text import reason
from headwise.prompts import ranking_data
from headwise.prompts.passages import Passage, passage_of
from headwise.prompts.sentences import without_citations

Row = Mapping[str, Any]
OWN = '{"question": "...", "documents": ["..."], "answers": ["..."]}, and if wanted "facts", "answerable", "judged" and "id"'
# A field that only this layout has -> layout, in the order in which they are looked for.
MARKS = {
    "annotator_id": "expertqa",
    "quotes_0": "webgpt",
    "quotes": "hagrid",
    "source1": "quotesum",
    "input": "clapnq",
    "documents": "own",
    "supporting_facts": "hotpotqa",
    "query": "query",
}
SUPPORT = {"Complete": 1.0, "Partial": 0.5, "Incomplete": 0.0, "Missing": 0.0}  # ExpertQA's judgements; N/A says nothing
SOURCES = 8  # numbered sources that a row of QuoteSum has room for
_EVIDENCE = re.compile(r"\s*(?:\[\d+\]\s*)?(?:(?:https?://|www\.)\S+)?\s*")  # number and address in front of ExpertQA's evidence
_QUOTED = re.compile(r"\[\s*\d+\s+(.*?)\s*\]", re.S)  # "[ 2 these words ]": words that QuoteSum's answer took from source 2


@dataclass(frozen=True)
class JudgedSentence:
    """A sentence of an answer, and what a person (or an exact rule) says of it.

    Attributes:
        text: The sentence.
        support: 1: the documents say so; 0: they do not; between them: partly. None: nobody has judged it, or what was judged is not here.
        label: The judgement in the file's own words; may be empty.
        documents: Places, from 0, of the documents it was judged against; empty: none was named.
    """

    text: str
    support: float | None
    label: str = ""
    documents: tuple[int, ...] = ()


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer that somebody gave, sentence by sentence.

    Attributes:
        sentences: At least one.
        author: Who wrote it: a model's name, mostly; may be empty.
    """

    sentences: tuple[JudgedSentence, ...]
    author: str = ""


@dataclass(frozen=True)
class GroundedRecord:
    """A question with documents.

    Attributes:
        question: What is asked.
        documents: What the answer is to rest on; a file may hold none for a question.
        references: Good answers in whole sentences; none for a question that the documents do not answer.
        facts: Short texts that a good answer mentions, where the file names them.
        judged: Answers with judged sentences, where the file has them.
        answerable: Whether the documents answer the question.
        name: What messages and tables call it.

    Raises:
        PromptError: No question, an empty text, a judgement outside of [0, 1], or one about a document that is not there.
    """

    question: str
    documents: tuple[Passage, ...]
    references: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    judged: tuple[JudgedAnswer, ...] = ()
    answerable: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise PromptError("a question is empty; leave it out")
        if any(document.is_empty for document in self.documents):
            raise PromptError(f"a document is empty; leave it out ({self.label})")
        if not all(text.strip() for text in (*self.references, *self.facts)):
            raise PromptError(f"an answer or a fact is empty; leave it out ({self.label})")
        for sentence in (one for answer in self.judged for one in answer.sentences):
            if not sentence.text.strip():
                raise PromptError(f"a judged sentence is empty; leave it out ({self.label})")
            if sentence.support is not None and not 0 <= sentence.support <= 1:
                raise PromptError(f"support lies between 0 and 1; got {sentence.support:g} ({self.label})")
            if any(not 0 <= place < len(self.documents) for place in sentence.documents):
                raise PromptError(
                    f"a sentence was judged against documents {list(sentence.documents)}, counted from 0, of {len(self.documents)} "
                    f"({self.label})"
                )

    @property
    def label(self) -> str:
        """What messages call it: its name, else the beginning of the question."""
        return self.name or self.question[:60]

    def row(self) -> dict[str, Any]:
        """The record as a line of our own JSON-lines layout; `read_grounded` reads it back."""
        documents = [{"title": one.title, "text": one.text} if one.title else one.text for one in self.documents]
        judged = [
            {
                "author": answer.author,
                "sentences": [
                    {"text": one.text, "support": one.support, "label": one.label, "documents": list(one.documents)}
                    for one in answer.sentences
                ],
            }
            for answer in self.judged
        ]
        more = {"facts": list(self.facts), "judged": judged, "id": self.name}
        out = {"question": self.question, "documents": documents, "answers": list(self.references), "answerable": self.answerable}
        return out | {name: value for name, value in more.items() if value}


def read_grounded(path: Path | str, layout: str = "auto") -> list[GroundedRecord]:
    """The records of a file.

    Args:
        path: JSON lines or one JSON list, plain or .gz.
        layout: One of `LAYOUTS`, or `auto`: the fields of the first row tell.

    Returns:
        In the order of the file, without marks of citations (`[1]`) in answers. Rows with the same name, question and documents are one
        record with several references.

    Raises:
        PromptError: An unknown layout, a file that cannot be read or holds nothing, or a row that lacks a field (its place is named).
    """
    path = Path(path)
    rows = list(read_json_rows(path, "questions", PromptError))
    if not rows:
        raise PromptError(f"{path} holds no questions; write one JSON object per line: {OWN}")
    for place, row in rows:
        if not isinstance(row, Mapping):
            raise PromptError(f"{place}: a question is an object like {OWN}; got {str(row)[:60]!r}")
    if layout == "auto":
        layout = layout_of(rows[0][1]) or "own"
    if layout not in LAYOUTS:
        raise PromptError(f"unknown layout {layout!r}; use auto, {', '.join(LAYOUTS)}")
    found: list[GroundedRecord] = []
    for place, row in rows:
        try:
            found.append(LAYOUTS[layout](row, place))
        except KeyError as error:
            raise PromptError(f"{place}: the layout {layout} has a field {error.args[0]!r}, which is missing here") from error
        except (TypeError, AttributeError, IndexError) as error:
            raise PromptError(f"{place}: not a row of the layout {layout}: {reason(error)}") from error
    return _joined(found)


def layout_of(row: Any) -> str | None:
    """The layout of a row by its fields; None for a row of none of `LAYOUTS`, such as a question with a short answer."""
    return next((found for mark, found in MARKS.items() if mark in row), None) if isinstance(row, Mapping) else None


def drawn(records: Sequence[GroundedRecord], count: int, seed: int) -> list[GroundedRecord]:
    """So many records at most, in an order drawn with the seed.

    Args:
        records: All of a file.
        count: How many.
        seed: Of the order.
    """
    order = np.random.default_rng([seed, 97]).permutation(len(records))
    return [records[i] for i in order[:count]]


def _joined(records: Iterable[GroundedRecord]) -> list[GroundedRecord]:
    """Rows that ask the same of the same documents as one record."""
    found: dict[tuple[Any, ...], GroundedRecord] = {}
    for place, record in enumerate(records):
        key = (record.name, record.question, record.documents) if record.name else (place,)
        known = found.get(key)
        found[key] = record if known is None else replace(
            known,
            references=tuple(dict.fromkeys((*known.references, *record.references))),
            facts=tuple(dict.fromkeys((*known.facts, *record.facts))),
            judged=(*known.judged, *record.judged),
            answerable=known.answerable or record.answerable,
        )  # fmt: skip
    return list(found.values())


def _record(
    place: str, question: Any, documents: Iterable[Passage], references: Iterable[Any] = (), facts: Iterable[Any] = (), **more: Any
) -> GroundedRecord:
    """A record in plain spacing; empty references and facts are left out."""
    texts = (question, *(references := list(references)), *(facts := list(facts)))
    if not all(isinstance(text, str) for text in texts):
        raise PromptError(f"{place}: question, answers and facts must be texts")
    plain, short = (tuple(dict.fromkeys(text for one in some if (text := one.strip()))) for some in (references, facts))
    try:
        return GroundedRecord(" ".join(question.split()), tuple(documents), plain, short, **more)
    except PromptError as error:
        raise PromptError(f"{place}: {error}") from error


def _clapnq(row: Row, place: str) -> GroundedRecord:
    """A question whose annotators wrote nothing is one that the passage does not answer."""
    answers = [one["answer"] for one in row["output"]]
    documents = [passage_of(passage, place) for passage in row["passages"]]
    return _record(place, row["input"], documents, answers, answerable=any(map(str.strip, answers)), name=str(row["id"]))


def _expertqa(row: Row, place: str) -> GroundedRecord:
    """Documents are the evidence of all claims; a claim whose evidence is no more than an address was judged on a page that is not here."""
    texts: dict[str, int] = {}
    judged = []
    for author, answer in row["answers"].items():
        sentences = []
        for claim in answer["claims"]:
            evidence = [_EVIDENCE.sub("", text, count=1).strip() for text in claim["evidence"]]
            places = tuple(texts.setdefault(text, len(texts)) for text in evidence if text)
            support = SUPPORT.get(claim["support"]) if len(places) == len(evidence) else None
            if text := without_citations(claim["claim_string"]).strip():
                sentences.append(JudgedSentence(text, support, claim["support"], places))
        if sentences:
            judged.append(JudgedAnswer(tuple(sentences), author))
    given = (answer.get("revised_answer_string") or answer["answer_string"] for answer in row["answers"].values())
    references = [without_citations(text) for text in given]
    return _record(place, row["question"], map(Passage, texts), references, judged=tuple(judged))


def _quotesum(row: Row, place: str) -> GroundedRecord:
    """Quotation marks `[ 2 ... ]` are taken off the answer; short answers that it covers are its facts."""
    given = [(row.get(f"title{i}") or "", row.get(f"source{i}") or "") for i in range(1, SOURCES + 1)]
    documents = [passage_of({"title": title, "text": text}, place) for title, text in given if text.strip()]
    covered = _QUOTED.findall(row.get("covered_short_answers") or "")
    summary = re.sub(r"\s+([.,;:!?])", r"\1", _QUOTED.sub(r"\1", row["summary"]))
    return _record(place, row["question"], documents, [summary], covered, name=str(row["qid"]))


def _hagrid(row: Row, place: str) -> GroundedRecord:
    """References are answers that were called informative, and not unattributable."""
    documents = [passage_of(quote, place) for quote in row["quotes"]]
    liked = (one["answer"] for one in row["answers"] if one.get("informative") == 1 and one.get("attributable") != 0)
    good = [without_citations(text) for text in liked]
    judged = []
    for answer in row["answers"]:
        told = [(without_citations(one["text"]).strip(), one.get("attributable")) for one in answer.get("sentences") or ()]
        sentences = [JudgedSentence(text, None if said is None else float(said)) for text, said in told if text]
        if sentences:
            judged.append(JudgedAnswer(tuple(sentences)))
    return _record(place, row["query"], documents, good, judged=tuple(judged), name=str(row["query_id"]))


def _webgpt(row: Row, place: str) -> GroundedRecord:
    """The answer that was preferred, with what it quotes; the first of two that were liked equally."""
    best = 1 if row["score_1"] > row["score_0"] else 0
    quotes, asked = row[f"quotes_{best}"], row["question"]
    pairs = zip(quotes["title"], quotes["extract"], strict=True)
    documents = [passage_of({"title": title, "text": text}, place) for title, text in pairs if text.strip()]
    return _record(place, asked["full_text"], documents, [without_citations(row[f"answer_{best}"])], name=str(asked.get("id") or ""))


def _own(row: Row, place: str) -> GroundedRecord:
    documents = [passage_of(one, place) for one in _list(row["documents"])]
    answerable = row.get("answerable", True)
    if not isinstance(answerable, bool):
        raise PromptError(f"{place}: answerable must be true or false; got {str(answerable)[:60]!r}")
    judged = tuple(
        JudgedAnswer(tuple(_own_sentence(one, place) for one in answer["sentences"]), str(answer.get("author", "")))
        for answer in row.get("judged") or ()
    )
    more = {"judged": judged, "answerable": answerable, "name": str(row.get("id", ""))}
    return _record(place, row["question"], documents, _list(row.get("answers") or ()), _list(row.get("facts") or ()), **more)


def _own_sentence(row: Row, place: str) -> JudgedSentence:
    support = row["support"]
    if support is not None and (isinstance(support, bool) or not isinstance(support, int | float)):
        raise PromptError(f"{place}: support must be a number from 0 to 1, or null; got {str(support)[:60]!r}")
    return JudgedSentence(row["text"], None if support is None else float(support), str(row.get("label", "")), tuple(row.get("documents") or ()))


def _list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def _labelled(mark: str) -> Callable[[Row, str], GroundedRecord]:
    """A reader of labelled queries: all passages are documents, and the first answer is what a good one mentions."""

    def read(row: Row, place: str) -> GroundedRecord:
        one = ranking_data.LAYOUTS[mark](row, place)
        passages = tuple(passage for passage in one.passages if not passage.is_empty)
        return GroundedRecord(one.query, passages, one.answers, one.answers[:1], name=one.name)

    return read


LAYOUTS: dict[str, Callable[[Row, str], GroundedRecord]] = {
    "clapnq": _clapnq,
    "expertqa": _expertqa,
    "quotesum": _quotesum,
    "hagrid": _hagrid,
    "webgpt": _webgpt,
    "own": _own,
    "hotpotqa": _labelled("supporting_facts"),
    "nq": _labelled("ctxs"),
    "query": _labelled("passages"),
}
