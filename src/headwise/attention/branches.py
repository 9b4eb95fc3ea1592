"""Branches of one text, the unchanged model and the model with some heads ablated (one set of heads or several), and the losses in each.

Below the first layer with an ablated head all are equal, so these layers run once; from there on the branches are the parts of a batch that is
as many times as large. So the losses of all branches come from the same batch shapes and kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.ablate import ablate
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError, UnsupportedModelError
from headwise.heads.types import HeadSet
from headwise.maths.losses import token_losses
from headwise.models.model import as_model, device_of

Run = Callable[[Tensor], Tensor]
PAD = 0  # any id will do: nobody looks at what stands behind a text
CHECKED = 8  # token ids of the self-check
TILES = {"cpu": (512, 4096)}  # rows and columns of the logits held at once: 8 MB, which stays in a CPU's cache
TILE = (4096, 16384)  # on other devices


def first_changed_layer(heads: HeadSet) -> int:
    """The lowest layer with a chosen head.

    Raises:
        HeadwiseError: If none is chosen.
    """
    if not len(heads):
        raise HeadwiseError("no head to ablate; choose at least one")
    return min(head.layer for head in heads)


@contextmanager
def branches(model: Any, heads: HeadSet | Sequence[HeadSet], mode: str = "uniform", means: Tensor | None = None) -> Iterator[Run]:
    """Run texts through the model as it is and without some heads, at once.

    Texts start at position 0 and may be padded on the right: no token looks ahead, so no mask is needed, and hidden states of the padding mean
    nothing. No logits and no cache are made.

    Args:
        model: A transformers model.
        heads: Left out in the second branch; of several sets, each has a branch of its own, in order. Sets that begin in about the same layer
            go well together, since all branches part at the first layer of any of them.
        mode: What happens to them, see `ablate`; the scope is `all`.
        means: For mode `mean`, see `ablate`.

    Yields:
        run(ids [B, T]) -> final hidden states [1 + sets, B, T, width], after the final norm: [0] of the unchanged model, [i] without the heads
        of set i (from 1).

    Raises:
        HeadwiseError: As `ablate`, for an empty set of heads, and for no set.
    """
    if mode == "resample":
        raise HeadwiseError("mode 'resample' is for answers (see ablate); losses of documents take zero, uniform or mean")
    sets = [heads] if isinstance(heads, HeadSet) else list(heads)
    if not sets:
        raise HeadwiseError("no set of heads to ablate; give at least one")
    first = min(map(first_changed_layer, sets))
    count, rows = 1 + len(sets), 0

    @torch.no_grad()
    def run(ids: Tensor) -> Tensor:
        nonlocal rows
        rows = len(ids)
        variants = [HeadSet((), sets[0].shape), *sets]
        try:
            with ablate(model, [chosen for chosen in variants for _ in range(rows)], mode, means=means):
                hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            rows = 0
        return hidden.view(count, len(ids), *hidden.shape[1:])

    def part(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # In front of the first changed layer this repeats the hidden states, too; above it they come with all rows already.
        return _repeated(inputs, rows, count), _repeated(options, rows, count)

    with attached(model) as plan:
        with ablate(model, sets, mode, means=means):  # refuses what cannot be ablated before any work is done
            pass
        layers = list(plan.model.layers)[first:]
        handles = [layer.register_forward_pre_hook(part, with_kwargs=True) for layer in layers]
        try:
            yield run
        finally:
            for handle in handles:
                handle.remove()


def _repeated(value: Any, rows: int, count: int) -> Any:
    """Tensors [rows, ...] `count` times, [count * rows, ...]; everything else as it is. Goes into tuples and dictionaries."""
    if isinstance(value, tuple):
        return tuple(_repeated(part, rows, count) for part in value)
    if isinstance(value, dict):
        return {name: _repeated(part, rows, count) for name, part in value.items()}
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
        return torch.cat([value] * count)
    return value


class LossHead:
    """The output projection of a model, and what the model does to its logits (Granite and Cohere scale, Gemma caps them)."""

    def __init__(self, model: Any) -> None:
        """Read what the model does to its logits, and check it on a few tokens.

        Raises:
            UnsupportedModelError: If losses made here are not those of the model's own logits.
        """
        self._readout = as_model(model).readout
        self._tile = TILES.get(device_of(model).type, TILE)
        self._check(model)

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model knows."""
        projection: Any = self._readout.projection
        return int(projection.weight.shape[0])

    def __call__(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Loss [N] float32 in nats of targets [N] after final hidden states [N, d]. See `token_losses`."""
        projection: Any = self._readout.projection
        weight, bias = projection.weight, getattr(projection, "bias", None)
        rows, columns = self._tile
        where = weight.device
        return token_losses(
            hidden.to(where),
            targets.to(where),
            weight,
            bias,
            scale=self._readout.scale,
            softcap=self._readout.cap,
            rows=rows,
            columns=columns,
        )

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        """A family that treats its logits in a way that is not known here would give wrong losses without a word."""
        ids = torch.arange(CHECKED, device=device_of(model)) % self.vocabulary
        logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0, :-1].float()
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        hidden = model.base_model(input_ids=ids.unsqueeze(0), use_cache=False).last_hidden_state[0, :-1]
        tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
        got = self(hidden, ids[1:]).to(expected.device)
        if not torch.allclose(got, expected, atol=tolerance, rtol=tolerance, equal_nan=True):
            raise UnsupportedModelError(
                f"{type(model).__name__} changes its logits in a way that is not known here, so its losses cannot be computed in chunks"
            )


def branch_losses(
    run: Run, head: LossHead, texts: Sequence[NDArray[np.int32]], bos: Sequence[int], device: torch.device
) -> list[NDArray[np.float32]]:
    """Losses of each text from its second token on, in every branch: of the unchanged model, and with each set of heads ablated.

    Neither padding nor last tokens ever meet the output projection.

    Args:
        run: Of `branches`.
        head: The model's output projection.
        texts: Token ids [n] of each text, n >= 2.
        bos: Ids put in front of every text; they have no loss.
        device: Where the model is.

    Returns:
        [1 + sets, n - 1] float32 in nats per text.
    """
    ahead, lengths = len(bos), [len(text) - 1 for text in texts]
    ids = np.full((len(texts), ahead + max(lengths)), PAD, dtype=np.int64)  # a last token predicts nothing, so it is not read
    ids[:, :ahead] = bos
    for row, text in zip(ids, texts, strict=True):
        row[ahead : ahead + len(text) - 1] = text[:-1]
    places = np.concatenate([np.arange(n) + i * ids.shape[1] + ahead for i, n in enumerate(lengths)])
    targets = torch.from_numpy(np.concatenate([text[1:] for text in texts]).astype(np.int64)).to(device)
    hidden = run(torch.from_numpy(ids).to(device)).flatten(1, 2)
    chosen = hidden[:, torch.from_numpy(places).to(hidden.device)].flatten(0, 1)
    losses = head(chosen, targets.repeat(len(hidden))).view(len(hidden), -1).cpu().numpy()
    return np.split(losses, np.cumsum(lengths)[:-1], axis=1)
