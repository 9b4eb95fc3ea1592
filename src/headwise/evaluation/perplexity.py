"""Perplexity of plain text: what an intervention costs where nothing has to be retrieved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.heads import HeadId, HeadSet, HeadwiseError, PromptError
from headwise.heads.progress import Report, silent
from headwise.models.model import device_of
from headwise.prompts.encoder import PieceEncoder, Tokenizer
from headwise.prompts.grid import Task
from headwise.prompts.haystack import Haystack
from headwise.runtime.rundir import RunDirectory

ROWS = 1024  # positions whose logits are held in float32 at once
WINDOWS = ((8, 512), (8, 256), (8, 128), (4, 128), (4, 64), (2, 64))  # (number, tokens), the first that fits


def perplexity(model: Any, windows: Tensor, rows: int = ROWS) -> float:
    """Exp of the mean loss per predicted token, under whatever block is open.

    Args:
        model: As for `window_losses`.
        windows: As for `window_losses`.
        rows: As for `window_losses`.

    Returns:
        At least 1.

    Raises:
        HeadwiseError: As `window_losses`.
    """
    return float(window_losses(model, windows, rows).double().mean().exp())


@torch.no_grad()
def window_losses(model: Any, windows: Tensor, rows: int = ROWS) -> Tensor:
    """Mean loss per window over the T - 1 tokens that have a token before them; one pass per window.

    Args:
        model: A transformers model, under whatever block is open.
        windows: Token ids [n, T] without padding.
        rows: Positions whose logits are turned into float32 at once.

    Returns:
        Losses [n] float32, in nats per token.

    Raises:
        HeadwiseError: Windows of fewer than 2 tokens, or a loss that is NaN or infinite.
    """
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < 2:
        raise HeadwiseError(f"perplexity needs windows [n, T] of at least 2 tokens; got shape {list(windows.shape)}")
    losses = torch.stack([_loss(model, window.to(device_of(model)), rows) for window in windows])
    if not torch.isfinite(losses).all():
        raise HeadwiseError(
            "the model's loss on plain text is not finite (NaN or infinity); try --dtype float32 or another checkpoint"
        )
    return losses


def losses_without(
    model: Any,
    windows: Tensor,
    sets: Sequence[HeadSet | None],
    enter: Callable[[HeadSet], AbstractContextManager[Any]],
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> NDArray[np.float64]:
    """Loss of every window without each set of heads; equal sets are run once.

    Args:
        model: A transformers model.
        windows: Token ids [n, T] without padding.
        sets: Heads to take away; None: not measured.
        enter: Opens the block in which a set is taken away.
        directory: Finished sets are kept there and not run again.
        report: Called with (done, total, remark) in sets.

    Returns:
        Mean losses [set, window] in nats per token (see `window_losses`), NaN for a set that is None.
    """
    wanted = {frozenset(heads): heads for heads in sets if heads is not None}
    known: dict[frozenset[HeadId], NDArray[np.float64]] = {}
    digest = digest_of(windows)
    for key, heads in wanted.items():
        cell = f"perplexity-{digest}-set{len(known):03d}"
        found = directory.load(cell) if directory else None
        if found is None:
            with enter(heads):
                found = {"losses": window_losses(model, windows).double().cpu().numpy()}, []
            if directory:
                directory.save(cell, *found)
        known[key] = found[0]["losses"]
        report(len(known), len(wanted), f"perplexity {np.exp(known[key].mean()):.4g}")
    missing = np.full(len(windows), np.nan)
    return np.stack([missing if heads is None else known[frozenset(heads)] for heads in sets])


def digest_of(windows: Tensor) -> str:
    """A fingerprint of token ids."""
    return hashlib.sha256(windows.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def text_windows(haystack: Haystack, count: int, tokens: int, part: tuple[float, float], seed: int = 0) -> Tensor:
    """Windows of plain text that do not overlap.

    Args:
        haystack: The text.
        count: Number of windows.
        tokens: Length of each.
        part: Share of the haystack over which they are evenly spread, two fractions in [0, 1].
        seed: Decides where they stand, 0 or more.

    Returns:
        Token ids [count, tokens] int64, without BOS.

    Raises:
        PromptError: The part is too short.
    """
    low, width = part[0], (part[1] - part[0]) / count
    found = [haystack.window(tokens, (seed, 3, i), (low + i * width, low + (i + 1) * width)) for i in range(count)]
    return torch.tensor([window.ids for window in found], dtype=torch.int64)


def plain_windows(task: Task, positions: int | None) -> tuple[Tensor, Tensor]:
    """Windows from the two halves of the haystack's end that the task's grid leaves free.

    Args:
        task: A needle task.
        positions: What the model can hold (None: no limit); one is left for a BOS.

    Returns:
        (calibration, plain): token ids [n, T] each, without BOS.

    Raises:
        PromptError: The grid leaves too little text.
    """
    end = task.grid.part[1]
    middle = (1 + end) / 2
    for count, tokens in (size for size in WINDOWS if positions is None or size[1] < positions):
        try:
            calibration, plain = (
                text_windows(task.haystack, count, tokens, part, task.grid.seed) for part in ((end, middle), (middle, 1.0))
            )
            return calibration, plain
        except PromptError:  # too little text for windows of this length
            continue
    raise PromptError(
        f"the haystack has too little text behind its first {end:.0%} for perplexity; give more with --haystack DIR, or "
        "leave perplexity out (--no-perplexity)"
    )


def with_bos(windows: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Windows as the model expects the beginning of a text.

    Args:
        windows: Token ids [n, T].
        tokenizer: Of the model.

    Returns:
        [n, T + 1] on the CPU, with a BOS in front, if the tokenizer puts one in front of a text; else [n, T].
    """
    bos = torch.tensor(PieceEncoder(tokenizer).bos, dtype=windows.dtype)
    return torch.cat([bos.expand(len(windows), -1), windows.cpu()], dim=1)


def _loss(model: Any, window: Tensor, rows: int) -> Tensor:
    logits = model(input_ids=window.unsqueeze(0), use_cache=False).logits[0]
    total = torch.zeros((), device=logits.device)
    for start in range(0, len(window) - 1, rows):
        stop = min(start + rows, len(window) - 1)
        total += torch.nn.functional.cross_entropy(logits[start:stop].float(), window[start + 1 : stop + 1], reduction="sum")
    return total / (len(window) - 1)
