"""Readers of question files, by path: the data sets themselves are never part of headwise.

Layouts: `nq` (NQ-open with the gold passage, the oracle file of Liu et al. 2023, arXiv:2307.03172), `nq-swap` (the Hugging Face file of
NQ-Swap, Longpre et al. 2021, arXiv:2109.05052), `popqa` (Mallen et al. 2023, arXiv:2212.10511, with paragraphs), `relations` (LRE, Hernandez et
al. 2024, arXiv:2308.09124), `known-facts` (ROME, Meng et al. 2022, arXiv:2202.05262), `own` (our JSON lines).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwise.heads.errors import PromptError
from headwise.heads.files import parse_json, read_json_rows
from headwise.heads.text import reason
from headwise.prompts.knowledge_record import KnowledgeRecord
from headwise.prompts.mentions import mentions
from headwise.prompts.passages import Passage, passage_of

Row = Mapping[str, Any]
OWN = '{"question": "...", "answers": ["..."], "passage": "...", "swapped": "...", "swapped_answer": "..."}'
# A field that only this layout has -> layout, in the order in which they are looked for.
MARKS = {
    "ctxs": "nq",
    "org_context": "nq-swap",
    "possible_answers": "popqa",
    "prompt_templates": "relations",
    "known_id": "known-facts",
}
_TAG = re.compile(r"</?[A-Z][A-Za-z0-9]*>")


def read_knowledge(path: Path | str, layout: str = "auto") -> list[KnowledgeRecord]:
    """The records of a file.

    Args:
        path: JSON lines or one JSON list, plain or .gz.
        layout: One of `LAYOUTS`, or `auto`: the fields of the first row tell.

    Returns:
        In the order of the file. Of several right answers one that the passage mentions comes first.

    Raises:
        PromptError: An unknown layout, a file that cannot be read or holds nothing, or a row that lacks a field (its place is named).
    """
    path = Path(path)
    rows = list(_rows(path))
    if not rows:
        raise PromptError(f"{path} holds no questions; write one JSON object per line: {OWN}")
    if layout == "auto":
        layout = next((found for mark, found in MARKS.items() if mark in rows[0][1]), "own")
    if layout not in LAYOUTS:
        raise PromptError(f"unknown layout {layout!r}; use auto, {', '.join(LAYOUTS)}")
    found: list[KnowledgeRecord] = []
    for place, row in rows:
        try:
            found += LAYOUTS[layout](row, place)
        except KeyError as error:
            raise PromptError(f"{place}: the layout {layout} has a field {error.args[0]!r}, which is missing here") from error
        except (TypeError, AttributeError, IndexError) as error:
            raise PromptError(f"{place}: not a row of the layout {layout}: {reason(error)}") from error
    return found


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    for place, row in read_json_rows(path, "questions", PromptError):
        if not isinstance(row, Mapping):
            raise PromptError(f"{place}: a question is an object like {OWN}; got {str(row)[:60]!r}")
        yield place, row


def _record(place: str, question: Any, answers: Sequence[Any], passages: Sequence[Passage] = (), **more: Any) -> KnowledgeRecord:
    """A record with the first passage that mentions an answer (else the first one), and that answer in front."""
    if not isinstance(question, str) or not all(isinstance(answer, str) for answer in answers):
        raise PromptError(f"{place}: question and answers must be texts")
    known = tuple(dict.fromkeys(text for answer in answers if (text := " ".join(answer.split()))))
    passage = next((p for p in passages if mentions(f"{p.title}\n{p.text}", known)), passages[0] if passages else None)
    if passage is not None:
        said = [answer for answer in known if mentions(passage.text, (answer,))]
        known = tuple(dict.fromkeys((*said, *known)))
    try:
        return KnowledgeRecord(" ".join(question.split()), known, passage, **more)
    except PromptError as error:
        raise PromptError(f"{place}: {error}") from error


def _nq(row: Row, place: str) -> Iterator[KnowledgeRecord]:
    yield _record(place, row["question"], row["answers"], [passage_of(ctx, place) for ctx in row["ctxs"]])


def _nq_swap(row: Row, place: str) -> Iterator[KnowledgeRecord]:
    """Passages lose their HTML tags (`<P>`, `<Li>`, ...)."""
    shown, swapped = (passage_of(" ".join(_TAG.sub(" ", row[name]).split()), place) for name in ("org_context", "sub_context"))
    new = [text for text in _list(row["sub_answer"]) if mentions(swapped.text, (text,))] or _list(row["sub_answer"])
    yield _record(place, row["question"], _list(row["org_answer"]), [shown], swapped=swapped, swapped_answer=new[0])


def _popqa(row: Row, place: str) -> Iterator[KnowledgeRecord]:
    answers = row["possible_answers"]
    answers = parse_json(answers, place, PromptError) if isinstance(answers, str) else answers
    passages = [passage_of(paragraph, place) for paragraph in row.get("paragraphs", ())]
    name = str(row["id"]) if "id" in row else ""
    yield _record(place, row["question"], answers, passages, kind=row["prop"], subject=row["subj"], name=name)


def _relation(row: Row, place: str) -> Iterator[KnowledgeRecord]:
    """One row is a relation: each subject once, with all its objects as answers; the question is the first zero-shot template."""
    template = (row.get("prompt_templates_zs") or row["prompt_templates"])[0]
    objects: dict[str, list[str]] = {}
    for sample in row["samples"]:
        objects.setdefault(sample["subject"], []).append(sample["object"])
    for subject, answers in objects.items():
        yield _record(place, template.replace("{}", subject), answers, kind=row["name"], subject=subject)


def _known_fact(row: Row, place: str) -> Iterator[KnowledgeRecord]:
    more = {"kind": row["relation_id"], "subject": row["subject"], "name": str(row["known_id"])}
    yield _record(place, row["prompt"], [row["attribute"]], **more)


def _own(row: Row, place: str) -> Iterator[KnowledgeRecord]:
    shown = {name: passage_of(row[name], place) for name in ("passage", "swapped") if row.get(name) is not None}
    texts = {name: row.get(name, "") for name in ("swapped_answer", "kind", "subject", "wrong")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise PromptError(f"{place}: swapped_answer, kind, subject and wrong must be texts")
    passages = [shown["passage"]] if "passage" in shown else []
    more = texts | {"swapped": shown.get("swapped"), "name": str(row.get("id", ""))}
    yield _record(place, row["question"], _list(row["answers"]), passages, **more)


def _list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


LAYOUTS: dict[str, Callable[[Row, str], Iterator[KnowledgeRecord]]] = {
    "nq": _nq,
    "nq-swap": _nq_swap,
    "popqa": _popqa,
    "relations": _relation,
    "known-facts": _known_fact,
    "own": _own,
}
