"""The numbers that figures and tables show about scores: shares, thresholds, confidence intervals. Plain numpy."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadScores

RETRIEVAL, STRONG = 0.1, 0.5
"""Copy scores above 0.1 make a retrieval head (Wu et al. 2024); 0.5 is the strong end of their table."""
RESAMPLES = 1000
MOST_LAYERS, MOST_HEADS = 1024, 1024  # of a table that is shown; models have at most a few hundred of either


class Share(NamedTuple):
    """Heads with a score in one range.

    Attributes:
        label: the range.
        heads: how many.
        share: of the scored heads, in [0, 1].
    """

    label: str
    heads: int
    share: float


def thresholds(scores: HeadScores) -> tuple[float, ...]:
    """The published thresholds of this kind of score, ascending: (0.1, 0.5) for copy scores, none for others."""
    return (RETRIEVAL, STRONG) if scores.score == "copy" else ()


def neutral(scores: HeadScores) -> float:
    """The score of a head that does nothing of note, where colours begin: 1 for a learnt scale, else 0."""
    return 1.0 if scores.score == "scale" else 0.0


def scored(scores: HeadScores) -> NDArray[np.float64]:
    """The scores of all scored heads.

    Returns:
        Flat, layer after layer.

    Raises:
        HeadwiseError: there are none, or the table is larger than that of any model, so that it cannot be drawn.
    """
    layers, heads = scores.shape
    if layers > MOST_LAYERS or heads > MOST_HEADS:
        raise HeadwiseError(
            f"a table of {layers} layers × {heads} {noun(scores)}s is larger than that of any model; at most {MOST_LAYERS} × {MOST_HEADS} are shown"
        )
    known = scores.values[~np.isnan(scores.values)]
    if known.size == 0:
        raise HeadwiseError(f"no head has a {scores.score} score, so there is nothing to show; detect the heads first")
    return known


def shares(scores: HeadScores) -> list[Share]:
    """How many heads score 0, (0, 0.1), [0.1, 0.5) and at least 0.5, as in Wu et al. 2024, fig. 3."""
    known = scored(scores)
    edges = [
        ("0", known <= 0),
        (f"(0, {RETRIEVAL:g})", (known > 0) & (known < RETRIEVAL)),
        (f"[{RETRIEVAL:g}, {STRONG:g})", (known >= RETRIEVAL) & (known < STRONG)),
        (f"≥ {STRONG:g}", known >= STRONG),
    ]
    return [Share(label, int(chosen.sum()), float(chosen.mean())) for label, chosen in edges]


def interval(runs: NDArray[np.floating], level: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap interval of the mean; it never leaves the range of the data.

    Args:
        runs: values [run]; NaN is left out.
        level: of confidence, in (0, 1).
        seed: of the resampling.

    Returns:
        Its two ends; None below 2 runs.
    """
    known = runs[~np.isnan(runs)].astype(np.float64)
    if known.size < 2:
        return None
    picks = np.random.default_rng(seed).integers(0, known.size, (RESAMPLES, known.size))
    low, high = np.quantile(known[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def layer_kind(scores: HeadScores, layer: int) -> str:
    """What heads of a layer can see.

    Args:
        scores: whose provenance may tell.
        layer: from 0.

    Returns:
        `sliding` or `full`; `–` if the file does not say.
    """
    sliding = scores.provenance.get("sliding_layers")
    if sliding is None:
        return "–"
    return "sliding" if layer in sliding else "full"


def public_name(name: object) -> str:
    """The name of a model or file as pages and pictures show it: no absolute path, which tells where its author works.

    Of a path the last part is left; of a folder in the hub's cache the id of its model. Characters that cannot be seen are left out.
    """
    text = "".join(c for c in str(name) if c.isprintable())
    windows = re.match(r"[A-Za-z]:[/\\]|\\\\", text)
    if not windows and not re.match(r"~?/", text):
        return text
    parts = [part for part in re.split(r"[/\\]+" if windows else "/+", text) if part]
    hub = [part.removeprefix("models--").replace("--", "/") for part in parts if part.startswith("models--")]
    return hub[-1] if hub else parts[-1] if parts else ""


def capital(text: str) -> str:
    """`text` with its first letter in upper case and the rest left alone."""
    return text[:1].upper() + text[1:]


def count(number: int, what: str) -> str:
    """`1 head`, `2 heads`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def noun(scores: HeadScores) -> str:
    """What a column of the table is: `KV head` for imported tables per KV head, else `head`."""
    return "KV head" if scores.provenance.get("columns") == "KV heads" else "head"
