"""Draft heads that were trained in several ways, as choosers over held-out text and needles."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.attention.sparse import Chooser
from headwise.caches import choosers
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.specontext.cells import Cells, MissingError, answered, budget_for, drawn, interval, length_for
from headwise.claims.specontext.decode import NEEDLE, measured, running
from headwise.evaluation.contexts import Context
from headwise.evaluation.sparse import TEXT, Rival, Running
from headwise.evaluation.tasks import needle_contexts
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.methods.specontext.chooser import Distilled
from headwise.methods.specontext.train import HELD_OUT, ChooserTraining, train_chooser
from headwise.models.draft_head import DraftHead, read_draft_head, shape_for
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack, bundled_texts

LENGTH, TRAINED, SHORT = 1024, 512, 128
TRAININGS: dict[str, dict[str, Any]] = {
    "attention": {}, "emb": {"inputs": "emb"}, "feat-lite": {"inputs": "feat-lite"}, "tokens": {"loss": "tokens"}, "labels": {"loss": "labels"},
    "short": {"length": SHORT, "batch": 8},
}  # fmt: skip


class Permuted(Distilled):
    """The KV heads use the choices of others: head g that of g + places."""

    name = "permuted"

    def __init__(self, file: DraftHead, places: int) -> None:
        super().__init__(file)
        self._shift = places

    def scores(self, call: Any, whole: Any) -> Tensor | None:
        """Those of the identity, rolled over the KV heads."""
        found = super().scores(call, whole)
        return None if found is None else found.roll(self._shift, dims=1)


def trained(bench: Bench, name: str, text: Haystack, options: ChooserTraining, heads: Heads | None = None) -> DraftHead:
    """A draft head as a file of it gives it back, in bfloat16; the training goes on where it was stopped.

    Args:
        bench: Of the experiment.
        name: Of the folder that keeps the training's state.
        text: Learnt from; its last twentieth is held out.
        options: Of the training.
        heads: Retrieval heads, whose attention counts.

    Raises:
        NotTestable: The model cannot be learnt from, as its output projection is packed, or its positions are too few.
    """
    model = bench.model
    named = None if heads is None else [str(head) for head in model.check(heads)]
    said = describe_model(model) | {"options": asdict(options), "text": text.digest, "heads": named}
    try:
        made = train_chooser(model, text, options, heads, partial(_tell, bench, name), bench.cells(f"train-{name}", said))
    except HeadwiseError as why:
        raise NotTestable(f"no draft head could be trained: {why}") from why
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "draft.safetensors")
        return read_draft_head(Path(folder) / "draft.safetensors")


def _tell(bench: Bench, name: str, done: float, total: float, remark: str) -> None:
    bench.report(done, total, f"training {name}, {remark}")


def untrained(model: Model) -> DraftHead:
    """A draft head with its first weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DraftHead(shape_for(model, "emb+feat", TRAINED)).eval().requires_grad_(False)


def rivals_of(model: Model, heads: dict[str, DraftHead], budget: int) -> list[Rival]:
    """Everything that is measured."""
    made: dict[str, Callable[[], Chooser]] = {
        "streaming": choosers.Streaming, "random": choosers.Random, "oracle": choosers.Oracle, "previous_query": choosers.PreviousQuery,
        **{name: partial(Distilled, head) for name, head in heads.items() if name != "short"},
        "emb, dilated": partial(Distilled, heads["emb"], dilate=1), "batch": partial(Distilled, heads["attention"], level="batch"),
        "short, stretched": partial(Distilled, heads["short"]), "short, plain": partial(Distilled, heads["short"], stretch=False),
        **{f"permuted {i}": partial(Permuted, heads["attention"], i) for i in range(1, model.heads.kv_heads)},
    }  # fmt: skip
    return [Rival(name, budget, make) for name, make in made.items()]


class Taught:
    """What the claims ask of the cells.

    Args:
        cells: All cells.
        budget: Of all choosers.
        kv_heads: Of the model.
    """

    def __init__(self, cells: Cells, budget: int, kv_heads: int) -> None:
        self._cells, self._budget, self._kv_heads = cells, budget, kv_heads

    def all(self) -> dict[str, Finding]:
        """Claim, without its family -> finding."""
        recall, mass = partial(self._text, "recall"), partial(self._text, "mass")
        return answered(
            {
                "draft_attends": lambda: recall("tokens", "untrained"), "teacher_above_labels": lambda: recall("tokens", "labels"),
                "attention_above_tokens": lambda: mass("attention", "tokens"), "head_above_batch": lambda: mass("attention", "batch"),
                "input_matters": lambda: self._cells.difference(NEEDLE, "attention", "emb", self._budget, "score"),
                "dilation_repairs": self._dilation, "heads_are_interchangeable": self._interchangeable, "stretching_helps": self._stretching,
            }
        )  # fmt: skip

    def _text(self, what: str, one: str, other: str) -> Finding:
        return self._cells.difference(TEXT, one, other, self._budget, what)

    def _values(self, task: str, name: str, what: str) -> Any:
        return self._cells.values(task, name, self._budget, what)

    def _dilation(self) -> Finding:
        full = self._cells.full(NEEDLE)
        try:
            emb, wide, both = (self._values(NEEDLE, name, "score") for name in ("emb", "emb, dilated", "attention"))
        except MissingError:
            return Finding.none(f"the full model scores {full.mean():.2f} on needles; 0.3 is needed, or no chooser is run")
        gap = float((both - emb).mean())
        nothing = (float("nan"),) * 3
        repaired = interval((wide - emb) / gap) if gap else (nothing[0], nothing[1], nothing[2])
        return Finding({"full_score": interval(full), "gap": interval(both - emb), "repaired": repaired})

    def _interchangeable(self) -> Finding:
        if self._kv_heads < 2:
            raise MissingError("the model has one KV head, so there is nothing to permute")
        own = self._values(TEXT, "attention", "mass")
        mixed = np.mean([self._values(TEXT, f"permuted {i}", "mass") for i in range(1, self._kv_heads)], axis=0)
        return Finding({"change": interval(mixed - own), "batch_change": interval(self._values(TEXT, "batch", "mass") - own)})

    def _stretching(self) -> Finding:
        found = self._text("recall", "short, stretched", "short, plain")
        long = self._values(TEXT, "attention", "recall") - self._values(TEXT, "short, plain", "recall")
        return Finding({**found.numbers, "control": interval(long)}, found.p)


def measure(bench: Bench) -> Measured:
    """Train in six ways, measure all of them over the same contexts."""
    model = bench.model
    length = length_for(model, bench.pick(LENGTH, 512))
    budget, steps, contexts = budget_for(length, 16), bench.pick(48, 8), bench.pick(8, 2)
    text = Haystack(bundled_texts(), PieceEncoder(model.tokenizer))
    small = bench.pick({}, {"rows": 16, "words": 512})
    training_steps = bench.pick(100 if bench.real else 300, 4)
    ways = {name: {"steps": training_steps, "length": bench.pick(TRAINED, SHORT)} | small | changes for name, changes in TRAININGS.items()}
    heads = {name: trained(bench, name, text, ChooserTraining(seed=bench.seed, **changes)) for name, changes in ways.items()}
    heads["untrained"] = untrained(model)
    asked = drawn(partial(needle_contexts, model, NEEDLE, length, contexts, 1, "test", bench.seed))
    given: list[Context | Running] = [*running(model, length, contexts, steps, bench.seed, text, HELD_OUT), *asked]
    cells = measured(bench, "choosers", rivals_of(model, heads, budget), given, None, {"trainings": ways})
    curves = {name: head.story["curve"] for name, head in heads.items() if head.story}
    found = Taught(cells, budget, model.heads.kv_heads).all()
    details = {"length": length, "budget": budget, "contexts": contexts, "steps": steps, "rows": cells.table(), "training": curves}
    return Measured({f"distilled.{name}": one for name, one in found.items()}, details)
