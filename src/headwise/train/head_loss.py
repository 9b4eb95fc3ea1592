"""A loss on chosen heads beside that of the answer: MuDAF (Liu et al. 2025, arXiv:2502.13963, card 3.4) and QRRanker (arXiv:2602.12192)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, distributed

from headwise.attention.capture import capture
from headwise.attention.depth import run_to_layer
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.maths.contrastive import Marked, RowLoss
from headwise.methods.mudaf.loss import Apart, MudafLoss
from headwise.methods.query.loss import RankLoss
from headwise.models.model import Model
from headwise.train.examples import Batch, TrainExample, padded
from headwise.train.objectives import Call, answer_loss


class HeadLoss:
    """(1 - alpha) x loss of the answer + alpha x loss on the heads.

    Args:
        model: With its adapter.
        loss: On the heads.
        alpha: In (0, 1]. The argument's default in MuDAF's code is 0.3, its script has 0.7. With 1 no answer is learnt, and only the layers
            up to the deepest chosen head run.

    Raises:
        HeadwiseError: alpha outside of (0, 1], heads of another model, or heads in layers with a sliding window.
    """

    def __init__(self, model: Model, loss: MudafLoss | RankLoss, alpha: float) -> None:
        if not 0 < alpha <= 1:
            raise HeadwiseError(f"alpha must lie in (0, 1]; got {alpha:g} (for 0 train plainly)")
        model.check(loss.heads)
        if windowed := [head for head in loss.heads if model.heads.windows[head.layer] is not None]:
            raise HeadwiseError(f"{windowed[0]} has a sliding window and does not see all passages; choose heads of other layers")
        self._model, self._loss, self._alpha = model, loss, alpha
        self._layers = {head.layer for head in loss.heads}

    def around(self) -> AbstractContextManager[Any]:
        """Our attention, also where gradient checkpointing runs layers again in the backward pass."""
        return attached(self._model)

    def __call__(self, call: Call, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`; parts are `answer` (not with alpha 1) and `heads`."""
        apart = self._loss if isinstance(self._loss, MudafLoss) and self._loss.mode == "separate" else None
        if self._alpha == 1 and not distributed.is_initialized():
            found = self._alone(batch, apart) if apart else self._to_deepest(batch)
            return {"loss": found.loss, "heads": found.loss}
        if apart:
            found, answer = self._alone(batch, apart), self._answer(call, batch)
        else:
            with capture(self._model, self._layers) as seen:
                answer = self._answer(call, batch)
                found = self._loss(seen, marks(batch))
        loss = (1 - self._alpha) * answer + self._alpha * found.loss
        return {"loss": loss, "heads": found.loss} | ({"answer": answer} if self._alpha < 1 else {})

    def _answer(self, call: Call, batch: Batch) -> Tensor:
        """The loss of the answers; with alpha 1 a pass all the same, because every process must send gradients of all weights."""
        if self._alpha < 1:
            return answer_loss(call, batch)
        logits: Tensor = call(input_ids=batch.ids, logits_to_keep=1, use_cache=False).logits
        return logits.float().mean()  # times 1 - alpha, which is 0

    def _to_deepest(self, batch: Batch) -> RowLoss:
        with capture(self._model, self._layers) as seen:
            run_to_layer(self._model.hf, self._loss.deepest, batch.ids, gradients=True)
            return self._loss(seen, marks(batch))

    def _alone(self, batch: Batch, loss: MudafLoss) -> RowLoss:
        """Each question and each passage in a row of its own (MuDAF's released code)."""
        rows: list[tuple[int, ...]] = []
        questions = []
        for one in batch.examples:
            first = len(rows)
            rows += one.alone
            questions.append(Apart(first, tuple(range(first + 1, len(rows))), one.gold))
        with capture(self._model, self._layers) as seen:
            run_to_layer(self._model.hf, loss.deepest, padded(rows).to(batch.ids.device), gradients=True)
            return loss(seen, questions, [len(row) for row in rows])


def marks(batch: Batch) -> list[Marked]:
    """Where the questions and passages of a batch stand."""
    return [_mark(row, one) for row, one in enumerate(batch.examples)]


def _mark(row: int, one: TrainExample) -> Marked:
    return Marked(row, (one.asks.start, one.asks.stop), tuple((span.start, span.stop) for span in one.passages), one.gold)
