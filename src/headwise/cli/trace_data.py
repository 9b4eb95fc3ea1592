"""What the terminal, the page and `--json` of `headwise trace` show, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwise.methods.trace.answer import AnswerTrace, TokenSource
    from headwise.models.model import Model
    from headwise.runtime.head_probe import Probe

AROUND, KEPT = 6, 12  # tokens on each side of a source token in its excerpt; positions that are kept per token


def trace_data(
    model: Model, found: AnswerTrace, probe: Probe, causes: Mapping[str, float] | None, names: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that is shown.

    Args:
        model: The model that read.
        found: The traced answer.
        probe: The probe.
        causes: Passage -> drop of the answer's log-probability without it; None if that was not asked for.
        names: Passage -> what the user calls it, where that differs.
    """
    from headwise.prompts.answers import passages_of
    from headwise.runtime.head_trace import text_pieces

    ids = found.prompt.ids
    pieces = text_pieces(model.tokenizer, (*ids, *found.ids))
    spans, scores = passages_of(found.prompt), found.passages
    shares = _shares(scores)
    passages = [
        {
            "name": names.get(name, name),
            "share": shares[name],
            "drop": None if causes is None else causes[name],
            "pieces": list(pieces[spans[name].start : spans[name].stop]),
            "start": spans[name].start,
        }
        for name in (scores if causes is None else sorted(scores, key=lambda name: -causes[name]))
    ]
    tokens = [
        _token(found, i, token, pieces, names)
        | {"special": token.token in model.stop_ids or not pieces[len(ids) + i].strip()}  # ends of lines and of texts say nothing
        for i, token in enumerate(found.tokens)
    ]
    facts = probe.facts
    return {
        "model": model.name,
        "answer": "".join(pieces[len(ids) :]).strip(),
        "tokens": tokens,
        "passages": passages,
        "band": list(probe.band),
        "probe": {
            "model": probe.model,
            "heads": [str(head) for head in probe.heads],
            "negatives": facts.get("options", {}).get("negatives"),
            "auc": facts.get("auc"),
            "calibration_error": facts.get("calibration_error"),
        },
    }


def _token(
    found: AnswerTrace, place: int, token: TokenSource, pieces: tuple[str, ...], names: Mapping[str, str]
) -> dict[str, Any]:
    row = found.scores[place]
    strongest = [int(i) for i in (-row).argsort() if found.allowed[i] and row[i] > 0][:KEPT]
    most = max((float(row[i]) for i in strongest), default=1.0)
    passage, position, excerpt = token.passage, token.position, ""
    span = None if passage is None else found.prompt.spans[passage]
    if span is not None:  # the strongest position of all may lie in another passage than the one with the largest sum
        inside = [i for i in range(span.start, span.stop) if found.allowed[i]]
        position = max(inside, key=lambda i: float(row[i]), default=-1)
    if position >= 0:
        start, stop = max(0, position - AROUND), position + AROUND + 1
        start, stop = (start, stop) if span is None else (max(start, span.start), min(stop, span.stop))
        excerpt = "".join(pieces[start:stop]).strip()
    return {
        "text": pieces[len(found.prompt.ids) + place],
        "probability": token.probability,
        "label": token.label,
        "position": token.position,
        "passage": None if passage is None else names.get(passage, passage),
        "excerpt": " ".join(excerpt.split()),
        "shares": {names.get(name, name): share for name, share in _shares(token.passages).items()},
        "sources": [[i, float(row[i]) / most] for i in strongest],
    }


def _shares(scores: Mapping[str, float]) -> dict[str, float]:
    """Each score's part of all that are above 0."""
    total = sum(max(0.0, score) for score in scores.values()) or 1.0
    return {name: max(0.0, score) / total for name, score in scores.items()}
