"""Finding the heads of doubt: replies first, then what every head attends to and what the margin is without it (arXiv:2510.22866).

Only challenges that pass the gate count. Single heads are taken away in the second turn alone, many at once over one cached first turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from headwise.attention.head_rows import LayerRows, head_rows
from headwise.caches.shared import fork
from headwise.evaluation.challenged import Measured, measured
from headwise.heads.errors import HeadwiseError, NoSuccessfulRunError
from headwise.heads.headfile import load_heads
from headwise.heads.types import HeadId, HeadScores, HeadSet
from headwise.methods.doubt.formula import CASES, four_cases, hits
from headwise.methods.doubt.options import Doubt
from headwise.models.model import Model, describe_model
from headwise.runtime.detector import Run
from headwise.runtime.doubt_asked import Dialogue, Doubts, doubts, margins, over_first_turns
from headwise.runtime.rundir import RunDirectory
from headwise.runtime.runner import prefill
from headwise.stats.expressions import evaluate

SCORE_VERSION = 1
Tables = dict[str, NDArray[np.float64]]


class Looked(NamedTuple):
    """What the heads attend to in the row that predicts a reply.

    Attributes:
        leave, keep: [L, H] bool, whether an option is among the most attended positions.
        mass: [3, L, H] float32, attention to the words of doubt, to the option that leaves the answer, and to the one that keeps it.
    """

    leave: NDArray[np.bool_]
    keep: NDArray[np.bool_]
    mass: NDArray[np.float32]


def doubt_scores(model: Model, options: Doubt, run: Run) -> HeadScores:
    """Scores of all query heads. Arguments and errors as for `headwise.find`.

    Returns:
        The score that was asked for, and as tables all that was measured: `case1` ... `case4`, `misleading`, `doubt`, `leave`, `keep` (attention),
        `knock_out` and `knock_out_wrong` (change of the margin in nats without the head; right first answers, and wrong ones).
    """
    retrieval = None if options.retrieval is None else load_heads(options.retrieval)
    if retrieval is not None:
        model.check(retrieval.top(1))
    asked = doubts(model, options)
    if _needs_cases(options) and not any(one.names_options(options.form) for one in asked.challenges):
        raise HeadwiseError(
            f"the score {options.score!r} looks at options, and none of the challenges names one; use suggestion or choice"
        )
    stated = {
        name: getattr(options, name)
        for name in ("score", "threshold", "knock_outs", "knocked", "top_k", "sink", "min_items", "gate")
    }
    told = {"score": "doubt", "score_version": SCORE_VERSION, "options": stated} | asked.describe() | describe_model(model)
    directory = run.open(told)
    found = measured(asked, directory, run.report, arms=("right", "wrong"))
    used = found.counted()
    if _needs_cases(options):
        _check_cases(used, options.min_items)
    tables = _attention_tables(asked, used, options, directory, run)
    knocked, each, info = _knock_outs(asked, used, options, directory, run)
    tables |= knocked
    values = evaluate(options.score, tables, options.threshold)
    values, left_out = _without_retrieval(retrieval, options.retrieval_from, values)
    facts = {"dropped": dict(asked.dropped), "rates": found.rates(), "read_by": found.read_by, "left_out": left_out}
    if (
        options.score != "knock_out" or left_out
    ):  # changes of single dialogues are those of another score, or of heads that are left out
        each, info = None, ()
    return HeadScores(values, "doubt", SCORE_VERSION, each, info, told | facts, tables)


def _attention_tables(asked: Doubts, used: Measured, options: Doubt, directory: RunDirectory | None, run: Run) -> Tables:
    """The four cases and the mean attention to words of doubt and options, over right first answers."""
    looked, flipped, with_options = [], [], []
    given = [(i, one) for i, one in enumerate(used.dialogues) if one.arm == "right" and used.flipped[i] is not None]
    for done, ((i, one), (_, past)) in enumerate(zip(given, over_first_turns(asked, [one for _, one in given]), strict=True), 1):
        key = f"look-{i}"
        cell = directory.load(key) if directory else None
        if cell is None:
            seen = look(asked, one, past, options.top_k, options.sink)
            cell = (seen._asdict(), [])
            if directory:
                directory.save(key, *cell)
        looked.append(Looked(*(cell[0][name] for name in Looked._fields)))
        flipped.append(bool(used.flipped[i]))
        with_options.append("option/leave" in one.prompt.spans)
        run.report(done, len(given), "what heads attend to")
    mass = np.stack([one.mass for one in looked]).astype(np.float64).mean(axis=0)
    tables: Tables = dict(zip(("doubt", "leave", "keep"), mass, strict=True))
    if any(with_options):
        chosen = [i for i, named in enumerate(with_options) if named]
        rows = [np.stack([getattr(looked[i], name) for i in chosen]) for name in ("leave", "keep")]
        tables |= four_cases(rows[0], rows[1], np.asarray([flipped[i] for i in chosen]))
    others = [layer for layer in range(asked.model.heads.shape[0]) if layer not in asked.model.modules]
    for table in tables.values():
        table[others] = np.nan  # recurrent layers have no heads to be scored
    return tables


@torch.no_grad()
def look(asked: Doubts, dialogue: Dialogue, past: DynamicCache, top: int, sink: bool = False) -> Looked:
    """What every head attends to in the last row of a dialogue.

    Args:
        asked: What asks.
        dialogue: The dialogue.
        past: Of `over_first_turns`; it is left as it is.
        top: How many positions count as most attended.
        sink: Whether the first one may be among them.
    """
    model, prompt = asked.model, dialogue.prompt
    shape, length = model.heads.shape, len(prompt.ids)
    spans = [
        [span for name, span in prompt.spans.items() if name.startswith(prefix)]
        for prefix in ("doubt/", "option/leave", "option/keep")
    ]
    mass = np.zeros((3, *shape), dtype=np.float32)
    found = np.zeros((2, *shape), dtype=bool)

    def use(seen: LayerRows) -> None:
        weights = seen.attention(slice(0, 1), length)[0, :, 0].cpu()
        for place, own in enumerate(spans):
            mass[place, seen.layer, seen.heads] = sum(weights[:, start:stop].sum(dim=1) for start, stop in own) if own else 0
        for place, own in enumerate(spans[1:]):
            found[place, seen.layer, seen.heads] = hits(weights, own, top, sink).numpy()

    with head_rows(model.hf, None, lambda now: 1, use):
        prefill(model.hf, fork(past), prompt.ids[past.get_seq_length() :])
    return Looked(found[0], found[1], mass)


def _knock_outs(
    asked: Doubts, used: Measured, options: Doubt, directory: RunDirectory | None, run: Run
) -> tuple[Tables, NDArray[np.float32] | None, tuple[Mapping[str, Any], ...]]:
    """Mean change of the margin without each head, by arm; and the changes of the right arm one by one with what they belong to."""
    shape = asked.model.heads.shape
    layers = sorted(asked.model.modules)
    singles = [HeadSet((HeadId(layer, head),), shape) for layer in layers for head in range(shape[1])]
    chosen = _spread(used.dialogues, options.knock_outs)
    given = [used.dialogues[i] for i in chosen]
    rows: dict[str, list[NDArray[np.float32]]] = {"right": [], "wrong": []}
    info: list[dict[str, Any]] = []
    for done, (i, (one, past)) in enumerate(zip(chosen, over_first_turns(asked, given), strict=True), 1):
        key = f"knock-{i}"
        cell = directory.load(key) if directory else None
        if cell is None:
            found = margins(asked, one, past, [HeadSet((), shape), *singles], options.knocked)
            change = np.full(shape, np.nan, dtype=np.float32)
            change[layers] = (found[1:] - found[0]).reshape(len(layers), shape[1])
            cell = ({"change": change}, [])
            if directory:
                directory.save(key, *cell)
        rows[one.arm].append(cell[0]["change"])
        if one.arm == "right":
            info.append({"challenge": one.challenge.name, "item": one.item.digest, "flipped": used.flipped[i]})
        run.report(done, len(given), "without single heads")
    if not given:
        return {}, None, ()
    names = {"right": "knock_out", "wrong": "knock_out_wrong"}
    tables: Tables = {names[arm]: np.stack(each).astype(np.float64).mean(axis=0) for arm, each in rows.items() if each}
    return tables, np.stack(rows["right"]), tuple(info)


def _spread(given: Sequence[Dialogue], wanted: int) -> list[int]:
    """Places of `wanted` right first answers and of the same dialogues with wrong ones: as many questions as there are, challenges in turn."""
    places: dict[str, dict[str, dict[str, int]]] = {}
    for i, one in enumerate(given):
        places.setdefault(one.item.name, {}).setdefault(one.challenge.name, {})[one.arm] = i
    names = list(dict.fromkeys(one.challenge.name for one in given))
    order = [
        places[item][name]
        for turn in range(len(names))
        for number, item in enumerate(places)
        if (name := names[(number + turn) % len(names)]) in places[item]
    ]
    return sorted(i for pair in order[:wanted] for i in pair.values())


def _needs_cases(options: Doubt) -> bool:
    return any(case in options.score for case in (*CASES, "misleading"))


def _check_cases(used: Measured, least: int) -> None:
    named = [i for i, one in enumerate(used.dialogues) if one.arm == "right" and "option/leave" in one.prompt.spans]
    flips, held = (sum(used.flipped[i] is state for i in named) for state in (True, False))
    if min(flips, held) < least:
        raise NoSuccessfulRunError(
            f"not enough flips to compare: {flips} flipped and {held} held dialogues name the options, and at least {least} of each are needed; "
            "give more --items, challenges that suggest an answer, or lower --min-items"
        )


def _without_retrieval(
    scores: HeadScores | None, least: float, values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[str]]:
    """The scores without those of retrieval heads, and which these are."""
    if scores is None:
        return values, []
    gone = [head for head in scores.ranking() if scores.values[head] >= least]
    values = values.copy()
    for head in gone:
        values[head] = np.nan
    return values, [str(head) for head in gone]
