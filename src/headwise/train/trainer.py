"""The Trainer of transformers with our losses and our order of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report
from headwise.train.examples import TrainExample, collate
from headwise.train.objectives import Objective
from headwise.train.options import Steps

COMPLETE = "complete"  # in a checkpoint's folder, written last: without it the process was killed while it wrote
NEW_TOKENS = "trainable_tokens"  # in peft's names of their embeddings
# Peak rate of new tokens, in standard deviations of the embedding. At the rate of an adapter they would hardly move from where they begin, and the
# model would not learn to tell them apart (measured: docs/methods/rhio.md).
TOKEN_RATE = 0.3
PROCESSES = 64  # the order of examples suffices for so many


class HeadTrainer(Trainer):  # type: ignore[misc]
    """A Trainer of one objective.

    Args:
        model: A `PeftModel`, or whatever else learns and takes what a transformers model takes.
        args: `TrainingArguments`.
        examples: What is learnt from.
        objective: The loss.
        options: Of the training.
        report: Is told the steps that are done.
    """

    def __init__(
        self, model: Any, args: Any, examples: Sequence[TrainExample], objective: Objective, options: Steps, report: Report
    ) -> None:
        super().__init__(
            model=model, args=args, train_dataset=Order(examples, options), data_collator=lambda rows: {"batch": collate(rows)}
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_Watch(lambda done: report(done, options.steps, f"loss {self._last:.3f}")))
        self.model_accepts_loss_kwargs = False  # so that the mean over the passes of a step is taken
        self._objective, self._passes = objective, options.accumulate
        self._last, self._parts = float("nan"), dict[str, float]()

    def create_optimizer(self, *args: Any, **named: Any) -> Any:
        """The Trainer's optimizer; embeddings of new tokens, which begin where no text has put them, learn at a rate of their own."""
        made = super().create_optimizer(*args, **named)
        new = [value for name, value in self.model.named_parameters() if value.requires_grad and NEW_TOKENS in name]
        if new:
            spread = float(self.model.get_input_embeddings().weight.detach().float().std(dim=0).mean())
            chosen = set(map(id, new))
            for group in made.param_groups:
                group["params"] = [value for value in group["params"] if id(value) not in chosen]
            made.add_param_group({"params": new, "lr": TOKEN_RATE * spread})
        return made

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The objective's loss of one pass.

        Raises:
            HeadwiseError: It is not finite.
        """
        parts = self._objective(model, inputs["batch"].to(self.args.device))
        self._last = float(parts["loss"].detach())
        if not np.isfinite(self._last):
            raise HeadwiseError(
                f"the loss of step {self.state.global_step + 1} is {self._last}; train with a smaller rate, or the model in float32"
            )
        for name in set(parts) - {"loss"}:
            self._parts[name] = self._parts.get(name, 0.0) + float(parts[name].detach()) / self._passes
        return parts["loss"]

    def log(self, logs: dict[str, float], *args: Any, **named: Any) -> None:
        """Keep the parts of the loss beside it, means over the passes of a step."""
        super().log(logs | self._parts if "loss" in logs else logs, *args, **named)
        self._parts = {}

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Order(torch.utils.data.Dataset[TrainExample]):
    """The examples in the order of training: one seeded permutation after the other, so that a resume sees what a whole run would."""

    def __init__(self, examples: Sequence[TrainExample], options: Steps) -> None:
        self._examples, self._seed = examples, options.seed
        self._length = PROCESSES * options.steps * options.batch * options.accumulate
        self._orders: dict[int, Sequence[int]] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> TrainExample:
        epoch, place = divmod(index, len(self._examples))
        if epoch not in self._orders:
            self._orders[epoch] = np.random.default_rng([self._seed, 83, epoch]).permutation(len(self._examples)).tolist()
        return self._examples[self._orders[epoch][place]]


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells the steps that are done, and marks complete checkpoints."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
