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
from headwise.runtime.rundir import RunDirectory

SCORE_VERSION = 1
STATED = ("steps", "rate", "sinks", "recent", "penalty", "form", "mix", "per", "seed", "min_right")
WINDOWS = 3  # a text must be this many times as long as what a streaming head sees
MIN_RATE = 0.1  # of the peak, at both ends of the schedule
ASKED = 8  # texts on which the teacher is checked
SAVED = 20  # steps after which the state of the search is kept


class _Search:
    """Gates, their optimiser and what was seen so far: all that a step changes, so that a search can be kept and taken up again."""

    def __init__(self, gates: Tensor, rate: float) -> None:
        self.gates, self.total, self.losses = torch.nn.Parameter(gates), torch.zeros_like(gates), list[list[float]]()
        self.optimiser = torch.optim.AdamW([self.gates], lr=rate, weight_decay=0.0)

    @property
    def steps(self) -> int:
        """Done so far."""
        return len(self.losses)

    def keep(self, parts: RunDirectory) -> None:
        """As a cell of its own, named by its steps."""
        state = self.optimiser.state[self.gates]
        tensors = {"gates": self.gates.detach(), "total": self.total, "mean": state["exp_avg"], "square": state["exp_avg_sq"]}
        parts.save(f"step-{self.steps}", {name: own.cpu().numpy() for name, own in tensors.items()}, [{"losses": self.losses}])

    def take_up(self, parts: RunDirectory, steps: int) -> None:
        """Continue from the latest state that was kept, if there is one."""
        for step in range(steps // SAVED * SAVED, 0, -SAVED):
            if (cell := parts.load(f"step-{step}")) is not None:
                tensors = {name: torch.from_numpy(array).to(self.gates.device) for name, array in cell[0].items()}
                with torch.no_grad():
                    self.gates.copy_(tensors["gates"])
                self.total, self.losses = tensors["total"], cell[1][0]["losses"]
                own = {"step": torch.tensor(float(step)), "exp_avg": tensors["mean"], "exp_avg_sq": tensors["square"]}
                self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": {0: own}})
                return


def gate_scores(
    model: Model,
    texts: Sequence[LabelledText],
    options: Gates | None = None,
    report: Report = silent,
    parts: RunDirectory | None = None,
) -> HeadScores:
    """Train the gates of all KV heads: the full model's last hidden state is distilled, with a penalty on the gates (section 2.2).

    Args:
        model: The model; it is frozen.
        texts: Such as `vault_texts` makes, of at least three windows (sinks + recent) each.
        options: Default: `Gates()`, with sinks and recent tokens by the shortest text.
        report: `report(done, total, remark)`; progress in training steps.
        parts: Keeps the state every 20 steps; an interrupted search continues there and ends with the same result.

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
    shape = model.heads.shape[0], model.heads.kv_heads if options.per == "head" else 1
    search = _Search(torch.ones(shape, device=device_of(hf)), options.rate)
    if parts is not None:
        search.take_up(parts, options.steps)
    gates, losses = search.gates, search.losses
    for step, number in list(enumerate(_order(len(texts), options)))[search.steps :]:
        with torch.no_grad():
            search.total += gates.clamp_(0, 1)
        search.optimiser.param_groups[0]["lr"] = options.rate * rate_factor(step, options.steps)
        search.optimiser.zero_grad()
        with gated(hf, gates.expand(-1, model.heads.kv_heads), Window(sinks, recent), options.mix) as gating:
            teacher, student = gating.both(ids[number], texts[number].places)
            loss = gate_loss(student, teacher, gates[full], options.form)
            (loss.distillation + options.penalty * loss.penalty).backward()  # type: ignore[no-untyped-call]
        search.optimiser.step()
        losses.append([float(f"{float(part.detach()):.4g}") for part in loss])
        if parts is not None and search.steps % SAVED == 0:
            search.keep(parts)
        report(step + 1, options.steps, f"distillation {losses[-1][0]:.3g}, mean gate {losses[-1][1]:.3g}")
    return _scores(model, search, describe_run(model, texts, options) | {"label_tokens_right": round(right, 6)})


def _scores(model: Model, search: _Search, stated: dict[str, Any]) -> HeadScores:
    """The gates as scores of query heads; stated: what stands in the provenance beside the losses."""
    left_out = sorted(set(range(model.heads.shape[0])) - set(model.heads.full_layers))
    found = search.gates.detach().expand(-1, model.heads.kv_heads).double().cpu().numpy().copy()
    found[left_out] = np.nan
    losses = dict(zip(("distillation", "penalty"), map(list, zip(*search.losses, strict=True)), strict=True))
    values = np.repeat(found, model.heads.shape[1] // model.heads.kv_heads, axis=1)
    averaged = (search.total / search.steps).expand(-1, model.heads.kv_heads).double().cpu().numpy()
    provenance = stated | {"layers_left_out": left_out, "losses": losses}
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
