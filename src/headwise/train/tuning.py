"""Training by the Trainer of transformers, with an exact resume."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from headwise.heads.errors import HeadwiseError, MissingExtraError
from headwise.heads.progress import Report, silent
from headwise.models.fingerprint import tensors_digest
from headwise.models.model import Model, device_of
from headwise.train.examples import TrainExample
from headwise.train.objectives import Objective
from headwise.train.options import Steps
from headwise.train.trainer import COMPLETE, HeadTrainer

OTHERS = {"step", "epoch", "learning_rate"}  # what the Trainer logs beside the loss


def tune(
    model: Model,
    examples: Sequence[TrainExample],
    objective: Objective,
    options: Steps,
    states: Path | None = None,
    report: Report = silent,
    learner: torch.nn.Module | None = None,
) -> list[dict[str, float]]:
    """Train the adapter of a model, or another module around it, in place.

    The same call with the same folder of states continues where a killed one stopped, and ends with the same weights. Started by torchrun, every
    process reads its share of each step's examples (`batch` x `accumulate` per process).

    Args:
        model: With an adapter, see `with_lora`, unless there is a learner; its attention must have no dropout.
        examples: At least one.
        objective: The loss.
        options: Steps, rate and so on.
        states: Folder in which the state is kept every `options.save_every` steps; None: nothing is kept. It belongs to this training alone; the
            caller sees to that, and deletes it.
        report: `report(done, total, remark)` in steps.
        learner: What learns instead of the adapter: a module that takes what the transformers model takes, and runs it.

    Returns:
        One row per step: `step`, `loss`, its parts, and `grad_norm`.

    Raises:
        HeadwiseError: No adapter, no example, or a loss that is not finite.
        MissingExtraError: accelerate is not installed.
    """
    learner = model.adapter if learner is None else learner
    if learner is None:
        raise HeadwiseError(f"{model.name} has no adapter to train; make one with with_lora")
    if not examples:
        raise HeadwiseError("there is no example to train on")
    with _quiet():
        trainer = _trainer(model, learner, examples, objective, options, states, report)
        found = None if states is None else _latest(states)
        with _training(model, learner, options.checkpointing), objective.around():
            trainer.train(resume_from_checkpoint=None if found is None else str(found))
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [{name: float(row[name]) for name in ("step", *sorted(set(row) - OTHERS))} for row in rows]


def describe_tuning(options: Steps, examples: Sequence[TrainExample]) -> dict[str, Any]:
    """All that decides a training beside model and objective, as plain data."""
    flat = torch.tensor([number for one in examples for number in _numbers(one)])
    return {"tuning": asdict(options), "examples": len(examples), "digest": tensors_digest([("examples", flat)])}


def _numbers(one: TrainExample) -> Iterator[int]:
    """All of an example that training depends on; lengths stand in front of lists."""
    yield from (len(one.ids), one.answer, *one.asks, *one.ids)
    yield from (len(one.passages), *(edge for span in one.passages for edge in span), *one.gold)
    for text in one.alone:
        yield from (len(text), *text)


def _trainer(
    model: Model,
    learner: torch.nn.Module,
    examples: Sequence[TrainExample],
    objective: Objective,
    options: Steps,
    states: Path | None,
    report: Report,
) -> HeadTrainer:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("accelerate", "train") from error
    from transformers import TrainingArguments

    return HeadTrainer(learner, TrainingArguments(**_arguments(model, options, states)), examples, objective, options, report)


def _arguments(model: Model, options: Steps, states: Path | None) -> dict[str, Any]:
    return {
        "output_dir": str(states or "unused"),
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": options.accumulate,
        "learning_rate": options.rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(options.warmup * options.steps),
        "weight_decay": 0.0,
        "seed": options.seed,
        "save_strategy": "no" if states is None else "steps",
        "save_steps": options.save_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": device_of(model.hf).type == "cpu",
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }


def _latest(states: Path) -> Path | None:
    """The last complete checkpoint; those that were being written are deleted, so that the Trainer does not count them."""
    found: dict[int, Path] = {}
    for folder in states.glob("checkpoint-*"):
        if (folder / COMPLETE).is_file():
            found[int(folder.name.rpartition("-")[2])] = folder
        elif process() == 0:
            shutil.rmtree(folder)
    return found[max(found)] if found else None


def process() -> int:
    """Which of torchrun's processes this is; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def _training(model: Model, learner: torch.nn.Module, checkpointing: bool) -> Iterator[None]:
    """Training mode inside the block; afterwards every module is in the mode it was in."""
    before = [(module, module.training) for module in learner.modules()]
    if checkpointing:  # captured queries and keys have a gradient only in the non-reentrant form
        model.hf.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if checkpointing:
            model.hf.gradient_checkpointing_disable()
        for module, mode in before:
            module.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of the Trainer, whose progress `report` tells, and none of peft's doubts about models without a name."""
    loggers = [logging.getLogger(name) for name in ("transformers", "accelerate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="peft")
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


