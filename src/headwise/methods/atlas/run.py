"""Head maps of the Atlas (Kahardipraja et al. 2025, arXiv:2505.15807): D score, task relevance, retrieval relevance.

A map needs one forward and one backward pass per record and prompt. Records are run in stretches that are kept on disk, so that an interrupted run
continues. What is kept is the relevance itself: how it is normalized is decided afterwards.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention.rules import PATENT_NOTICE, RULES
from headwise.heads.errors import NoSuccessfulRunError
from headwise.heads.types import HeadScores
from headwise.methods.atlas.formula import in_context_scores, normalized, span_relevance, standard_error
from headwise.methods.atlas.options import InContext, Task
from headwise.models.model import Model, describe_model
from headwise.runtime.detector import Run
from headwise.runtime.knowledge_asked import Asked, Question, ask, describe_questions, usable
from headwise.runtime.knowledge_questions import KnowledgeQuestions
from headwise.runtime.relevance import relevance
from headwise.runtime.rundir import Cell

SCORE_VERSION = 1
STRETCH = 32  # records that are kept on disk together
NEEDS = ("contrast", "sources")


class Measured(NamedTuple):
    """Relevance of all heads on the records that count.

    Attributes:
        tables: Name -> [N, L, H] (`logit_opened`, `logit_closed`: [N]). For `contrast`: `opened`, `closed`, `signed_opened`, `signed_closed`; for
            `sources`: `task`, `retrieval`.
        info: One mapping per record.
        dropped: Reason -> how many records do not count.
        provenance: Model, data and options.
    """

    tables: dict[str, NDArray[np.float64]]
    info: tuple[dict[str, Any], ...]
    dropped: dict[str, int]
    provenance: dict[str, Any]


def measure(model: Model, options: KnowledgeQuestions, needs: tuple[str, ...], run: Run) -> Measured:
    """Run the model over the records of a file until enough of them count.

    Args:
        model: With its tokenizer.
        options: Data, rule, and which records count. For `sources` rows and positive parts are those of `Task`.
        needs: Of `NEEDS`: `contrast` (closed-book and open-book contributions; both answers must be given) and `sources` (task and retrieval
            relevance; alone, only the swapped answer must be given).
        run: Where progress is told and finished stretches are kept.

    Raises:
        NoSuccessfulRunError: Fewer records count than `options.min_records`.
        HeadwiseError: As `ask` and `headwise.attribute`.
    """
    asked = ask(model, options)
    given = {name: getattr(options, name) for name in ("rows", "positive") if "sources" in needs}
    told = {"needs": list(needs), "score_version": SCORE_VERSION, **given, **describe_questions(asked, options)} | describe_model(
        model
    )
    if RULES[options.rule].patented:
        told["notice"] = PATENT_NOTICE
    directory = run.open(told)
    cells: list[Cell] = []
    done, wanted = 0, options.records or len(asked.records)
    for start in range(0, len(asked.records), STRETCH):
        key = f"records{start:06d}"
        cell = directory.load(key) if directory else None
        if cell is None:
            cell = _stretch(model, asked, range(start, min(start + STRETCH, len(asked.records))), options, needs)
            if directory:
                directory.save(key, *cell)
        cells.append(cell)
        done += _kept(cell)
        looked = min(start + STRETCH, len(asked.records))
        run.report(min(done, wanted), wanted, f"{looked} of {len(asked.records)} records read")
        if done >= wanted:
            break
    return _collected(cells, asked, options, told, wanted)


def contrast_scores(measured: Measured, options: InContext) -> HeadScores:
    """D of each head, or -D, as the mean over records, with the per-record values as runs.

    Args:
        measured: For `contrast`.
        options: How contributions are normalized, and the direction.

    Returns:
        Tables: `standard_error`; `opened` and `closed` (means of the two contributions); `signed` (the same difference from signed sums, each divided
        as its positive sum is: a head whose ranks differ much between both owes its score to channels that cancel).
    """
    tables, sign = measured.tables, options.sign
    opened, closed = (normalized(tables[name], tables[f"logit_{name}"], options.normalize) for name in ("opened", "closed"))
    signed = [_divided(tables, name, options.normalize) for name in ("opened", "closed")]
    runs = sign * in_context_scores(opened, closed)
    more = {"opened": opened.mean(axis=0), "closed": closed.mean(axis=0)}
    more["signed"] = sign * in_context_scores(*signed).mean(axis=0)
    return _scores(runs, options.name, measured, more, {"normalize": options.normalize})


def source_scores(measured: Measured, options: Task) -> HeadScores:
    """Task or retrieval relevance of each head as the mean over records, with the per-record values as runs.

    Args:
        measured: For `sources`.
        options: Which of the two.

    Returns:
        In logits. Table: `standard_error`.
    """
    return _scores(measured.tables[options.name], options.name, measured, {}, {})


def _scores(runs: NDArray[np.float64], name: str, measured: Measured, tables: dict[str, Any], more: dict[str, Any]) -> HeadScores:
    tables = {"standard_error": standard_error(runs)} | tables
    counts = {"records_used": len(runs), "records_dropped": measured.dropped}
    provenance = measured.provenance | more | counts
    return HeadScores(runs.mean(axis=0), name, SCORE_VERSION, runs.astype(np.float32), measured.info, provenance, tables)


def _divided(tables: dict[str, NDArray[np.float64]], name: str, normalize: str) -> NDArray[np.float64]:
    """Signed sums, divided by what the positive sums are divided by."""
    if normalize == "share":
        return np.asarray(tables[f"signed_{name}"] / np.nansum(tables[name], axis=(1, 2))[:, None, None])
    return normalized(tables[f"signed_{name}"], tables[f"logit_{name}"], normalize)


def _stretch(model: Model, asked: Asked, places: range, options: KnowledgeQuestions, needs: tuple[str, ...]) -> Cell:
    """(arrays of the records that count, one description of each record of the stretch)."""
    questions, dropped = usable(model, asked, places, options.followed, closed="contrast" in needs)
    arrays: dict[str, NDArray[np.float32]] = {}
    if questions and "contrast" in needs:
        arrays |= _contrast(model, questions, options.rule)
    if questions and "sources" in needs:
        arrays |= _sources(model, questions, options)
    kept = {question.place: _told(question) for question in questions}
    info = [kept.get(place) or {"record": place, "dropped": dropped[place]} for place in places]
    return arrays, info


def _told(question: Question) -> dict[str, Any]:
    record = question.record
    names = {"name": record.name} if record.name else {}
    return {"record": question.place, "kind": record.kind, "tokens": len(question.opened.ids), **names}


def _contrast(model: Model, questions: list[Question], rule: str) -> dict[str, NDArray[np.float32]]:
    out: dict[str, NDArray[np.float32]] = {}
    for name, prompts, targets in (
        ("opened", [q.opened for q in questions], [q.swapped for q in questions]),
        ("closed", [q.closed for q in questions], [q.right for q in questions]),
    ):
        found = relevance(model, prompts, targets, rule)
        out |= {name: found.heads.numpy(), f"signed_{name}": found.signed.numpy(), f"logit_{name}": found.logits.numpy()}
    return out


def _sources(model: Model, questions: list[Question], options: KnowledgeQuestions) -> dict[str, NDArray[np.float32]]:
    chosen: Any = options
    found = relevance(
        model,
        [q.opened for q in questions],
        [q.swapped for q in questions],
        options.rule,
        sources="weights",
        rows=chosen.rows,
        positive=chosen.positive,
        spans=("question", "answer/"),
    )
    sources = torch.empty(0) if found.sources is None else found.sources
    out: dict[str, NDArray[np.float32]] = {}
    for name, prefix in (("task", "question"), ("retrieval", "answer/")):
        rows = []
        for question, table in zip(questions, sources.double().numpy(), strict=True):
            spans = [span for span_name, span in question.opened.spans.items() if span_name.startswith(prefix)]
            rows.append(span_relevance(table, spans))
        out[name] = np.stack(rows).astype(np.float32)
    return out


def _kept(cell: Cell) -> int:
    return sum("dropped" not in each for each in cell[1])


def _collected(cells: list[Cell], asked: Asked, options: KnowledgeQuestions, told: dict[str, Any], wanted: int) -> Measured:
    kept = [each for cell in cells for each in cell[1] if "dropped" not in each][:wanted]
    dropped = asked.dropped + Counter(each["dropped"] for cell in cells for each in cell[1] if "dropped" in each)
    if len(kept) < options.min_records:
        reasons = "; ".join(f"{count} where {reason}" for reason, count in dropped.most_common()) or "none dropped"
        raise NoSuccessfulRunError(
            f"{len(kept)} of {len(asked.records) + asked.dropped.total()} records can be used, fewer than {options.min_records} ({reasons}); give "
            "more records, a wider --followed, or a smaller --min-records"
        )
    names = next(cell[0].keys() for cell in cells if cell[0])
    tables = {name: np.concatenate([cell[0][name] for cell in cells if cell[0]])[:wanted].astype(np.float64) for name in names}
    return Measured(tables, tuple(kept), dict(dropped.most_common()), told)
