"""Head scores of other projects: Wu-style JSON, HeadKV JSON, DuoAttention TSV. Reading and writing.

Wu et al. and HeadKV: `{"LAYER-HEAD": [score of run 1, score of run 2, ...]}`; the mean ranks the heads.
DuoAttention: one row per layer, one column per *KV* head, tab separated gates from about 0 to 1 (high = retrieval head).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headwise.heads.errors import HeadFileError
from headwise.heads.files import write_atomically
from headwise.heads.headfile import number
from headwise.heads.text import shorten
from headwise.heads.types import MOST_HEADS, HeadId, HeadScores, check_grid

FORMATS = ("wu", "headkv", "duo")
MOST_NUMBERS = 100_000_000  # of all runs and heads together, named in a list or not
KV_COLUMNS = "KV heads"


def read_foreign(data: Any, path: Path) -> HeadScores:
    """Scores from the content of a foreign file; the format is told by the content, never by a model's name.

    Args:
        data: Text of a DuoAttention table, or the JSON data of lists per head.
        path: Where it comes from, for errors and provenance.

    Returns:
        A table per KV head has `provenance["columns"] == "KV heads"` (see `spread`). A list that does not name all heads of a grid has
        `provenance["shape_guessed"]`: the model may be larger (see `on_grid`).

    Raises:
        HeadFileError: The content is none of these formats, or names what no model has.
    """
    return _read_duo(data, path) if isinstance(data, str) else _read_layer_head(data, path)


def write_foreign(scores: HeadScores, path: Path, format: str) -> list[str]:
    """Write scores for other projects.

    Args:
        scores: What to write.
        path: A new file.
        format: `wu` or `headkv` (JSON lists per head), or `duo` (a table; one column per scored head).

    Returns:
        What the format cannot hold and the file therefore lacks, in words: tables, descriptions of runs, provenance.

    Raises:
        HeadFileError: Unknown format, an existing file, or heads without a score in a `duo` table.
    """
    if format not in FORMATS:
        raise HeadFileError(f"unknown head format {shorten(format)!r}; known: {', '.join(FORMATS)}")
    if path.exists():
        raise HeadFileError(f"{path} exists; give another name")
    lost = [f"table {name}" for name in scores.tables]
    lost += [name for name, there in (("run descriptions", scores.run_info), ("provenance", scores.provenance)) if there]
    if format == "duo":
        if np.isnan(scores.values).any():
            raise HeadFileError("a DuoAttention table has no sign for a head that was not scored, and this file has such heads")
        table = "\n".join("\t".join(f"{v:.6f}" for v in row) for row in scores.values)
        write_atomically(path, (table + "\n").encode())
        return lost + ([] if scores.runs is None else ["runs"])
    runs = scores.values[None] if scores.runs is None else scores.runs
    lists = {
        f"{layer}-{head}": [round(float(v), 6) for v in runs[:, layer, head] if not np.isnan(v)]
        for layer, head in np.ndindex(*scores.shape)
        if not np.isnan(scores.values[layer, head])
    }
    write_atomically(path, (json.dumps(lists) + "\n").encode())
    return lost


def spread(scores: HeadScores, group: int) -> HeadScores:
    """A table per KV head as one per query head: every query head carries the score of its KV head.

    Args:
        scores: Of KV heads, as `read_foreign` gives them.
        group: Query heads per KV head, at least 1.

    Returns:
        Values and runs with `group` times as many columns.

    Raises:
        HeadFileError: The scores are those of query heads already, or no model has so many.
    """
    if group < 1:
        raise HeadFileError(f"the group must be at least 1 query head per KV head; got {group}")
    if scores.provenance.get("columns") != KV_COLUMNS:
        raise HeadFileError("these scores are those of query heads already; a group is for tables with a column per KV head")
    check_grid((scores.shape[0], scores.shape[1] * group))
    runs = None if scores.runs is None else np.repeat(scores.runs, group, axis=2)
    told = {**scores.provenance, "columns": "query heads"}
    return replace(scores, values=np.repeat(scores.values, group, axis=1), runs=runs, provenance=told)


def on_grid(scores: HeadScores, shape: tuple[int, int]) -> HeadScores:
    """Scores of a list that does not name all heads, on the grid of their model; the others are not scored.

    Args:
        scores: As `read_foreign` gives them.
        shape: (layers, query heads per layer) of the model.

    Returns:
        Scores of that shape, NaN where the list names no head.

    Raises:
        HeadFileError: The scores have a grid of their own, or do not fit into this one.
    """
    check_grid(shape)
    rows, columns = scores.shape
    known = not scores.provenance.get("shape_guessed")
    if (known and shape != scores.shape) or rows > shape[0] or columns > shape[1]:
        raise HeadFileError(
            f"the scores {'have' if known else 'name heads of at least'} {rows} layers x {columns} heads; "
            f"they cannot stand for {shape[0]} x {shape[1]}"
        )
    margin = ((0, shape[0] - rows), (0, shape[1] - columns))
    values = np.pad(scores.values, margin, constant_values=np.nan)
    runs = None if scores.runs is None else np.pad(scores.runs, ((0, 0), *margin), constant_values=np.nan)
    told = {name: value for name, value in scores.provenance.items() if name != "shape_guessed"}
    return replace(scores, values=values, runs=runs, provenance=told)


def _read_layer_head(data: Any, path: Path) -> HeadScores:
    if not isinstance(data, dict) or not data or not all(isinstance(v, list) for v in data.values()):
        raise HeadFileError(f"{path} is not a head file: expected a headwise file or an object of lists per 'LAYER-HEAD'")
    try:
        lists = {HeadId.parse(key): [number(v) for v in values] for key, values in data.items()}
    except (ValueError, OverflowError) as error:
        raise HeadFileError(f"{path} is not a head file: {error}") from error
    if not all(np.isfinite(v).all() for v in map(np.asarray, lists.values())):
        raise HeadFileError(f"{path} holds a score that is not a finite number")
    if len(lists) != len(data):
        raise HeadFileError(f"{path} names a head twice")
    shape = (max(h.layer for h in lists) + 1, max(h.head for h in lists) + 1)
    lengths = {len(numbers) for numbers in lists.values()}
    same = lengths.pop() if len(lengths) == 1 else 0  # runs per head, if all heads have as many
    if shape[0] * shape[1] > MOST_HEADS or shape[0] * shape[1] * same > MOST_NUMBERS:
        raise HeadFileError(f"{path} names {max(lists)}, which no model has" + (f" with {same} runs" if same > 1 else ""))
    values = np.full(shape, np.nan)
    for head, numbers in lists.items():
        values[head] = np.mean(numbers) if numbers else np.nan
    runs = None
    if same:
        runs = np.full((same, *shape), np.nan, dtype=np.float32)
        for head, numbers in lists.items():
            runs[:, head.layer, head.head] = numbers
    provenance: dict[str, Any] = {"imported_from": path.name, "format": "layer-head lists"}
    if len(lists) < shape[0] * shape[1]:
        provenance["shape_guessed"] = True
    return HeadScores(values, "copy", runs=runs, provenance=provenance)


def _read_duo(text: str, path: Path) -> HeadScores:
    if text.count("\t") + text.count("\n") > MOST_HEADS:
        raise HeadFileError(f"{path} holds more numbers than any model has heads ({MOST_HEADS} at most)")
    try:
        rows = [[float(v) for v in line.split("\t")] for line in text.split("\n") if line.strip()]
        _check_widths(map(len, rows))
    except ValueError as error:
        raise HeadFileError(f"{path} is not a table of numbers separated by tabs ({shorten(str(error), 200)})") from error
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise HeadFileError(f"{path} must hold one row of finite gates per layer, all rows equally long")
    return HeadScores(
        values, "gate", provenance={"imported_from": path.name, "format": "DuoAttention table", "columns": KV_COLUMNS}
    )


def _check_widths(widths: Iterable[int]) -> None:
    if len(different := sorted(set(widths))) > 1:
        raise ValueError(f"rows of {different[0]} and of {different[-1]} numbers")
