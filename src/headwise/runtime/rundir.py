"""Run directories: results are written cell by cell, so an interrupted run continues where it stopped.

A directory belongs to one run description. Each finished cell is one file, written atomically; the same command finds it and
skips the work, which gives the same result as an uninterrupted run because every cell is a function of its key alone.

    DIR/run.json      marks the folder as ours: {"headwise_run": 1, "description": ...}
    DIR/<key>.npz     a cell: an `.npz` archive, and behind it a seal over description, key and archive

A folder without that mark is never touched, even if it is empty, and of a marked one only these files are ever removed. So that a killed
process leaves no folder of ours without it, the folder is made under another name (`.DIR.<process>.tmp`, beside it), marked, and renamed;
it goes the same way back.

While a process holds cells of a run the mark is locked, so that no other one does the same work beside it. The system ends the lock with the
process, however that ends.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import weakref
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

try:
    import fcntl
except ImportError:  # Windows: two processes then do the same work twice, and get the same cells
    fcntl = None  # type: ignore[assignment]

from headwise.heads.errors import HeadwiseError
from headwise.heads.files import work_is_done, work_is_kept, write_atomically

Cell = tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]

SCHEMA = 1
MARKER = "run.json"
_SEAL = re.compile(rb"headwise cell 1 [0-9a-f]{64}\n")
_SEAL_BYTES = 81
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_UNFINISHED = re.compile(r"\..+\.(?:json|npz)\.\d+\.tmp")  # what `write_atomically` leaves behind when it is killed


class _Lock:
    """A mark that this process has locked, until nobody holds this object any more. Raises `OSError` if that cannot be done."""

    def __init__(self, marker: Path) -> None:
        self._file = os.open(marker, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def is_of(self, marker: Path) -> bool:
        """Whether that mark is still the one that was locked, and not one of a run that began later."""
        return os.path.samestat(os.fstat(self._file), marker.stat())


# One for all objects of a folder in this process.
_locks: weakref.WeakValueDictionary[Path, _Lock] = weakref.WeakValueDictionary()


class Cells(Protocol):
    """Where finished cells are kept: a `RunDirectory`, or a `Stretch` of one."""

    def load(self, key: str) -> Cell | None:
        """See `RunDirectory.load`."""

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]], info: list[dict[str, Any]]) -> None:
        """See `RunDirectory.save`."""


class Stretch:
    """Cells of one part of a run, whose keys begin with its name; without a directory nothing is kept."""

    def __init__(self, directory: RunDirectory | None, name: str) -> None:
        self._directory, self._name = directory, name

    def load(self, key: str) -> Cell | None:
        """See `RunDirectory.load`."""
        return None if self._directory is None else self._directory.load(f"{self._name}-{key}")

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]], info: list[dict[str, Any]]) -> None:
        """See `RunDirectory.save`."""
        if self._directory is not None:
            self._directory.save(f"{self._name}-{key}", arrays, info)


class RunDirectory:
    """Cells of one run: `key -> (arrays, list of descriptions)`.

    Attributes:
        path: The folder. It appears with the first saved cell.
    """

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        """Open a run; nothing is written yet.

        Args:
            path: A folder that does not exist, or was made by a run.
            description: Everything that decides the result, as JSON data.

        Raises:
            HeadwiseError: If the folder was not made by a run, or by one with another description, or another process is at the same run.
        """
        self.path = path
        self._lock: _Lock | None = None
        self._description = json.dumps(description, sort_keys=True, indent=1, default=str)
        self._is_there()

    def load(self, key: str) -> Cell | None:
        """The finished cell `key`, or None.

        A file that cannot be read, was changed, or belongs to another key or run counts as unfinished.

        Raises:
            HeadwiseError: A key that is no file name.
        """
        path = self._file(key)
        try:
            archive, seal = _parts(path.read_bytes())
            if seal != self._seal(key, archive):
                return None
            with np.load(io.BytesIO(archive), allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files if name != "info"}
                info: list[dict[str, Any]] = json.loads(str(data["info"]))
        except (ValueError, KeyError, OSError, EOFError, BadZipFile, RecursionError, zlib.error):
            return None
        work_is_kept(self.path)
        return arrays, info

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]], info: list[dict[str, Any]]) -> None:
        """Write a finished cell; the first one makes the folder.

        Args:
            key: Letters, digits, `-`, `_` and `.`.
            arrays: Name -> array; `info` is no name.
            info: Descriptions of the cell's runs, as JSON data.

        Raises:
            HeadwiseError: A key that is no file name, a file that cannot be written, or another process has begun the same run.
        """
        path = self._file(key)
        if not self._is_there():
            self._make()
        buffer = io.BytesIO()
        content: dict[str, Any] = {"info": np.asarray(json.dumps(info)), **arrays}
        np.savez_compressed(buffer, **content)
        archive = buffer.getvalue()
        write_atomically(path, archive + self._seal(key, archive))
        work_is_kept(self.path)

    def drop(self, key: str) -> None:
        """Delete a cell that a later one has made needless; nothing happens if there is none."""
        self._file(key).unlink(missing_ok=True)

    def remove(self) -> None:
        """See `remove_run`."""
        work_is_done(self.path)
        remove_run(self.path)
        self._lock = None

    def _is_there(self) -> bool:
        """Whether the folder exists; if so it is locked. Raises `HeadwiseError` for one that is not of this run, or in use."""
        path = self.path
        if path.exists() and not path.is_dir():
            raise HeadwiseError(f"{path} is a file, not a run directory; move it away")
        if not path.is_dir():
            return False
        marker = _read_marker(path)
        if marker is None:
            if any(path.iterdir()):
                raise HeadwiseError(f"{path} holds files, but no run of headwise; move it away or choose another --output")
            raise HeadwiseError(f"{path} is an empty folder that no run made; delete it or choose another --output")
        if marker != json.loads(self._description):
            raise HeadwiseError(f"{path} belongs to a run with other options; delete it or choose another --output")
        return self._locked()

    def _locked(self) -> bool:
        """Lock the mark for this process; False if it has just gone. Raises `HeadwiseError` if another process has locked it."""
        if fcntl is None:
            return True
        marker = self.path.absolute() / MARKER
        try:
            known = self._lock or _locks.get(marker)
            if known is None or not known.is_of(marker):
                known = _locks[marker] = _Lock(marker)
            self._lock = known
        except BlockingIOError as error:
            raise HeadwiseError(f"another process is at the run in {self.path}; wait for it, or give another --output") from error
        except FileNotFoundError:
            return False
        except OSError:  # a file system without locks
            return True
        return True

    def _make(self) -> None:
        """The folder with its mark, at once."""
        text = json.dumps({"headwise_run": SCHEMA, "description": json.loads(self._description)}, sort_keys=True, indent=1)
        temporary = _temporary(self.path)
        try:
            write_atomically(temporary / MARKER, text.encode())
            temporary.rename(self.path)
            self._locked()
        except OSError as error:
            if not self._is_there():  # another process may have begun the same run, and is at it no more
                raise HeadwiseError(f"could not make {self.path}: {error.strerror or error}") from error
        finally:
            _remove_temporary(temporary)

    def _seal(self, key: str, archive: bytes) -> bytes:
        whole = hashlib.sha256(b"\0".join((self._description.encode(), key.encode(), archive)))
        return f"headwise cell 1 {whole.hexdigest()}\n".encode()

    def _file(self, key: str) -> Path:
        if not key or not all(c.isalnum() or c in "-_." for c in key):
            raise HeadwiseError(f"{key!r} is no cell name; use letters, digits, '-', '_' and '.'")
        return self.path / f"{key}.npz"


def remove_run(folder: Path) -> None:
    """Delete the cells of a run, its mark, and then the folder, once the result is safe elsewhere.

    What else lies in the folder stays, and so does the folder then; one that no run made is left alone.
    """
    with contextlib.suppress(OSError):
        for killed in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
            if _TEMPORARY.fullmatch(killed.name):
                _remove_temporary(killed)
        if _read_marker(folder) is None:
            return
        for path in _own_files(folder):
            path.unlink()
        if [path.name for path in folder.iterdir()] == [MARKER]:
            _remove_temporary(folder.rename(_temporary(folder)))
        else:
            (folder / MARKER).unlink()  # last: until then the folder is known as ours


def _temporary(folder: Path) -> Path:
    """The name under which this process makes and removes a folder."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.tmp")


def _remove_temporary(folder: Path) -> None:
    """Delete a folder that holds no more than a mark, finished or not."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():  # none if it has got another name by now
            if path.name == MARKER or _UNFINISHED.fullmatch(path.name):
                path.unlink()
        folder.rmdir()


def _read_marker(path: Path) -> Any:
    """The description of the run that a folder belongs to; None if no run made it."""
    try:
        data = json.loads((path / MARKER).read_text("utf-8"))
        return data["description"] if data["headwise_run"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _own_files(folder: Path) -> Iterator[Path]:
    """Cells, and what is left of files that were being written."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file():
            continue
        if _UNFINISHED.fullmatch(path.name) or (path.suffix == ".npz" and _is_cell(path)):
            yield path


def _is_cell(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(file.tell() - _SEAL_BYTES, 0))
        return _SEAL.fullmatch(file.read()) is not None


def _parts(data: bytes) -> tuple[bytes, bytes]:
    return data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
