"""Numbers behind the explorer: tables per head, per-run values packed small, and labels that tell files apart. Plain numpy."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.types import HeadScores
from headwise.report.canvas import subject
from headwise.report.numbers import RESAMPLES, capital, layer_kind, noun, public_name

LEVELS = 254  # steps of a packed value; 255 means "not scored"
AXES = ("length", "depth")


@dataclass(frozen=True)
class Entry:
    """One head file on the page.

    Attributes:
        label: what the page calls it.
        scores: its content.
        number: from 1, as in the address of its heads.
    """

    label: str
    scores: HeadScores
    number: int

    @property
    def key(self) -> str:
        """Name of its table."""
        return f"heads{self.number}"

    def link(self, head: object) -> str:
        """The address of a head: `#L5H2`, in all but the first file with the file's number in front."""
        return f"#{head}" if self.number == 1 else f"#{self.number}-{head}"


def labelled(files: Sequence[tuple[Path, HeadScores]]) -> list[Entry]:
    """Entries named by model and score, or by file or folder where that does not tell them apart."""
    ways: list[list[str]] = [
        [
            f"{public_name(s.provenance['model'])}, {s.score} score" if s.provenance.get("model") else _stem(path)
            for path, s in files
        ],
        [_stem(path) for path, _ in files],
        [path.resolve().parent.name or _stem(path) for path, _ in files],
        [f"{path.resolve().parent.name}/{_stem(path)}" for path, _ in files],
    ]
    labels = [
        next((way[i] for way in ways if way.count(way[i]) == 1), f"{_stem(files[i][0])} ({i + 1})") for i in range(len(files))
    ]
    return [Entry(label, scores, i) for i, (label, (_, scores)) in enumerate(zip(labels, files, strict=True), 1)]


def head_columns(scores: HeadScores) -> dict[str, str]:
    """Columns of `head_table`, with their headings."""
    name = noun(scores)
    columns = {"name": "Name", "layer": "Layer", "head": capital(name), "score": f"{capital(scores.score)} score"}
    if _runs(scores) is not None:
        columns |= {"frequency": "Active in runs", "low": "95 % CI from", "high": "to"}
    return columns | {"rank": "Rank"}


def head_table(scores: HeadScores) -> dict[str, list[Any]]:
    """One row per head: layer, head, score, rank, and with runs its activation frequency and interval. None where there is no value."""
    layers, heads = scores.shape
    layer, head = np.divmod(np.arange(layers * heads), heads)
    table: dict[str, list[Any]] = {"name": [f"L{x}H{y}" for x, y in zip(layer, head, strict=True)]}
    table |= {"layer": layer.tolist(), "head": head.tolist(), "score": _short(scores.values)}
    if (runs := _runs(scores)) is not None:
        low, high = intervals(runs)
        table |= {"frequency": _short(scores.frequency), "low": _short(low), "high": _short(high)}
    known = int(np.isfinite(scores.values).sum())
    order = np.argsort(-scores.values, axis=None, kind="stable")[:known]
    rank = np.full(layers * heads, np.nan)
    rank[order] = np.arange(1, known + 1)
    return table | {"rank": [None if np.isnan(r) else int(r) for r in rank]}


def intervals(runs: NDArray[np.floating], level: float = 0.95, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bootstrap intervals of the means of all heads at once, as `numbers.interval` of each.

    Args:
        runs: values [run, layer, head].
        level: of confidence, in (0, 1).
        seed: of the resampling.

    Returns:
        Lower and upper ends, both [layer, head]; NaN below 2 runs.
    """
    count = len(runs)
    if count < 2:
        empty = np.full(runs.shape[1:], np.nan)
        return empty, empty
    picks = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    weights = np.stack([np.bincount(row, minlength=count) for row in picks]) / count
    means = (weights.astype(np.float32) @ runs.reshape(count, -1).astype(np.float32)).reshape(RESAMPLES, *runs.shape[1:])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low.astype(np.float64), high.astype(np.float64)


def packed_runs(scores: HeadScores) -> dict[str, Any] | None:
    """Per-run values in few bytes: one byte each between the lowest and the highest value, head after head, compressed. None without runs.

    A page unpacks them only when a head is opened. The rounding error is at most 1/508 of the range.
    """
    runs = _runs(scores)
    if runs is None:
        return None
    known = runs[np.isfinite(runs)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    scaled = np.nan_to_num((runs - low) / ((high - low) or 1.0) * LEVELS, nan=0.0).round()
    levels = np.where(np.isfinite(runs), scaled, 255).astype(np.uint8)
    per_head = np.ascontiguousarray(levels.reshape(len(runs), -1).T)
    text = base64.b64encode(gzip.compress(per_head.tobytes(), 9, mtime=0)).decode("ascii")
    return {"packed": text, "count": len(runs), "low": low, "high": high, "levels": LEVELS}


def run_axes(scores: HeadScores) -> dict[str, list[float]] | None:
    """Context length, and depth in per cent, of every run; None where runs do not have both."""
    if _runs(scores) is None or not scores.run_info:
        return None
    if not all(isinstance(info.get(axis), int | float) for info in scores.run_info for axis in AXES):
        return None
    scale = {"length": 1, "depth": 100}
    return {axis: [round(scale[axis] * float(info[axis]), 1) for info in scores.run_info] for axis in AXES}


def group_size(scores: HeadScores) -> int:
    """Query heads per KV head; 1 if that is not known or there are no groups."""
    kv = scores.provenance.get("kv_heads")
    heads = scores.shape[1]
    return heads // kv if noun(scores) == "head" and isinstance(kv, int) and 0 < kv < heads and heads % kv == 0 else 1


def entry_data(entry: Entry) -> dict[str, Any]:
    """What the page's script needs of a file, beside its table."""
    scores = entry.scores
    return {
        "label": entry.label,
        "key": entry.key,
        "score": scores.score,
        "noun": noun(scores),
        "shape": list(scores.shape),
        "group": group_size(scores),
        "scored": int(np.isfinite(scores.values).sum()),
        "kinds": [layer_kind(scores, layer) for layer in range(scores.shape[0])],
        "runs": packed_runs(scores),
        "axes": run_axes(scores),
    }


def source(scores: HeadScores) -> str:
    """The model or file that scores come from."""
    return subject(scores.provenance) or "unknown model"


def written(value: Any) -> str:
    """Provenance as short text; nothing of it is left out silently."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {written(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(map(written, value[:12]))
        return f"{shown}, … ({len(value)} in all)" if len(value) > 12 else shown
    text = f"{value:g}" if isinstance(value, float) else public_name(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"


def _runs(scores: HeadScores) -> NDArray[np.float32] | None:
    return scores.runs if scores.runs is not None and len(scores.runs) > 0 else None


def _short(values: NDArray[np.floating]) -> list[float | None]:
    return [None if not np.isfinite(v) else float(f"{v:.4g}") for v in values.ravel()]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json").removesuffix(".tsv")
