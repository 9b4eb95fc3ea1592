"""Copy heads in the first turn: what needles cost without them, and what a start token in front of a needle does to their scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import headwise as hw
from headwise.claims.claim import Finding, Number
from headwise.claims.copy_heads import copy_heads
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.evaluation.ablation import AblationOptions, ablation_curve, describe_run
from headwise.heads.errors import NoSuccessfulRunError
from headwise.models.model import Model
from headwise.prompts.needles import Needle, NeedleComposer, bundled_needles
from headwise.prompts.prompt import Piece
from headwise.runtime.needle_runs import NeedleQuestions
from headwise.stats.paired import bootstrap_mean

COPIES = 8


def needle_options(bench: Bench) -> dict[str, Any]:
    """Lengths and depths of needle prompts of tests."""
    return {"lengths": [bench.pick(512, 256) if bench.real else 256], "depths": bench.pick(3, 1), "seed": bench.seed}


def recall(bench: Bench) -> Measured:
    """Needles of the test split with all heads, without the top copy heads, and without random ones of their layers."""
    scores = copy_heads(bench)
    needles = bundled_needles("test")
    task = NeedleQuestions(**needle_options(bench), needles=bench.pick(needles, needles[:3])).task(bench.model)
    options = AblationOptions((COPIES,), controls=bench.pick(20, 3), seed=bench.seed)
    if len(scores.ranking()) < 2 * COPIES:
        raise NotTestable(f"needs {2 * COPIES} heads: {COPIES} to take away, and as many others")
    cells = bench.cells("recall", describe_run(bench.model, scores, task, options))
    found = ablation_curve(
        bench.model, scores, options.top, controls=options.controls, seed=options.seed, task=task, perplexity=False, directory=cells,
        report=bench.report,
    )  # fmt: skip
    table = found.values["recall"]
    whole, top = table[found.rows_of("none", 0)[0]], table[found.rows_of("top", COPIES)[0]]
    drawn = table[found.rows_of("random", COPIES)].mean(axis=0)
    numbers: dict[str, Number] = {name: by_needle(found.items, values) for name, values in (("loss", whole - top), ("random", whole - drawn))}
    numbers["recall"] = float(whole.mean())
    heads = [str(head) for head in scores.top(COPIES)]
    return Measured({"doubt.needles.recall_needs_retrieval": Finding(numbers)}, {"heads": heads, "prompts": len(whole), "draws": options.controls})


def by_needle(info: Any, values: np.ndarray) -> Number:
    """Mean over needles with its interval: the same needle at several depths is one question."""
    groups: dict[Any, list[float]] = {}
    for row, value in zip(info, values, strict=True):
        groups.setdefault(row["needle"], []).append(float(value))
    mean, low, high = bootstrap_mean(np.asarray([np.mean(each) for each in groups.values()]))
    return mean, low, high


class SplicedComposer(NeedleComposer):
    """Needle prompts in which a start token stands in front of the needle, as splicing of whole tokenised texts leaves it there."""

    def _needle_pieces(self, needle: Needle) -> list[Piece]:
        start = self.builder.encoder.tokenizer.bos_token_id
        return [Piece(ids=() if start is None else (start,), names=("context",)), *super()._needle_pieces(needle)]

    def context_cost(self, needle: Needle) -> int:
        """Tokens of the needle and of the start token."""
        encoder = self.builder.encoder
        return 1 + sum(len(encoder.encode_checked(piece.text, piece.check)) for piece in super()._needle_pieces(needle))


class Spliced(hw.Copy):
    """The copy score on such prompts."""

    def task(self, model: Model) -> Any:
        """The same prompts as those of `Copy`, with a start token in front of each needle."""
        made = super().task(model)
        return replace(made, composer=SplicedComposer(made.composer.builder.encoder, made.composer.template, made.composer.chat))


def start_token(bench: Bench) -> Measured:
    """How far a spliced start token moves copy scores; and how far the same prompts do when they are run again."""
    model = bench.model
    if getattr(model.tokenizer, "bos_token_id", None) is None:
        raise NotTestable("needs a tokenizer with a start token")
    asked = needle_options(bench) | {"needles": bundled_needles("detect")[: bench.pick(8, 3)]}
    try:
        clean, again, spliced = (
            hw.find(model, kind(**asked), directory=bench.work / name, report=bench.report)
            for name, kind in (("clean", hw.Copy), ("again", hw.Copy), ("spliced", Spliced))
        )
    except NoSuccessfulRunError as why:
        raise NotTestable(str(why)) from why
    moved, same = (float(np.nanmax(np.abs(other.values - clean.values))) for other in (spliced, again))
    solved = {"clean": clean.provenance["solved"], "spliced": spliced.provenance["solved"], "prompts": clean.provenance["runs"]}
    finding = Finding({"moved": moved, "again": same, "recall": solved["clean"] / solved["prompts"]})
    return Measured({"doubt.needles.bos": finding}, {"solved": solved})
