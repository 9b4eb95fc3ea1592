"""A folder of results in any file system: files in it appear whole or not at all."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headwise.corpus.arrow import fs
from headwise.corpus.inputs import one_line, resolve
from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import plain


class Folder:
    """A local folder or a URL. It need not exist."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._place, self._root = resolve(location)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and self._root == other._root and bool(self._place.equals(other._place))

    def __hash__(self) -> int:
        return hash(self._root)

    def below(self, path: str) -> Folder:
        """A folder inside this one."""
        return Folder(f"{self.location.rstrip('/')}/{path}")

    def names(self) -> list[str]:
        """Paths of all files in it and in its folders, sorted, without hidden ones."""
        infos = self._place.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        names = (posixpath.relpath(info.path, self._root) for info in infos if info.type == fs.FileType.File)
        return sorted(name for name in names if not posixpath.basename(name).startswith("."))

    def open(self, name: str) -> Any:
        """A file for reading, at any place of it. Raises `OSError`."""
        return self._place.open_input_file(f"{self._root}/{name}")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; None if there is none. Raises `HeadwiseError` for a broken one."""
        if self._place.get_file_info(f"{self._root}/{name}").type != fs.FileType.File:
            return None
        try:
            with self.open(name) as stream:
                return json.loads(stream.read())
        except (OSError, ValueError) as error:
            raise HeadwiseError(f"{self.location}/{name} cannot be read: {one_line(error)}") from error

    def write_json(self, name: str, data: Any) -> None:
        """Write plain data, NaN as null, replacing an older file."""
        with self.whole(name) as stream:
            stream.write((json.dumps(plain(data), allow_nan=False, indent=1) + "\n").encode())

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self._place.get_file_info(f"{self._root}/{name}").type != fs.FileType.NotFound:
            self._place.delete_file(f"{self._root}/{name}")

    @contextmanager
    def whole(self, name: str) -> Iterator[Any]:
        """A stream to write a file with, which takes its name (and the place of an older one) when the block ends without an error."""
        path = f"{self._root}/{name}"
        above, base = posixpath.split(path)
        temporary = f"{above}/.{base}.tmp"
        self._place.create_dir(above, recursive=True)
        with self._place.open_output_stream(temporary, compression=None) as stream:
            yield stream
        if not isinstance(self._place, fs.LocalFileSystem):  # elsewhere a move may refuse to replace
            self.delete(name)
        self._place.move(temporary, path)
