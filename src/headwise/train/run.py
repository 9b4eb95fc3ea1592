"""A whole training: resumable, and written out as an adapter and as a plain checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwise.heads.errors import HeadwiseError
from headwise.heads.headfile import write_json
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadSet
from headwise.models.adapters import merged
from headwise.models.export import appearing
from headwise.models.model import Model, describe_model
from headwise.models.names import STORY
from headwise.runtime.rundir import RunDirectory
from headwise.train.examples import Prepared
from headwise.train.lora import with_lora
from headwise.train.objectives import Objective
from headwise.train.options import Steps, Tuning
from headwise.train.tuning import describe_tuning, process, tune

STATES = "states"  # of the Trainer, inside the run directory


def train_to_folder(
    model: Model,
    data: Prepared,
    objective: Callable[[Model], Objective],
    options: Tuning,
    folder: Path,
    story: Mapping[str, Any],
    base: str = "",
    heads: HeadSet | None = None,
    report: Report = silent,
    tokens: Sequence[int] = (),
) -> dict[str, Any]:
    """Train an adapter and write `folder`: `adapter` (peft), `merged` (a plain checkpoint), `training.json` (options, counts, loss of every step).

    The folder appears when all is done. Until then `folder.run` beside it keeps the state; the same call goes on there. With torchrun only the first
    process writes.

    Args:
        model: Without an adapter; its layers run with the new one afterwards.
        data: What is learnt from.
        objective: Makes the loss for the model with its adapter.
        options: Of the training.
        folder: Must not exist, or be empty.
        story: What else decides the result, as plain data: data, heads, loss.
        base: The name that loads the model, which the adapter will ask for; default: the model's name.
        heads: For `options.rows`.
        report: `report(done, total, remark)` in steps.
        tokens: See `with_lora`; the tokenizer is saved with the adapter, too.

    Returns:
        The content of `training.json`.

    Raises:
        HeadwiseError: A folder that holds something, one that cannot be written, or as `with_lora` and `tune`.
        MissingExtraError: peft or accelerate is not installed.
    """
    told = describe_training(model, data, options, story)
    with resumable(folder, told) as states:
        trained = with_lora(model, options, heads, tokens)
        curve = tune(trained, data.examples, objective(trained), options, states, report)
        made = told | {"counts": data.counts, "curve": curve}
        if process() == 0:
            config = trained.adapter.peft_config[trained.adapter.active_adapter]
            config.base_model_name_or_path = base or model.name
            config.target_modules = sorted(config.target_modules)  # peft holds a set, whose order differs from process to process
            _write(trained, made, folder, tokens)
    return made


def describe_training(model: Model, data: Prepared, options: Steps, story: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the result of a training, as plain data: the model, the options, the examples, and `story`."""
    return describe_model(model) | {"fingerprint": model.fingerprint} | describe_tuning(options, data.examples) | dict(story)


@contextmanager
def resumable(folder: Path, told: Mapping[str, Any]) -> Iterator[Path]:
    """The folder in which the Trainer keeps its state while the block trains and writes `folder`; gone when the block has ended well.

    Args:
        folder: Of the result; must not exist, or be empty.
        told: All that decides the result; a state that was kept for another training is refused.

    Yields:
        The folder of the states, in `folder.run`.

    Raises:
        HeadwiseError: `folder` holds something, or `folder.run` belongs to another training or cannot be made.
    """
    check_folder(folder)
    beside = folder.with_name(folder.name + ".run")
    run = RunDirectory(beside, told) if process() == 0 else None
    if run is not None:
        run.save("begun", {}, [])  # the Trainer writes inside
    yield beside / STATES
    if run is not None:
        shutil.rmtree(beside / STATES, ignore_errors=True)
        run.remove()


def check_folder(folder: Path) -> None:
    """Raise `HeadwiseError` unless the folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HeadwiseError(f"{folder} exists and is not an empty folder; give a new one")


def _write(trained: Model, made: Mapping[str, Any], folder: Path, tokens: Sequence[int]) -> None:
    with appearing(folder, 2 * trained.hf.get_memory_footprint()) as temporary:
        # Without the look for new tokens in the base model, which peft would fetch from the hub.
        trained.adapter.save_pretrained(temporary / "adapter", save_embedding_layers=False)
        (temporary / "adapter" / "README.md").unlink()  # a form that nobody has filled in
        plain = merged(trained.adapter)
        plain.save_pretrained(temporary / "merged")
        if trained.tokenizer is not None:
            trained.tokenizer.save_pretrained(temporary / "merged")
        if tokens:
            trained.tokenizer.save_pretrained(temporary / "adapter")
        write_json(dict(made), temporary / STORY)
