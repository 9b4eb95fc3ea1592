"""What is minimised: the loss of the answer, alone or with a loss on chosen heads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from headwise.train.examples import Batch

Call = Callable[..., Any]


class Objective(Protocol):
    """A loss of one batch."""

    def around(self) -> AbstractContextManager[Any]:
        """A block that the whole training runs in."""

    def __call__(self, call: Call, batch: Batch) -> dict[str, Tensor]:
        """The loss.

        Args:
            call: The model as the Trainer has wrapped it; takes what the transformers model takes.
            batch: On the model's device.

        Returns:
            `loss`, a scalar with gradients, and parts of it to be told, without.
        """


class AnswerLoss:
    """Plain fine-tuning: cross-entropy of the answer's tokens and of the end behind it, mean per example, then over examples."""

    def around(self) -> AbstractContextManager[Any]:
        """Nothing."""
        return nullcontext()

    def __call__(self, call: Call, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        return {"loss": answer_loss(call, batch)}


def answer_loss(call: Call, batch: Batch) -> Tensor:
    """Cross-entropy of the answers' tokens in float32; logits are computed only where they are asked for.

    Args:
        call: See `Objective`.
        batch: See `Objective`.

    Returns:
        A scalar: mean over tokens, then over examples.
    """
    spans = [(one.answer, len(one.ids)) for one in batch.examples]
    rows = torch.cat([torch.full((stop - start,), row) for row, (start, stop) in enumerate(spans)])
    targets = torch.cat([torch.arange(start, stop) for start, stop in spans])
    places, at = torch.unique(targets - 1, return_inverse=True)
    weights = torch.cat([torch.full((stop - start,), 1 / (stop - start)) for start, stop in spans]) / len(spans)
    device = batch.ids.device
    out = call(input_ids=batch.ids, logits_to_keep=places.to(device), use_cache=False)
    logits = out.logits[rows.to(device), at.to(device)].float()
    wanted = batch.ids[rows.to(device), targets.to(device)]
    return (torch.nn.functional.cross_entropy(logits, wanted, reduction="none") * weights.to(device)).sum()
