"""Conflict curves: which answer a model gives, the remembered one or that of a passage, as in-context or parametric heads go.

Kahardipraja et al. 2025 (arXiv:2505.15807, table 13): questions with a passage in which the answer was swapped, K heads of one kind ablated.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.attention import ablate
from headwise.attention.ablate import SCOPES
from headwise.evaluation.ablation_task import given_scores
from headwise.evaluation.steered import steered_answers
from headwise.evaluation.variants import Kind, Variant, describe_scores, distinct_sets, head_variants
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.heads.headfile import write_json
from headwise.heads.progress import Report, silent
from headwise.models.model import Model, describe_model
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord
from headwise.prompts.mentions import mentions
from headwise.runtime.rundir import RunDirectory
from headwise.stats.paired import bootstrap_mean, mcnemar, rank_p, sign_flip_test

LEAST = 50  # usable records
SHARE, STEPS = 0.1, 5  # default K: so many even steps up to this share of the heads
DRAWS = 2_000  # bootstrap draws per interval
MODES = ("zero", "uniform")  # that need no text of their own
# Which heads go -> what is counted: answers by memory, answers by the passage.
SIDES = {"context": "in-context heads", "memory": "parametric heads"}
COUNTED = ("memory", "passage")
RISES = (("context", "memory"), ("memory", "passage"))  # what the paper expects to rise; the others fall
Table = NDArray[np.float64]


@dataclass(frozen=True)
class ConflictOptions:
    """What is taken away and how it is measured.

    Attributes:
        top: Different numbers of heads K, each at least 1; empty: `STEPS` even steps up to `SHARE` of all heads.
        mode: `zero` or `uniform`.
        scope: `all` (as in the paper) or `answer`.
        controls: Layer-matched random draws per K, at least 1.
        seed: Of draws, intervals and tests.
        max_new_tokens: Longest answer in tokens.
        known: Only questions that the model answers right without a passage.
        least: Fewest usable records.

    Raises:
        HeadwiseError: A value that is none of these.
    """

    top: tuple[int, ...] = ()
    mode: str = "zero"
    scope: str = "all"
    controls: int = 5
    seed: int = 0
    max_new_tokens: int = 20
    known: bool = False
    least: int = LEAST

    def __post_init__(self) -> None:
        if any(k < 1 for k in self.top) or len(set(self.top)) != len(self.top):
            raise HeadwiseError(f"top must name different numbers of heads, each at least 1; got {list(self.top)}")
        for name, known in (("mode", MODES), ("scope", SCOPES)):
            if getattr(self, name) not in known:
                raise HeadwiseError(f"unknown ablation {name} {getattr(self, name)!r}; use {', '.join(known)}")
        for name, least in (("controls", 1), ("seed", 0), ("max_new_tokens", 1), ("least", 1)):
            if getattr(self, name) < least:
                raise HeadwiseError(f"{name} must be at least {least}; got {getattr(self, name)}")


@dataclass(frozen=True)
class ConflictResult:
    """Conflict curves.

    Attributes:
        variants: Side (`context`, `memory`) -> which heads were taken away; the first of each is `none`.
        values: Side -> what is counted (`memory`, `passage`) -> [variant, record], 1 where the answer mentions it.
        items: One description per record, with the answer of the whole model.
        seed: Of intervals and tests.
        provenance: All that is needed to repeat it.
    """

    variants: Mapping[str, tuple[Variant, ...]]
    values: Mapping[str, Mapping[str, Table]]
    items: tuple[Mapping[str, Any], ...]
    seed: int
    provenance: Mapping[str, Any]

    def summary(self) -> list[dict[str, Any]]:
        """One row per side, count, K and kind.

        Returns:
            Rows with `metric` (such as `context_memory`: in-context heads gone, answers by memory counted), `kind` (none, top, random), `k`, `mean`
            with its 95 % interval over records (`low`, `high`); top rows: `change` from the whole model, `p_mcnemar` of it, `p_paired` (sign flips
            over records against the mean random draw) and `p_rank` (rank among the draws, in the direction that the paper expects); random
            rows: the value of every draw.
        """
        return [
            row
            for side in self.values
            for counted in COUNTED
            for kind, k in _places(self.variants[side])
            for row in [self._row(side, counted, kind, k)]
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, in the form of an ablation result, so that `headwise show` takes it."""
        told = {
            side: [{"kind": v.kind, "k": v.k, "draw": v.draw, "heads": [str(head) for head in v.heads]} for v in variants]
            for side, variants in self.variants.items()
        }
        values = {side: {name: table.astype(int).tolist() for name, table in own.items()} for side, own in self.values.items()}
        counts = {"items": len(self.items), "item_info": [dict(item) for item in self.items]}
        return {**self.provenance, **counts, "variants": told, "values": values, "summary": self.summary()}

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write the result as JSON, atomically. Raises `HeadwiseError` if the file exists and is not to be replaced."""
        write_json(self.to_json(), path, overwrite)

    def _row(self, side: str, counted: str, kind: Kind, k: int) -> dict[str, Any]:
        table, variants = self.values[side][counted], self.variants[side]
        found = [i for i, variant in enumerate(variants) if (variant.kind, variant.k) == (kind, k)]
        mean, low, high = bootstrap_mean(table[found].mean(axis=0), draws=DRAWS, seed=self.seed)
        row: dict[str, Any] = {"metric": f"{side}_{counted}", "kind": kind, "k": k, "mean": mean, "low": low, "high": high}
        if kind == "random":
            means = table[found].mean(axis=1)
            return row | {"draws": means.tolist(), "sd_draws": float(means.std(ddof=1)) if len(means) > 1 else None}
        if kind == "none":
            return row
        controls = [i for i, variant in enumerate(variants) if (variant.kind, variant.k) == ("random", k)]
        sign = -1.0 if (side, counted) in RISES else 1.0
        drawn = table[controls]
        return row | {
            "change": mean - float(table[0].mean()),
            "p_mcnemar": mcnemar(table[0] > 0, table[found[0]] > 0),
            "p_paired": sign_flip_test(table[found[0]] - drawn.mean(axis=0), seed=self.seed),
            "p_rank": rank_p(sign * mean, sign * drawn.mean(axis=1)),
        }


def conflict_curves(
    model: Model,
    heads: Mapping[str, HeadScores | HeadSet],
    records: Sequence[KnowledgeRecord],
    composer: KnowledgeComposer,
    options: ConflictOptions | None = None,
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> ConflictResult:
    """Measure how often a model says the remembered and the passage's answer as K heads of one kind are ablated.

    Args:
        model: With its tokenizer.
        heads: `context` and `memory` (one or both): scores, or heads in an order, of in-context and of parametric heads.
        records: With swapped passages (`swap_answers`); those that cannot be used are dropped and counted.
        composer: Makes the prompts.
        options: How many heads, how ablated, controls.
        directory: Finished records are kept there and not run again.
        report: Called with (done, total, remark).

    Raises:
        HeadwiseError: Fewer than `options.least` usable records, unknown kinds of heads, heads of another model, a K without controls.
    """
    options = options or ConflictOptions()
    sides = _variants(model, heads, options)
    every = [variant for variants in sides.values() for variant in variants]
    sets, places = distinct_sets(every)
    for chosen in sets:
        model.check(chosen)
    used, dropped = usable_records(model, records, composer, options)
    said: list[list[str]] = []
    for number, record in enumerate(used):
        said.append(_answers(model, record, composer, sets, options, directory, number))
        report(number + 1, len(used), f"{len(sets)} sets of heads")
    values, start = {}, 0
    for side, variants in sides.items():
        own = [places[i] for i in range(start, start + len(variants))]
        start += len(variants)
        values[side] = _counted(used, [[texts[i] for i in own] for texts in said])
    items = tuple(
        {"name": one.label, "kind": one.kind, "answers": list(one.answers), "swapped": one.swapped_answer, "answer": texts[0]}
        for one, texts in zip(used, said, strict=True)
    )
    return ConflictResult(
        sides, values, items, options.seed, describe_conflict(model, heads, records, composer, options) | {"dropped": dropped}
    )


def describe_conflict(
    model: Model,
    heads: Mapping[str, HeadScores | HeadSet],
    records: Sequence[KnowledgeRecord],
    composer: KnowledgeComposer,
    options: ConflictOptions,
) -> dict[str, Any]:
    """All that decides the result as plain data; what a `RunDirectory` of `conflict_curves` is described by. Arguments as there."""
    told = json.dumps([record.row() for record in records], sort_keys=True).encode()
    return {
        "mode": options.mode,
        "scope": options.scope,
        "options": asdict(options),
        "head_files": {side: describe_scores(given_scores(found, model)) for side, found in heads.items()},
        "records": {"given": len(records), "digest": hashlib.sha256(told).hexdigest()[:16]},
        "composer": composer.describe(),
        "fingerprint": model.fingerprint,
    } | describe_model(model)


def usable_records(
    model: Model, records: Sequence[KnowledgeRecord], composer: KnowledgeComposer, options: ConflictOptions
) -> tuple[list[KnowledgeRecord], dict[str, int]]:
    """Records that set memory against a passage, and how many were dropped for which reason.

    Raises:
        HeadwiseError: Fewer than `options.least` are left.
    """
    dropped: Counter[str] = Counter()
    kept = []
    for record in records:
        reason = unusable(record, composer, model.positions, options.max_new_tokens)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(record)
    if options.known and kept:
        asked = steered_answers(
            model, [composer.closed(record) for record in kept], [HeadSet((), model.heads.shape)], _nothing,
            max_new_tokens=options.max_new_tokens,
        )  # fmt: skip
        known = [record for record, (answer,) in zip(kept, asked, strict=True) if mentions(answer.text, record.answers)]
        dropped["not known without a passage"] = len(kept) - len(known)
        kept = known
    if len(kept) < options.least:
        why = "; ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "none dropped"
        raise HeadwiseError(f"{len(kept)} of {len(records)} records can be used, and at least {options.least} are needed ({why})")
    return kept, dict(dropped)


def unusable(
    record: KnowledgeRecord, composer: KnowledgeComposer, positions: int | None, room: int, apart: bool = True
) -> str:
    """Why a record sets nothing against memory; empty if it does.

    Args:
        record: A question.
        composer: Makes its prompts.
        positions: Of the model; None: no limit.
        room: Tokens that the answer may have.
        apart: The answers must begin with different tokens.
    """
    if record.swapped is None:
        return "no swapped passage"
    if mentions(record.swapped_answer, record.answers) or mentions(record.answers[0], (record.swapped_answer,)):
        return "one answer contains the other"
    if apart and composer.first_token(record.answers[0]) == composer.first_token(record.swapped_answer):
        return "both answers begin with the same token"
    if positions is not None and len(composer.opened(record, swapped=True).ids) + room > positions:
        return "longer than the model's context"
    return ""


def _nothing(_: Sequence[Any], __: int) -> AbstractContextManager[Any]:
    return nullcontext()


def _variants(
    model: Model, heads: Mapping[str, HeadScores | HeadSet], options: ConflictOptions
) -> dict[str, tuple[Variant, ...]]:
    """Side -> no head, the top K and random ones."""
    if not heads or not set(heads) <= set(SIDES):
        raise HeadwiseError(f"conflict curves take the heads of {' and '.join(SIDES)}; got {', '.join(heads) or 'none'}")
    count = len(model.modules) * model.heads.shape[1]
    top = options.top or tuple(dict.fromkeys(max(1, round(SHARE * count * step / STEPS)) for step in range(1, STEPS + 1)))
    found = {}
    for side in SIDES:
        if side in heads:
            every = head_variants(given_scores(heads[side], model), top, options.controls, options.seed)
            found[side] = tuple(variant for variant in every if variant.kind != "bottom")
    return found


def _answers(
    model: Model, record: KnowledgeRecord, composer: KnowledgeComposer, sets: Sequence[HeadSet], options: ConflictOptions,
    directory: RunDirectory | None, number: int,
) -> list[str]:  # fmt: skip
    """Answers to one record with each set of heads ablated."""
    key = f"record-{number}"
    kept = directory.load(key) if directory else None
    if kept is not None:
        return [row["answer"] for row in kept[1]]

    def enter(chosen: Sequence[Any], last: int) -> AbstractContextManager[Any]:
        return ablate(model, list(chosen), options.mode, options.scope, last if options.scope == "answer" else None)

    prompt = composer.opened(record, swapped=True)
    (found,) = steered_answers(model, [prompt], sets, enter, options.scope, options.max_new_tokens)
    if directory:
        directory.save(key, {}, [{"answer": answer.text} for answer in found])
    return [answer.text for answer in found]


def _counted(records: Sequence[KnowledgeRecord], said: Sequence[Sequence[str]]) -> dict[str, Table]:
    """What is counted -> [variant, record]."""
    memory = [[mentions(text, record.answers) for text in texts] for record, texts in zip(records, said, strict=True)]
    passage = [[mentions(text, (record.swapped_answer,)) for text in texts] for record, texts in zip(records, said, strict=True)]
    return {"memory": np.asarray(memory, dtype=float).T, "passage": np.asarray(passage, dtype=float).T}


def _places(variants: Sequence[Variant]) -> list[tuple[Kind, int]]:
    """(kind, K) of all rows, once each, none first."""
    return list(dict.fromkeys((variant.kind, variant.k) for variant in variants))
