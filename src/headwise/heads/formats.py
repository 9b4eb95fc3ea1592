"""Head scores of other projects: Wu-style JSON, HeadKV JSON, DuoAttention TSV. Reading and writing.

Wu et al. and HeadKV: `{"LAYER-HEAD": [score of run 1, score of run 2, ...]}`; the mean ranks the heads.
DuoAttention: one row per layer, one column per *KV* head, tab separated gates from about 0 to 1 (high = retrieval head).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from headwise.heads.errors import HeadFileError
from headwise.heads.headfile import write_atomically
from headwise.heads.types import HeadId, HeadScores

FORMATS = ("wu", "headkv", "duo")
MOST_HEADS = 1_000_000  # far more than any model has; guards against absurd indices


def read_foreign(text: str, path: Path, query_heads_per_kv_head: int = 1) -> HeadScores:
    """Parse the text of a foreign score file; the format is told by its content, never by a model's name."""
    if path.suffix == ".tsv":
        return _read_duo(text, path, query_heads_per_kv_head)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise HeadFileError(f"{path} is neither JSON nor a .tsv table ({error.msg})") from error
    return _read_layer_head(data, path)


def write_foreign(scores: HeadScores, path: Path, format: str) -> None:
    """Write `scores` as `wu` / `headkv` (JSON lists per head) or `duo` (a table; one column per scored head)."""
    if format not in FORMATS:
        raise HeadFileError(f"unknown head format {format!r}; known: {', '.join(FORMATS)}")
    if path.exists():
        raise HeadFileError(f"{path} exists; give another name")
    if format == "duo":
        if np.isnan(scores.values).any():
            raise HeadFileError("a DuoAttention table has no sign for a head that was not scored, and this file has such heads")
        table = "\n".join("\t".join(f"{v:.6f}" for v in row) for row in scores.values)
        write_atomically(path, (table + "\n").encode())
        return
    runs = scores.values[None] if scores.runs is None else scores.runs
    lists = {
        f"{layer}-{head}": [round(float(v), 6) for v in runs[:, layer, head] if not np.isnan(v)]
        for layer, head in np.ndindex(*scores.shape)
        if not np.isnan(scores.values[layer, head])
    }
    write_atomically(path, (json.dumps(lists) + "\n").encode())


def _read_layer_head(data: Any, path: Path) -> HeadScores:
    if not isinstance(data, dict) or not data or not all(isinstance(v, list) for v in data.values()):
        raise HeadFileError(f"{path} is not a head file: expected a headwise file or an object of lists per 'LAYER-HEAD'")
    try:
        lists = {HeadId.parse(key): [float(v) for v in values] for key, values in data.items()}
    except (TypeError, ValueError) as error:
        raise HeadFileError(f"{path} is not a head file: {error}") from error
    if not all(np.isfinite(v).all() for v in map(np.asarray, lists.values())):
        raise HeadFileError(f"{path} holds a score that is not a finite number")
    if len(lists) != len(data):
        raise HeadFileError(f"{path} names a head twice")
    shape = (max(h.layer for h in lists) + 1, max(h.head for h in lists) + 1)
    if shape[0] * shape[1] > MOST_HEADS:
        raise HeadFileError(f"{path} names {max(lists)}, which no model has")
    values = np.full(shape, np.nan)
    for head, numbers in lists.items():
        values[head] = np.mean(numbers) if numbers else np.nan
    lengths = {len(numbers) for numbers in lists.values()}
    runs = None
    if len(lengths) == 1 and lengths != {0}:
        runs = np.full((lengths.pop(), *shape), np.nan, dtype=np.float32)
        for head, numbers in lists.items():
            runs[:, head.layer, head.head] = numbers
    return HeadScores(values, "copy", runs=runs, provenance={"imported_from": path.name, "format": "layer-head lists"})


def _read_duo(text: str, path: Path, group: int) -> HeadScores:
    try:
        rows = [[float(v) for v in line.split("\t")] for line in text.splitlines() if line.strip()]
        values = np.asarray(rows, dtype=np.float64)
    except ValueError as error:
        raise HeadFileError(f"{path} is not a table of numbers separated by tabs ({error})") from error
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise HeadFileError(f"{path} must hold one row of finite gates per layer, all rows equally long")
    provenance = {
        "imported_from": path.name,
        "format": "DuoAttention table",
        "columns": "KV heads" if group == 1 else "query heads",
    }
    return HeadScores(np.repeat(values, group, axis=1), "gate", provenance=provenance)
