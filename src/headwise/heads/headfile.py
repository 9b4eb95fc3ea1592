"""The head file: JSON that holds `HeadScores` and where they came from. Written once, atomically; checked on reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from headwise.heads.errors import HeadFileError
from headwise.heads.files import read_text, write_atomically
from headwise.heads.plain import plain
from headwise.heads.text import reason, shorten
from headwise.heads.types import HeadScores, Scores

SCHEMA = 2  # 1 had no tables; they stood in the provenance
MOST_BYTES = 256 * 2**20  # of a head file, unpacked: ten times what 1,000 runs of the largest models take
DEEPEST = 64  # levels of provenance


def save_heads(scores: HeadScores, path: str | Path, overwrite: bool = False) -> None:
    """Write a head file, whole or not at all.

    Args:
        scores: What it holds.
        path: The file.
        overwrite: Replace an existing file; it is never merged.

    Raises:
        HeadFileError: The file exists, cannot be written, or the scores cannot be read again (see `to_json`).
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise HeadFileError(f"{path} exists; give another name or --overwrite (results are never merged)")
    write_atomically(path, _dump(to_json(scores)))


def write_json(data: Any, path: Path, overwrite: bool = False) -> None:
    """Write any other result as JSON, under the same rules as `save_heads`.

    Args:
        data: Mappings, lists, arrays and numbers; NaN becomes null.
        path: The file.
        overwrite: Replace an existing file.

    Raises:
        HeadFileError: The file exists, cannot be written, or a value is none that JSON can hold.
    """
    if path.exists() and not overwrite:
        raise HeadFileError(f"{path} exists; give another name or --overwrite (results are never merged)")
    write_atomically(path, _dump(plain(data)))


def load_result(path: Path) -> tuple[str, Any]:
    """Any result that headwise writes or reads, told by its content.

    Returns:
        ("heads", HeadScores), ("ablation", data) or ("needle", data).

    Raises:
        HeadFileError: See `load_heads`.
    """
    data = _read(path)
    if isinstance(data, dict) and "headwise_schema" not in data:
        if "summary" in data:
            return "ablation", data
        if "cells" in data:
            return "needle", data
    return "heads", _scores(data, path)


def load_heads(path: str | Path) -> HeadScores:
    """Read a head file of any known format (headwise, Wu-style JSON, HeadKV JSON, DuoAttention TSV), plain or as .gz.

    Raises:
        HeadFileError: The file is missing, has more than `MOST_BYTES` (unpacked), or is no head file.
    """
    return _scores(_read(Path(path)), Path(path))


def to_json(scores: HeadScores) -> dict[str, Any]:
    """Plain JSON data; NaN becomes null.

    Raises:
        HeadFileError: The scores hold what could not be read again: half of a surrogate pair, or provenance without end.
    """
    try:
        for text in (scores.score, *scores.tables):
            check_text(text)
        for part in (scores.provenance, *scores.run_info):
            _plain_object(dict(part), "the provenance")
    except ValueError as error:
        raise HeadFileError(f"these scores cannot be written: {error}") from error
    data: dict[str, Any] = {
        "headwise_schema": SCHEMA,
        "score": scores.score,
        "score_version": scores.score_version,
        "layers": scores.shape[0],
        "heads": scores.shape[1],
        "values": _nullable(scores.values),
        "tables": {name: plain(table) for name, table in scores.tables.items()},
        "provenance": dict(scores.provenance),
    }
    if scores.runs is not None:
        data["runs"] = [
            {"info": dict(info), "values": _nullable(np.round(run.astype(np.float64), 6))}
            for run, info in zip(scores.runs, scores.run_info or [{}] * len(scores.runs), strict=True)
        ]
    return data


def from_json(data: dict[str, Any], path: Path) -> HeadScores:
    """Checked inverse of `to_json`; also reads schema 1, whose tables stood in the provenance.

    Args:
        data: The object that a head file holds.
        path: Where it comes from, for messages.

    Returns:
        The scores; null becomes NaN.

    Raises:
        HeadFileError: Anything is missing or is not what `to_json` writes.
    """
    schema = data.get("headwise_schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise HeadFileError(f"{path} has schema {shorten(repr(schema))}; this headwise reads 1 to {SCHEMA}; update headwise")
    try:
        values, runs, provenance = _floats(data["values"]), data.get("runs"), _plain_object(data["provenance"], "provenance")
        if [type(data[name]) for name in ("score", "score_version", "layers", "heads")] != [str, int, int, int]:
            raise ValueError("score must be a text, and score_version, layers and heads whole numbers")
        if values.shape != (data["layers"], data["heads"]):
            raise ValueError(f"the table is {values.shape}, the header says ({data['layers']}, {data['heads']})")
        check_text(data["score"])
        given = data["tables"] if schema > 1 else _lifted(provenance, len(values))
        scores = HeadScores(
            values=values,
            score=data["score"],
            score_version=data["score_version"],
            runs=None if runs is None else _runs([_floats(run["values"]) for run in runs], values.shape),
            run_info=() if runs is None else tuple(_plain_object(run["info"], "info of a run") for run in runs),
            provenance=provenance,
            tables={check_text(name): _table(rows) for name, rows in given.items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise HeadFileError(f"{path} is a broken head file ({reason(error)}); detect again") from error
    return scores


def number(value: Any) -> float:
    """A JSON number as it stands.

    Raises:
        ValueError: It is anything else (a text, true, null).
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shorten(repr(value))} is no number")
    return float(value)


def check_text(text: Any) -> str:
    """The text itself.

    Raises:
        ValueError: It is none, or one that no file and no terminal could take (half of a surrogate pair).
    """
    if not isinstance(text, str):
        raise ValueError(f"{shorten(repr(text))} is no text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text holds half of a surrogate pair ({shorten(ascii(text))})") from error
    return text


def _read(path: Path) -> Any:
    """JSON data, or the text of a .tsv table."""
    if not path.exists():
        raise HeadFileError(f"no such head file: {path}")
    text = read_text(path, "a head file", HeadFileError, MOST_BYTES)
    if path.suffix == ".tsv":
        return text
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise HeadFileError(f"{path} is not a head file: its JSON is nested too deeply") from error
    except ValueError as error:  # also numbers of absurd length
        raise HeadFileError(f"{path} is not a head file: no valid JSON ({shorten(str(error), 300)})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; JSON itself would keep the last of two values under one name, without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {shorten(repr(next(name for name in names if names.count(name) > 1)))} stands there twice")
    return found


def _scores(data: Any, path: Path) -> HeadScores:
    from headwise.heads.formats import read_foreign

    if isinstance(data, dict) and "headwise_schema" in data:
        return from_json(data, path)
    return read_foreign(data, path)


def _plain_object(data: Any, name: str) -> dict[str, Any]:
    """An object whose texts and depth are sound; raises `ValueError` otherwise."""
    if not isinstance(data, dict):
        raise ValueError(f"{name} is no object")
    level: list[Any] = [data]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, str):
                check_text(item)
            elif isinstance(item, float) and not np.isfinite(item):
                raise ValueError(f"{name} holds a number that is not finite")
        if not below:
            return data
        level = below
    raise ValueError(f"{name} is nested more than {DEEPEST} deep")


def _lifted(provenance: dict[str, Any], layers: int) -> dict[str, Any]:
    """Takes the tables out of the provenance of a schema 1 file."""
    found: dict[str, Any] = {name: provenance.pop(name) for name in ("lift", "mean_gates", "layer_order") if name in provenance}
    if "layer_order" in found:  # the layers in order; the table says of each layer when its turn comes
        order = found["layer_order"]
        if not all(type(layer) is int and 0 <= layer < layers for layer in order) or len(set(order)) != len(order):
            raise ValueError("layer_order must name layers, each once")
        found["layer_order"] = [order.index(layer) if layer in order else None for layer in range(layers)]
    return found


def _dump(data: Any) -> bytes:
    try:
        return (json.dumps(data, allow_nan=False, separators=(",", ":")) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise HeadFileError(f"the result holds a value that JSON cannot hold ({error}); nothing was written") from error


def _nullable(table: Any) -> list[list[float | None]]:
    return [[None if np.isnan(v) else float(v) for v in row] for row in table]


def _runs(tables: list[Any], shape: tuple[int, ...]) -> Any:
    if any(table.shape != shape for table in tables):
        raise ValueError(f"a run has another shape than the scores {shape}")
    return np.asarray(tables, dtype=np.float32) if tables else np.empty((0, *shape), dtype=np.float32)


def _floats(rows: Any) -> Scores:
    table = _table(rows)
    if table.ndim != 2:
        raise ValueError("values must be a [layer, head] table of finite numbers or null")
    return table


def _table(rows: Any) -> Scores:
    """[row, column] or [row] of finite numbers, null = NaN."""
    if not isinstance(rows, list):
        raise ValueError("a table is no list")
    numbers = [[_nan_or_number(v) for v in row] if isinstance(row, list) else _nan_or_number(row) for row in rows]
    if len({len(row) if isinstance(row, list) else None for row in numbers}) > 1:
        raise ValueError("the rows of a table must be equally long")
    table = np.asarray(numbers, dtype=np.float64)
    if np.isinf(table).any():
        raise ValueError("a table holds something other than finite numbers or null")
    return table


def _nan_or_number(value: Any) -> float:
    return np.nan if value is None else number(value)
