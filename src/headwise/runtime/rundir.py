"""Run directories: results are written cell by cell, so an interrupted run continues where it stopped.

A directory belongs to one run description. Each finished cell is one `.npz` file, written atomically; the same command finds it and
skips the work, which gives the same result as an uninterrupted run because every cell is a function of its key alone.
"""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.heads.headfile import write_atomically

Cell = tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]


class RunDirectory:
    """Cells of one run: `key -> (arrays, list of descriptions)`."""

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        """Open or create. Raises `HeadwiseError` if the directory belongs to a run with another description."""
        self.path = path
        self._description = json.dumps(description, sort_keys=True, indent=1, default=str)
        marker = path / "run.json"
        if path.exists() and not path.is_dir():
            raise HeadwiseError(f"{path} is a file, not a run directory; move it away")
        if marker.exists() and marker.read_text() != self._description:
            raise HeadwiseError(f"{path} belongs to a run with other options; delete it or choose another --output")

    def load(self, key: str) -> Cell | None:
        """The finished cell, or None. A file that cannot be read counts as unfinished."""
        path = self._file(key)
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files if name != "info"}
                return arrays, json.loads(str(data["info"]))
        except (ValueError, KeyError, OSError, EOFError, BadZipFile, zlib.error):
            return None

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]], info: list[dict[str, Any]]) -> None:
        """Write a finished cell; the first one makes the directory."""
        if not (self.path / "run.json").exists():
            write_atomically(self.path / "run.json", self._description.encode())
        buffer = io.BytesIO()
        content: dict[str, Any] = {"info": np.asarray(json.dumps(info)), **arrays}
        np.savez_compressed(buffer, **content)
        write_atomically(self._file(key), buffer.getvalue())

    def remove(self) -> None:
        """Delete the directory once its result is safe elsewhere."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, key: str) -> Path:
        if not key or not all(c.isalnum() or c in "-_." for c in key):
            raise HeadwiseError(f"{key!r} is no cell name; use letters, digits, '-', '_' and '.'")
        return self.path / f"{key}.npz"
