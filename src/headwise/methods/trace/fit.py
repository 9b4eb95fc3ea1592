"""Fitting the probe: Kahardipraja et al. 2025 (arXiv:2505.15807, sec. 6), with calibration, intervals and two more kinds of negatives.

`paired` is the paper's: one prompt with a swapped passage gives both classes, the swapped answer's token (read) and the right answer's
(remembered), if both are among the model's `among` most likely ones. `closed` and `unrelated` are ours and ask the user's question, whether a
word that was *said* was read or remembered: read is the swapped answer's token, remembered what the model says without a
passage, or beside the passage of another question.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError, NoSuccessfulRunError
from headwise.heads.plain import checked_seed
from headwise.heads.progress import Report, silent
from headwise.heads.types import Heads, HeadSet
from headwise.methods.trace.options import NEGATIVES, FitOptions
from headwise.models.fingerprint import tokenizer_digest, weights_digest
from headwise.models.model import Model, describe_model, need_tokenizer
from headwise.prompts.encoder import PieceEncoder, control_tokens, newline_ids
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord
from headwise.prompts.swaps import swap_answers
from headwise.runtime.head_probe import BAND, Probe
from headwise.runtime.rundir import RunDirectory
from headwise.runtime.token_cases import Cases, measure_cases
from headwise.stats.places import best_position, offset_to, usual_shift
from headwise.stats.probes import best_threshold, bootstrap_auc, platt, reliability, ridge

LEAST = 50  # usable records
PARTS = {"train": 0.5, "dev": 0.2, "test": 0.3}
SAME = "the two answers begin with the same token"
Values = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass
class Fitting:
    """Records of a model, ready to be measured.

    Attributes:
        model, heads, composer, options: As given.
        records: Those whose prompts fit into the model.
        dropped: Reason -> number of the others.
    """

    model: Model
    heads: HeadSet
    composer: KnowledgeComposer
    options: FitOptions
    records: list[KnowledgeRecord]
    dropped: Counter[str]

    def describe(self) -> dict[str, Any]:
        """All that decides the measurements, for a run directory and for the probe's file."""
        rows = json.dumps([record.row() for record in self.records], sort_keys=True)
        return {
            "model": describe_model(self.model),
            "weights": weights_digest(self.model.hf),
            "heads": [str(head) for head in self.heads],
            "beside": self.options.negatives == "unrelated",
            "wording": self.composer.describe(),
            "records": len(self.records),
            "data": hashlib.sha256(rows.encode()).hexdigest()[:16],
        }


def prepare(model: Model, records: Sequence[KnowledgeRecord], heads: Heads, options: FitOptions | None = None) -> Fitting:
    """Swap answers and drop what cannot be used, before the model runs.

    Args:
        model: With its tokenizer.
        records: Questions with passages.
        heads: Best from `headwise detect retrieval`.
        options: See `FitOptions`.

    Raises:
        HeadwiseError: No heads, no tokenizer, or fewer than 50 records are left.
    """
    model, options = need_tokenizer(model, "fitting a probe"), options or FitOptions()
    chosen, dropped = model.check(heads), Counter[str]()
    if not len(chosen):
        raise HeadwiseError("no heads to fit a probe on; choose at least one")
    swapped = sorted(swap_answers(records, options.seed, dropped), key=lambda r: len(r.passage.text) if r.passage else 0)
    shots, rest = swapped[: options.shots], swapped[options.shots :]
    composer = KnowledgeComposer(PieceEncoder(model.tokenizer), options.wording, examples=shots)
    order = np.random.default_rng([options.seed, 81]).permutation(len(rest))[: options.records]
    usable = []
    for record in (rest[i] for i in order):
        longest = len(composer.opened(record, swapped=True).ids)
        if model.positions is not None and longest > model.positions:
            dropped[f"more than {model.positions} tokens"] += 1
        elif composer.first_token(record.swapped_answer) == composer.first_token(record.answers[0]):
            dropped[SAME] += 1
        else:
            usable.append(record)
    _enough(len(usable), dropped)
    return Fitting(model, chosen, composer, options, usable, dropped)


def fit_probe(fitting: Fitting, directory: RunDirectory | None = None, report: Report = silent) -> Probe:
    """Measure the records and fit; half of them train, a fifth sets threshold, calibration and shift, the rest tests.

    Args:
        fitting: Of `prepare`.
        directory: Where finished batches are kept, if wanted.
        report: `report(done, total, remark)`.

    Raises:
        HeadwiseError: Fewer than 50 records can be used; the reasons are counted.
    """
    model = fitting.model
    special = frozenset((*control_tokens(model.tokenizer), *newline_ids(model.tokenizer), *model.stop_ids))
    beside = fitting.options.negatives == "unrelated"
    cases = measure_cases(model, fitting.heads, fitting.records, fitting.composer, special, beside, directory, report)
    return probe_of(fitting, cases)


def probe_of(fitting: Fitting, cases: Cases) -> Probe:
    """The probe of measured records; see `fit_probe`."""
    model, options, dropped = fitting.model, fitting.options, fitting.dropped
    usable, reasons = usable_records(cases, options)
    _enough(int(usable.sum()), dropped + reasons)
    parts = split(len(usable), options.seed)
    train, dev, test = (labelled(cases, options, parts[name]) for name in PARTS)
    linear = ridge(train[0], train[1], options.penalty)
    scores = linear.scores(dev[0])
    calibration, threshold = platt(scores, dev[1]), best_threshold(scores, dev[1])
    shift = usual_shift(offsets(cases, linear.weights, parts["dev"][usable[parts["dev"]]]))
    plain = describe_model(model)
    probe = Probe(
        fitting.heads, tuple(map(float, linear.weights)), linear.bias, threshold, calibration, BAND, shift,
        weights_digest(model.hf), tokenizer_digest(model.tokenizer),
    )  # fmt: skip
    held = probe.probability(test[0])
    error, curve = reliability(held, test[1])
    right = (linear.scores(test[0]) >= threshold) == test[1]
    facts = {
        "model": plain["model"],
        "provenance": plain,
        "options": asdict(options),
        "description": fitting.describe(),
        "records": {
            "given": len(usable) + sum(fitting.dropped.values()),
            "usable": int(usable.sum()),
            "dropped": dict(dropped + reasons),
        },
        "split": {
            name: [len(parts[name]), int(part[1].sum()), int((~part[1]).sum())]
            for name, part in zip(PARTS, (train, dev, test), strict=True)
        },
        "auc": {name: area(cases, replace(options, negatives=name), parts["test"], probe) for name in NEGATIVES},
        "accuracy": float(right.mean()),
        "calibration_error": error,
        "calibration_curve": curve,
        "localisation": localisation(cases, linear.weights, shift, parts["test"][usable[parts["test"]]]),
    }
    return replace(probe, facts=facts)


def split(records: int, seed: int) -> dict[str, Indices]:
    """Part -> indices of records, drawn with the seed; see `PARTS`."""
    order = np.random.default_rng([checked_seed(seed), 18]).permutation(records)
    first, second = round(PARTS["train"] * records), round((PARTS["train"] + PARTS["dev"]) * records)
    return dict(zip(PARTS, np.split(order, [first, second]), strict=True))


def usable_records(cases: Cases, options: FitOptions) -> tuple[NDArray[np.bool_], Counter[str]]:
    """[N] records that give a read token, and why the others do not."""
    reasons: Counter[str] = Counter()
    good = ~cases.same_token
    reasons[SAME] = int((~good).sum())
    remembered = cases.remembered_rank if options.memory == "right" else cases.said_rank
    wanted = [("the answer to be read", cases.read_rank), ("the remembered answer", remembered)]
    for name, ranks in wanted if options.negatives == "paired" else wanted[:1]:
        missing = good & (ranks >= options.among)
        reasons[f"{name} is not among the {options.among} most likely tokens"] = int(missing.sum())
        good = good & ~missing
    return good, +reasons


def labelled(cases: Cases, options: FitOptions, part: Indices) -> tuple[Values, NDArray[np.bool_], Indices]:
    """Features [n, K], labels [n] (True: read) and record numbers [n] of some records."""
    good = usable_records(cases, options)[0]
    chosen = part[good[part]]
    if options.negatives == "paired":
        others, negative = chosen, cases.remembered if options.memory == "right" else cases.said_features
    else:
        negative = cases.closed if options.negatives == "closed" else cases.unrelated
        others = part[np.isfinite(negative[part]).all(axis=1)]
    labels = np.arange(len(chosen) + len(others)) < len(chosen)
    return np.concatenate([cases.read[chosen], negative[others]]), labels, np.concatenate([chosen, others])


def area(cases: Cases, options: FitOptions, part: Indices, probe: Probe) -> dict[str, Any] | None:
    """AUC on one kind of negatives with its interval over records; None where a class is missing."""
    features, labels, groups = labelled(cases, options, part)
    if not labels.any() or labels.all():
        return None
    mean, low, high = bootstrap_auc(probe.linear.scores(features), labels, groups, seed=options.seed)
    return {"auc": mean, "low": low, "high": high, "read": int(labels.sum()), "remembered": int((~labels).sum())}


def offsets(cases: Cases, weights: Values, part: Indices, shift: int = 0, plain: bool = False) -> list[int]:
    """How far the best position lies behind the nearest mention of the answer, for records of a part. plain: heads count alike."""
    out = []
    for i in part:
        if cases.places[i]:
            trust = np.ones(len(weights)) if plain else weights * cases.read[i]
            out.append(offset_to(best_position(trust @ cases.looks[i], cases.allowed[i], shift), cases.places[i]))
    return out


def localisation(cases: Cases, weights: Values, shift: int, part: Indices) -> dict[str, Any]:
    """Shares of read answers whose first token was found, exactly and within two positions; and where else the best position lay."""
    raw, moved = offsets(cases, weights, part), offsets(cases, weights, part, shift)
    mean = offsets(cases, weights, part, shift, plain=True)
    counts = Counter(offset if abs(offset) <= 8 else "farther" for offset in raw)

    def share(found: Sequence[int], window: int) -> float | None:
        return float(np.mean([abs(offset) <= window for offset in found])) if found else None

    return {
        "records": len(raw), "shift": shift, "top1": share(moved, 0), "window2": share(moved, 2), "top1_without_shift": share(raw, 0),
        "top1_mean_row": share(mean, 0), "window2_mean_row": share(mean, 2), "offsets": {str(k): n for k, n in sorted(counts.items(), key=str)},
    }  # fmt: skip


def _enough(usable: int, dropped: Counter[str]) -> None:
    if usable < LEAST:
        reasons = (
            "; ".join(f"{count} dropped: {reason}" for reason, count in dropped.most_common() if count) or "no others were given"
        )
        raise NoSuccessfulRunError(f"{usable} usable records, and a probe needs at least {LEAST} ({reasons}); give more records")
