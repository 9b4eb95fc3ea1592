"""A folder of results in any file system: files in it appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwise.corpus.arrow import fs
from headwise.corpus.claims import Claims
from headwise.corpus.inputs import contents, one_line, resolve
from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import plain

STALE_SECONDS = 120.0  # a lock that was not touched for so long is taken over; one of a dead process on this machine at once
LOCK = ".lock"


class Folder:
    """A local folder or a URL. It need not exist.

    Attributes:
        location: As it was given.
    """

    def __init__(self, location: str) -> None:
        """Nothing is read or made.

        Raises:
            HeadwiseError: If the location cannot be opened.
        """
        self.location = location
        self._place, self._root = resolve(location)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and self._root == other._root and bool(self._place.equals(other._place))

    def __hash__(self) -> int:
        return hash(self._root)

    def below(self, path: str) -> Folder:
        """A folder inside this one."""
        return Folder(f"{self.location.rstrip('/')}/{path}")

    def within(self, other: Folder) -> bool:
        """Whether this folder is the other one or lies in it."""
        return bool(self._place.equals(other._place)) and f"{self._root}/".startswith(f"{other._root}/")

    def names(self, hidden: bool = False) -> list[str]:
        """Paths of all files in it and in its folders, sorted.

        Args:
            hidden: Also those that begin with a dot.
        """
        infos = contents(self._place, self._root)
        names = (posixpath.relpath(info.path, self._root) for info in infos if info.type == fs.FileType.File)
        return sorted(name for name in names if hidden or not posixpath.basename(name).startswith("."))

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._place.get_file_info(f"{self._root}/{name}").type == fs.FileType.File)

    def open(self, name: str) -> Any:
        """A file for reading, at any place of it. Raises `OSError`."""
        return self._place.open_input_file(f"{self._root}/{name}")

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none.

        Raises:
            HeadwiseError: If it cannot be read.
        """
        if not self.has(name):
            return None
        try:
            with self.open(name) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise HeadwiseError(f"{self.location}/{name} cannot be read: {one_line(error)}") from error

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; None if there is none.

        Raises:
            HeadwiseError: If it cannot be read or is no JSON.
        """
        text = self.read(name)
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise HeadwiseError(f"{self.location}/{name} cannot be read: {one_line(error)}") from error

    def write_json(self, name: str, data: Any) -> None:
        """Write plain data, replacing an older file.

        Args:
            name: Path of the file below the folder.
            data: NaN becomes null; the text ends with a line break.

        Raises:
            HeadwiseError: As `whole`.
        """
        with self.whole(name) as stream:
            stream.write((json.dumps(plain(data), allow_nan=False, indent=1) + "\n").encode())

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self._place.get_file_info(f"{self._root}/{name}").type != fs.FileType.NotFound:
            self._place.delete_file(f"{self._root}/{name}")

    @contextmanager
    def whole(self, name: str) -> Iterator[Any]:
        """A stream to write a file with, which takes its name (and the place of an older one) when the block ends without an error.

        Raises:
            HeadwiseError: If it cannot be written; the older file is still there then.
        """
        path = f"{self._root}/{name}"
        above, base = posixpath.split(path)
        temporary = f"{above}/.{base}.{uuid.uuid4().hex}.tmp"
        try:
            self._place.create_dir(above, recursive=True)
            with self._place.open_output_stream(temporary, compression=None) as stream:
                yield stream
            if not isinstance(self._place, fs.LocalFileSystem):  # elsewhere a move may refuse to replace
                self.delete(name)
            self._place.move(temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._place.delete_file(temporary)
            if not isinstance(error, OSError):  # pyarrow's own errors of writing are OSErrors, too
                raise
            raise HeadwiseError(
                f"could not write {self.location}/{name}: {one_line(error)}; the file is as it was before"
            ) from error

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Work in the folder while no other process does; what such a process left unfinished when it died is removed.

        Only local (or mounted) folders can be locked; in others the block runs as it is.

        Args:
            what: What is done here, for the message.

        Raises:
            HeadwiseError: If another process is at work.
        """
        if not isinstance(self._place, fs.LocalFileSystem):
            yield
            return
        with Claims(Path(self._root), STALE_SECONDS) as claims:
            if not claims.take(LOCK):
                raise HeadwiseError(f"another process is {what} {self.location}; wait for it, or give another --output")
            for name in self.names(hidden=True):
                if re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", posixpath.basename(name)):
                    self.delete(name)
            yield
