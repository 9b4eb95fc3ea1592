"""What holds exactly of the loss on heads: what it reaches, what it measures, and that a killed training goes on."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headwise.attention.capture import capture
from headwise.attention.depth import run_to_layer
from headwise.attention.head_rows import LayerRows, head_rows
from headwise.attention.plan import attached
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.heads.types import HeadId, HeadSet
from headwise.maths.contrastive import Marked, info_nce
from headwise.methods.mudaf.loss import MudafLoss
from headwise.models.model import Model
from headwise.models.projections import projections
from headwise.prompts.ranking_data import needle_examples
from headwise.train.examples import TrainExample, prepared
from headwise.train.head_loss import HeadLoss
from headwise.train.lora import with_lora
from headwise.train.options import Tuning
from headwise.train.tuning import tune

PASSAGES, HEADS, LENGTH = 4, 4, 400
Gradients = dict[str, Tensor]


def measure(bench: Bench) -> Measured:
    """All four claims on the same questions; heads are spread over the lower three quarters of the layers that see the whole text."""
    model = bench.load()  # one of our own: gradients are asked of its weights
    records = [replace(one, answers=("that one",)) for one in needle_examples(bench.pick(6, 3), PASSAGES, bench.seed)]
    if model.positions is not None and model.positions < LENGTH:
        raise NotTestable(f"needs a model that reads {LENGTH} tokens")
    examples = list(prepared(model, records, LENGTH, seed=bench.seed).examples)
    heads = some_heads(model)
    parts = {
        "per_head": partial(per_head, model, examples[0], heads), "mass": partial(mass, model, examples, heads),
        "layers": partial(layers, model, examples[0], heads), "resume": partial(resume, bench, examples, heads),
    }  # fmt: skip
    findings = {}
    for done, (name, find) in enumerate(parts.items()):
        bench.report(done, len(parts), name)
        findings[f"mudaf.exact.{name}"] = find()
    return Measured(findings, {"heads": [str(head) for head in heads], "questions": len(examples), "tokens": [len(one.ids) for one in examples]})


def some_heads(model: Model) -> HeadSet:
    """Heads of several layers, none of them in the last quarter."""
    usable = [layer for layer in sorted(model.modules) if model.heads.windows[layer] is None]
    lower = usable[: max(1, 3 * len(usable) // 4)]
    places = sorted({lower[round(i * (len(lower) - 1) / max(1, HEADS - 1))] for i in range(HEADS)})
    if not places:
        raise NotTestable("needs layers whose heads see the whole text")
    count = model.heads.shape[1]
    return HeadSet(tuple(HeadId(layer, (3 * i) % count) for i, layer in enumerate(places)), model.heads.shape)


def marked(example: TrainExample) -> Marked:
    """Where the question and its passages stand, in a batch of this example alone."""
    return Marked(0, (example.asks.start, example.asks.stop), tuple((span.start, span.stop) for span in example.passages), example.gold)


def gradients(model: Model, loss: Tensor) -> Gradients:
    """Name -> gradient, of all weights."""
    model.hf.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.detach().clone() for name, p in model.hf.named_parameters() if p.grad is not None}
    model.hf.zero_grad(set_to_none=True)
    return found


def per_head(model: Model, example: TrainExample, heads: HeadSet) -> Finding:
    """Gradients on the projections of keys: of the loss, and of the released code's form."""
    model.hf.requires_grad_(True)
    keys = {layer: projections(model, ("key",), [layer]) for layer in sorted({head.layer for head in heads})}

    def largest(found: Gradients, layer: int) -> float:
        return max(float(value.abs().max()) for name, value in found.items() if name.startswith(tuple(keys[layer])))

    losses, trains = [], []
    for head in heads:
        with capture(model) as seen:
            run_to_layer(model, heads[-1].layer, torch.tensor([example.ids]), gradients=True)
            loss = MudafLoss([head])(seen, [marked(example)]).loss
        losses.append(float(loss.detach()))
        trains.append(largest(gradients(model, loss), head.layer))
    nothing = gradients(model, torch.tensor(losses, requires_grad=True).mean())
    return Finding({"smallest": min(trains), "detached": max((float(value.abs().max()) for value in nothing.values()), default=0.0)})


@torch.no_grad()
def mass(model: Model, examples: list[TrainExample], heads: HeadSet) -> Finding:
    """The loss of every question and head, beside InfoNCE of what the head attends to in the last row of the prompt."""
    worst, losses, compared = 0.0, [], 0
    for one in examples:
        ids = torch.tensor([one.ids[: one.answer]])
        weights: dict[HeadId, Tensor] = {}

        def use(seen: LayerRows, weights: dict[HeadId, Tensor] = weights, length: int = one.answer) -> None:
            for head, row in zip(seen.heads, seen.attention(slice(0, 1), length)[0, :, 0], strict=True):
                weights[HeadId(seen.layer, head)] = row

        with head_rows(model.hf, heads, lambda now: 1, use):
            model.hf(input_ids=ids, use_cache=False)
        with capture(model) as seen:
            model.hf(input_ids=ids, use_cache=False)
            for head in heads:
                masses = torch.stack([weights[head][span.start : span.stop].sum() for span in one.passages])
                wanted = float(info_nce(masses.log(), one.gold).mean())
                losses.append(float(MudafLoss([head], pool="lse")(seen, [marked(one)]).loss))
                if bool((masses > 0).all()):  # a sharp head's softmax rounds far passages to 0, whose logarithm says nothing
                    compared += 1
                    worst = max(worst, abs(losses[-1] - wanted))
    return Finding({"largest_difference": worst, "loss": round(sum(losses) / len(losses), 4), "compared": round(compared / len(losses), 4)})


def layers(model: Model, example: TrainExample, heads: HeadSet) -> Finding:
    """Gradients of a pass to the deepest chosen head, beside those of a whole pass."""
    model.hf.requires_grad_(True)
    ids, loss, found = torch.tensor([example.ids]), MudafLoss(heads), []
    for whole in (True, False):
        with attached(model), capture(model) as seen:
            if whole:
                model.hf(input_ids=ids, use_cache=False)
            else:
                run_to_layer(model, loss.deepest, ids, gradients=True)
            found.append(gradients(model, loss(seen, [marked(example)]).loss))
    largest = max(float(value.abs().max()) for value in found[0].values())
    names = found[0].keys() | found[1].keys()
    zero = torch.zeros(())
    apart = max(float((found[0].get(name, zero) - found[1].get(name, zero)).abs().max()) for name in names)
    return Finding({"largest_difference": apart / largest, "layers": (loss.deepest + 1) / model.heads.shape[0]})


class _KilledError(Exception):
    """What ends a training in the middle."""


def resume(bench: Bench, examples: list[TrainExample], heads: HeadSet) -> Finding:
    """Weights of a training that is killed and goes on, and of a whole one."""
    options = Tuning(steps=4, batch=1, accumulate=1, rate=1e-3, rank=4, save_every=2, seed=bench.seed)

    def killed(done: float, total: float, remark: str) -> None:
        if done >= 3:
            raise _KilledError

    def trained(states: Path, kill: bool = False) -> dict[str, Tensor]:
        model = with_lora(bench.load(), options)
        arguments: dict[str, Any] = {"report": killed} if kill else {}
        tune(model, examples, HeadLoss(model, MudafLoss(heads), 0.7), options, states, **arguments)
        return {name: p.detach().clone() for name, p in model.adapter.named_parameters() if p.requires_grad}

    whole = trained(_fresh(bench.work / "whole"))
    states = _fresh(bench.work / "killed")
    with suppress(_KilledError):
        trained(states, kill=True)
    again = trained(states)
    apart = max(float((value - again[name]).abs().max()) for name, value in whole.items())
    learnt = max(float(value.abs().max()) for name, value in whole.items() if "lora_B" in name)
    return Finding({"largest_difference": apart, "learnt": learnt})


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder
