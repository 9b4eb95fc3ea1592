"""The head file: JSON that holds `HeadScores` and where they came from. Written once, atomically; checked on reading."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from headwise.heads.errors import HeadFileError
from headwise.heads.plain import plain
from headwise.heads.types import HeadScores

SCHEMA = 1


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk, then rename: readers see the old file or the whole new one.

    Raises:
        HeadFileError: If it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise HeadFileError(f"could not write {path}: {error.strerror or error}; the file is as it was before") from error


def save_heads(scores: HeadScores, path: str | Path, overwrite: bool = False) -> None:
    """Write a head file. An existing file is refused unless `overwrite`; it is replaced then, never merged."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise HeadFileError(f"{path} exists; give another name or --overwrite (results are never merged)")
    write_atomically(path, _dump(to_json(scores)))


def write_json(data: Any, path: Path, overwrite: bool = False) -> None:
    """Write any other result as JSON, under the same rules; NaN becomes null."""
    if path.exists() and not overwrite:
        raise HeadFileError(f"{path} exists; give another name or --overwrite (results are never merged)")
    write_atomically(path, _dump(plain(data)))


def load_result(path: Path) -> tuple[str, Any]:
    """("heads", HeadScores), ("ablation", data) or ("needle", data), told by the content."""
    if path.suffix != ".tsv":
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            data = json.loads(read_text(path))
            if isinstance(data, dict) and "headwise_schema" not in data:
                if "summary" in data:
                    return "ablation", data
                if "cells" in data:
                    return "needle", data
    return "heads", load_heads(path)


def load_heads(path: str | Path) -> HeadScores:
    """Read a head file of any known format (headwise, Wu-style JSON, HeadKV JSON, DuoAttention TSV)."""
    from headwise.heads.formats import read_foreign

    path = Path(path)
    text = read_text(path)
    if path.suffix == ".tsv":
        return read_foreign(text, path)
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise HeadFileError(f"{path} is not a head file: no valid JSON ({error})") from error
    if isinstance(data, dict) and "headwise_schema" in data:
        return from_json(data, path)
    return read_foreign(text, path)


def read_text(path: Path) -> str:
    """Text of a plain or gzip file; a missing or unreadable file is one clear line."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except FileNotFoundError as error:
        raise HeadFileError(f"no such head file: {path}") from error
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise HeadFileError(f"{path} cannot be read as a head file: {error}") from error


def to_json(scores: HeadScores) -> dict[str, Any]:
    """Plain JSON data; NaN becomes null."""
    data: dict[str, Any] = {
        "headwise_schema": SCHEMA,
        "score": scores.score,
        "score_version": scores.score_version,
        "layers": scores.shape[0],
        "heads": scores.shape[1],
        "values": _nullable(scores.values),
        "provenance": dict(scores.provenance),
    }
    if scores.runs is not None:
        data["runs"] = [
            {"info": dict(info), "values": _nullable(np.round(run.astype(np.float64), 6))}
            for run, info in zip(scores.runs, scores.run_info or [{}] * len(scores.runs), strict=True)
        ]
    return data


def from_json(data: dict[str, Any], path: Path) -> HeadScores:
    """Checked inverse of `to_json`."""
    if data.get("headwise_schema") != SCHEMA:
        raise HeadFileError(f"{path} has schema {data.get('headwise_schema')!r}; this headwise reads {SCHEMA}; update headwise")
    try:
        values = _floats(data["values"])
        runs = data.get("runs")
        scores = HeadScores(
            values=values,
            score=str(data["score"]),
            score_version=int(data["score_version"]),
            runs=None if runs is None else _runs([_floats(r["values"]) for r in runs], values.shape),
            run_info=() if runs is None else tuple(r["info"] for r in runs),
            provenance=dict(data["provenance"]),
        )
        if scores.shape != (data["layers"], data["heads"]):
            raise ValueError(f"the table is {scores.shape}, the header says ({data['layers']}, {data['heads']})")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise HeadFileError(f"{path} is a broken head file ({error!r}); detect again") from error
    return scores


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


def _floats(rows: Any) -> Any:
    table = np.asarray([[np.nan if v is None else float(v) for v in row] for row in rows], dtype=np.float64)
    if table.ndim != 2 or np.isinf(table).any():
        raise ValueError("values must be a [layer, head] table of finite numbers or null")
    return table
