"""One scale per head that learns from few examples and goes into the weights: SEAL (arXiv:2501.15225, ACL 2025; no code was published)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headwise.attention.plan import attached
from headwise.attention.scale import LearntScaling
from headwise.heads.errors import HeadwiseError
from headwise.heads.headfile import save_heads, write_json
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadId, HeadScores, HeadSet
from headwise.models.export import appearing, restored
from headwise.models.model import Model, describe_model, device_of
from headwise.models.names import STORY
from headwise.models.weights import check_editable, scale_in_weights
from headwise.train.examples import Prepared, TrainExample
from headwise.train.objectives import AnswerLoss
from headwise.train.options import Steps
from headwise.train.run import describe_training, resumable
from headwise.train.tuning import describe_tuning, process, tune

SCALES = "scales.json"


def learn_scales(
    model: Model,
    examples: Sequence[TrainExample],
    options: Steps,
    heads: HeadSet | None = None,
    states: Path | None = None,
    report: Report = silent,
) -> tuple[HeadScores, list[dict[str, float]]]:
    """Learn by how much the output of each head should be multiplied, in front of the output projection, so that the answers become likelier.

    All scales begin at 1; all weights of the model stay as they are. A scale may end below 0: such a head is turned around.

    Args:
        model: Without an adapter; the same afterwards, bit for bit.
        examples: At least one; the paper learns from about 50.
        options: Steps, rate (1e-2 suits numbers that begin at 1) and so on.
        heads: Whose scales learn; None: all.
        states: See `tune`.
        report: See `tune`.

    Returns:
        The scales [layer, head] as scores called `scale` (1 for heads that did not learn, NaN where a layer has no heads), and one row per step as of
        `tune`.

    Raises:
        HeadwiseError: Weights into which scales cannot be merged (packed, offloaded, under an adapter), heads of another model, no head at all,
            or as `tune`.
        MissingExtraError: accelerate is not installed.
    """
    check_editable(model)
    chosen = scaled_heads(model, heads)
    learner = _Scaled(model, len(chosen))
    with _frozen(model.hf):
        rows = tune(model, examples, _ScaledAnswers(model, LearntScaling(chosen, learner.scales)), options, states, report, learner)
    values = np.full(model.heads.shape, np.nan)
    values[list(model.modules)] = 1.0
    for head, scale in zip(chosen, learner.scales.tolist(), strict=True):
        values[head] = scale
    told = describe_model(model) | describe_tuning(options, examples) | {"scaled_heads": _names(model, heads)}
    return HeadScores(values, "scale", 1, provenance=told), rows


def scales_to_folder(
    model: Model,
    data: Prepared,
    options: Steps,
    folder: Path,
    story: Mapping[str, Any],
    heads: HeadSet | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Learn scales and write `folder`: `scales.json` (a head file), `merged` (a plain checkpoint with the scales in its weights), `training.json`.

    It appears when all is done, and the same call goes on where a killed one stopped, as in `train_to_folder`.

    Args:
        model: See `learn_scales`.
        data: What is learnt from.
        options: See `learn_scales`.
        folder: Must not exist, or be empty.
        story: What else is told of the training, as plain data.
        heads: See `learn_scales`.
        report: See `tune`.

    Returns:
        The content of `training.json`.

    Raises:
        HeadwiseError: As `learn_scales`, a folder that holds something, or one that cannot be written.
        MissingExtraError: accelerate is not installed.
    """
    check_editable(model)
    told = describe_training(model, data, options, {**story, "scaled_heads": _names(model, heads)})
    with resumable(folder, told) as states:
        scores, curve = learn_scales(model, data.examples, options, heads, states, report)
        made = told | {"counts": data.counts, "curve": curve}
        if process() == 0:
            _write(model, replace(scores, provenance=told), made, folder)
    return made


def scaled_heads(model: Model, heads: HeadSet | None) -> list[HeadId]:
    """The heads whose scales learn: those given, or all. Raises `HeadwiseError` for none, or heads of another model."""
    chosen = [HeadId(layer, head) for layer, own in model.by_layer(heads).items() for head in own]
    if not chosen:
        raise HeadwiseError("no head to scale; choose at least one, or leave the heads out for all")
    return chosen


def _names(model: Model, heads: HeadSet | None) -> list[str] | str:
    return "all" if heads is None else [str(head) for head in scaled_heads(model, heads)]


def _write(model: Model, scores: HeadScores, made: Mapping[str, Any], folder: Path) -> None:
    factors = {HeadId(*map(int, place)): float(scores.values[tuple(place)]) for place in np.argwhere(np.isfinite(scores.values))}
    with appearing(folder, model.hf.get_memory_footprint()) as temporary:
        save_heads(scores, temporary / SCALES)
        with restored(model, model.modules):
            scale_in_weights(model.hf, factors)
            model.hf.save_pretrained(temporary / "merged")
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(temporary / "merged")
        write_json(dict(made), temporary / STORY)


class _ScaledAnswers(AnswerLoss):
    """The loss of the answer while the outputs of heads are multiplied."""

    def __init__(self, model: Model, step: LearntScaling) -> None:
        self._model, self._step = model, step

    @contextmanager
    def around(self) -> Iterator[None]:
        """Also where gradient checkpointing runs layers again in the backward pass."""
        with attached(self._model) as plan, plan.running(self._step):
            yield


class _Scaled(nn.Module):
    """A model and the scales of its heads, which alone are the state that the Trainer keeps."""

    def __init__(self, model: Model, count: int) -> None:
        super().__init__()
        self.model = model.hf
        self.scales = nn.Parameter(torch.ones(count, device=device_of(model.hf)))

    def forward(self, **given: Any) -> Any:
        return self.model(**given)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        return {"scales": self.scales.detach()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        found = super().load_state_dict(state, strict=False, assign=assign)
        found.missing_keys[:] = [name for name in found.missing_keys if not name.startswith("model.")]
        return found


@contextmanager
def _frozen(hf: nn.Module) -> Iterator[None]:
    """No weight of the model learns inside the block."""
    learning = [parameter for parameter in hf.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
