"""Gate: find the KV heads whose restriction to sinks and recent tokens changes the output.

DuoAttention (Xiao et al. 2024, arXiv:2410.10819, section 2.2): one number per KV head is trained, the model is frozen. Differences from the
released code are listed in docs/methods/duoattention.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.caches.groups import Window
from headwise.heads import HeadScores, HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.methods.duo.formula import PENALTIES, gate_loss, rate_factor
from headwise.methods.duo.gated import MIXES, gated, last_hidden
from headwise.methods.duo.prompts import LabelledText
from headwise.models.model import Model, as_model
from headwise.models.provenance import describe_model

SCORE_VERSION = 1
PER = ("head", "layer")
WINDOWS = 3  # a text must be this many times as long as what a streaming head sees
ASKED = 8  # texts on which the teacher is checked


@dataclass(frozen=True)
class GateOptions:
    """How gates are found; the defaults are DuoAttention's.

    steps, rate: of AdamW without weight decay, one text per step; peak rate. sinks, recent: what a streaming head sees. penalty: weight of the
    mean gate; form `group` empties whole layers instead. mix: see `gated`. per: one gate per KV `head`, or one per `layer` for all of its
    heads. seed: order of the texts. least_right: share of label tokens that the model must predict by itself.
    """

    steps: int = 2000
    rate: float = 0.02
    sinks: int = 128
    recent: int = 256
    penalty: float = 0.05
    form: str = "mean"
    mix: str = "teacher"
    per: str = "head"
    seed: int = 0
    least_right: float = 0.5

    def __post_init__(self) -> None:
        for name, known in (("form", PENALTIES), ("mix", MIXES), ("per", PER)):
            if getattr(self, name) not in known:
                raise HeadwiseError(f"unknown {name} {getattr(self, name)!r}; use {' or '.join(known)}")
        for name, given, least in (("steps", self.steps, 1), ("sinks", self.sinks, 1), ("recent", self.recent, 1)):
            if given < least:
                raise HeadwiseError(f"{name} must be at least {least}; got {given}")
        if self.rate <= 0 or self.penalty < 0:
            raise HeadwiseError(f"the rate must be above 0 and the penalty not below; got {self.rate:g} and {self.penalty:g}")


def find_gates(
    model: Model, texts: Sequence[LabelledText], options: GateOptions | None = None, report: Report = silent
) -> HeadScores:
    """Gates of all KV heads; every query head carries that of its KV head, and layers without full attention NaN.

    texts: such as `vault_texts` makes. Values may lie slightly outside [0, 1] (the last step is not clamped). provenance holds the options
    and the loss of every step, tables["mean_gates"] [L, KV heads] the gates averaged over training. Raises `HeadwiseError` for a model without
    full attention, texts that are shorter than three windows or do not fit, and a model that cannot predict the labels.
    """
    options = options or GateOptions()
    hf, model, full = model.hf, model, model.heads.full_layers
    ids = _tensors(model, texts, options)
    right = _share_right(hf, texts[:ASKED], ids)
    if right < options.least_right:
        raise HeadwiseError(
            f"the model predicts {right:.0%} of the label tokens by itself, so its gates would fit noise; give texts it can answer "
            f"(at least {options.least_right:.0%})"
        )
    gates = torch.nn.Parameter(torch.ones(model.heads.shape[0], model.heads.kv_heads if options.per == "head" else 1, device=hf.device))
    optimiser = torch.optim.AdamW([gates], lr=options.rate, weight_decay=0.0)
    total, losses = torch.zeros_like(gates), []
    for step, number in enumerate(_order(len(texts), options)):
        with torch.no_grad():
            total += gates.clamp_(0, 1)
        optimiser.param_groups[0]["lr"] = options.rate * rate_factor(step, options.steps)
        optimiser.zero_grad()
        with gated(hf, gates.expand(-1, model.heads.kv_heads), Window(options.sinks, options.recent), options.mix) as gating:
            teacher, student = gating.both(ids[number], texts[number].places)
            loss = gate_loss(student, teacher, gates[full], options.form)
            (loss.distillation + options.penalty * loss.penalty).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append([float(f"{float(part.detach()):.4g}") for part in loss])
        report(step + 1, options.steps, f"distillation {losses[-1][0]:.3g}, mean gate {losses[-1][1]:.3g}")
    left_out = sorted(set(range(model.heads.shape[0])) - set(full))
    found = gates.detach().expand(-1, model.heads.kv_heads).double().cpu().numpy().copy()
    found[left_out] = np.nan
    provenance = describe_run(model, texts, options) | {
        "label_tokens_right": round(right, 6),
        "layers_left_out": left_out,
        "losses": dict(zip(("distillation", "penalty"), map(list, zip(*losses, strict=True)), strict=True)),
    }
    values = np.repeat(found, model.heads.shape[1] // model.heads.kv_heads, axis=1)
    averaged = (total / options.steps).expand(-1, model.heads.kv_heads).double().cpu().numpy()
    return HeadScores(values, "gate", SCORE_VERSION, provenance=provenance, tables={"mean_gates": averaged})


def describe_run(model: Model, texts: Sequence[LabelledText], options: GateOptions) -> dict[str, Any]:
    """All that decides the result, as plain data."""
    digest = hashlib.sha256(repr([(text.ids, text.places) for text in texts]).encode()).hexdigest()[:16]
    made = {
        "score": "gate",
        "score_version": SCORE_VERSION,
        "options": asdict(options),
        "texts": len(texts),
        "texts_digest": digest,
    }
    return made | {"lengths": [f(len(text.ids) for text in texts) for f in (min, max)]} | describe_model(model)


@torch.no_grad()
def _share_right(model: Any, texts: Sequence[LabelledText], ids: Sequence[Tensor]) -> float:
    right = []
    for text, row in zip(texts, ids, strict=False):
        said = as_model(model).readout.projection(last_hidden(model, row, text.places)).argmax(dim=-1)
        right += (said == row[:, [place + 1 for place in text.places]]).flatten().tolist()
    return float(np.mean(right))


def _order(count: int, options: GateOptions) -> list[int]:
    """One text per step: all of them in a seeded order, again and again."""
    rng, rounds = np.random.default_rng([options.seed, 13]), -(-options.steps // count)
    return [int(i) for _ in range(rounds) for i in rng.permutation(count)][: options.steps]


def _tensors(model: Model, texts: Sequence[LabelledText], options: GateOptions) -> list[Tensor]:
    """Ids [1, T] on the device; refuses texts that are too short or too long, and none at all."""
    least, most = WINDOWS * (options.sinks + options.recent), model.positions
    lengths = sorted(len(text.ids) for text in texts)
    if not lengths or lengths[0] < least or (most is not None and lengths[-1] > most):
        raise HeadwiseError(
            f"gates need texts of at least {WINDOWS} x (sinks + recent) = {least} tokens that fit the model's {most or 'unlimited'} positions; "
            f"got {f'{lengths[0]} to {lengths[-1]}' if lengths else 'none'}"
        )
    return [torch.tensor([text.ids], device=model.hf.device) for text in texts]
