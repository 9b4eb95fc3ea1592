"""Gate: find the KV heads whose restriction to sinks and recent tokens changes the output.

DuoAttention (Xiao et al. 2024, arXiv:2410.10819, section 2.2): one number per KV head is trained, the model is frozen. Differences from the
released code are listed in docs/methods/duoattention.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.caches.gated import gated, last_hidden
from headwise.caches.groups import Window
from headwise.heads import HeadScores, HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.maths.gates import gate_loss
from headwise.methods.duo.options import Gates
from headwise.methods.duo.prompts import LabelledText
from headwise.models.model import Model, as_model, describe_model, device_of

SCORE_VERSION = 1
STATED = ("steps", "rate", "sinks", "recent", "penalty", "form", "mix", "per", "seed", "min_right")
WINDOWS = 3  # a text must be this many times as long as what a streaming head sees
MIN_RATE = 0.1  # of the peak, at both ends of the schedule
ASKED = 8  # texts on which the teacher is checked


def gate_scores(model: Model, texts: Sequence[LabelledText], options: Gates | None = None, report: Report = silent) -> HeadScores:
    """Train the gates of all KV heads: the full model's last hidden state is distilled, with a penalty on the gates (section 2.2).

    Args:
        model: The model; it is frozen.
        texts: Such as `vault_texts` makes, of at least three windows (sinks + recent) each.
        options: Default: `Gates()`, with sinks and recent tokens by the shortest text.
        report: `report(done, total, remark)`; progress in training steps.

    Returns:
        [layer, head]: every query head carries the gate of its KV head; NaN for layers without full attention. Gates may lie
        slightly outside [0, 1], as the last step is not clamped. provenance holds the options and the loss of every step,
        `tables["mean_gates"]` [layer, KV head] the gates averaged over training.

    Raises:
        HeadwiseError: A model without full attention, or one that predicts too few of the labels; texts that are too short, too
            long, or missing.
    """
    options = options or Gates()
    sinks, recent = options.seen(min((len(text.ids) for text in texts), default=0))
    options, hf, full = replace(options, sinks=sinks, recent=recent), model.hf, model.heads.full_layers
    ids = _tensors(model, texts, sinks + recent)
    right = _share_right(hf, texts[:ASKED], ids)
    if right < options.min_right:
        raise HeadwiseError(
            f"the model predicts {right:.0%} of the label tokens by itself, so its gates would fit noise; give texts it can answer "
            f"(at least {options.min_right:.0%})"
        )
    gates = torch.nn.Parameter(
        torch.ones(model.heads.shape[0], model.heads.kv_heads if options.per == "head" else 1, device=device_of(hf))
    )
    optimiser = torch.optim.AdamW([gates], lr=options.rate, weight_decay=0.0)
    total, losses = torch.zeros_like(gates), []
    for step, number in enumerate(_order(len(texts), options)):
        with torch.no_grad():
            total += gates.clamp_(0, 1)
        optimiser.param_groups[0]["lr"] = options.rate * rate_factor(step, options.steps)
        optimiser.zero_grad()
        with gated(hf, gates.expand(-1, model.heads.kv_heads), Window(sinks, recent), options.mix) as gating:
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


def describe_run(model: Model, texts: Sequence[LabelledText], options: Gates) -> dict[str, Any]:
    """All that decides the result, as plain data; a digest stands for the texts."""
    digest = hashlib.sha256(repr([(text.ids, text.places) for text in texts]).encode()).hexdigest()[:16]
    made = {
        "score": "gate",
        "score_version": SCORE_VERSION,
        "options": {name: getattr(options, name) for name in STATED},
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


def rate_factor(step: int, steps: int) -> float:
    """Factor on the peak learning rate: up in the first fifth of the steps, down in the last (the released code's 400 of 2,000).

    Args:
        step: In [0, steps).
        steps: In all.

    Returns:
        In [0.1, 1].
    """
    ramp = steps / 5
    return min(1.0, max((step + 1) / ramp, MIN_RATE), max((steps - step) / ramp, MIN_RATE))


def _order(count: int, options: Gates) -> list[int]:
    """One text per step: all of them in a seeded order, again and again."""
    rng, rounds = np.random.default_rng([options.seed, 13]), -(-options.steps // count)
    return [int(i) for _ in range(rounds) for i in rng.permutation(count)][: options.steps]


def _tensors(model: Model, texts: Sequence[LabelledText], window: int) -> list[Tensor]:
    """Ids [1, T] on the device; refuses texts that are too short or too long, and none at all."""
    least, most = WINDOWS * window, model.positions
    lengths = sorted(len(text.ids) for text in texts)
    if not lengths or lengths[0] < least or (most is not None and lengths[-1] > most):
        raise HeadwiseError(
            f"gates need texts of at least {WINDOWS} x (sinks + recent) = {least} tokens that fit the model's {most or 'unlimited'} positions; "
            f"got {f'{lengths[0]} to {lengths[-1]}' if lengths else 'none'}"
        )
    return [torch.tensor([text.ids], device=device_of(model.hf)) for text in texts]
