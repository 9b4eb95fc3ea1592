"""Which files are read: files, folders, globs and URLs become one sorted list of files with names that are the same on every machine."""

from __future__ import annotations

import fnmatch
import heapq
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

from headwise.corpus.arrow import fs, pa
from headwise.heads.errors import HeadwiseError

FORMATS = ".parquet, .jsonl, .ndjson and .txt, and .jsonl, .ndjson, .json or .txt with .gz or .zst"
LONGEST_NAME = 200  # bytes of a file's name: score files and temporary files have longer names than their inputs
LONGEST_PATH = 4096
_PARQUET = re.compile(r"\.parquet$", re.IGNORECASE)
_LINES = re.compile(r"\.(?:(?:jsonl|ndjson)(?:\.(gz|zst))?|json\.(gz|zst))$", re.IGNORECASE)
_TEXT = re.compile(r"\.txt(?:\.(gz|zst))?$", re.IGNORECASE)
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class InputFile:
    """One file.

    Attributes:
        name: Its path relative to the deepest folder that holds all inputs, with "/".
        path: Its path inside its file system.
        size: Stored bytes.
        mtime_ns: Last change, or None where the file system tells none.
        tag: What tells versions apart there (etag), or None.
    """

    name: str
    path: str
    size: int
    mtime_ns: int | None = None
    tag: str | None = None

    @property
    def is_parquet(self) -> bool:
        """Told by the name."""
        return _PARQUET.search(self.name) is not None

    @property
    def is_text(self) -> bool:
        """Whether the whole file is one document. Told by the name."""
        return _TEXT.search(self.name) is not None

    @property
    def compression(self) -> str | None:
        """`gzip`, `zstd` or None: of the whole file, not of what is inside Parquet."""
        found = _LINES.search(self.name) or _TEXT.search(self.name)
        return {"gz": "gzip", "zst": "zstd"}.get(next(filter(None, found.groups()), "").lower()) if found else None

    @property
    def sidecar(self) -> str:
        """Name of its score file: its own if it is Parquet, else with .parquet behind it."""
        return self.name if self.is_parquet else f"{self.name}.parquet"

    @property
    def version(self) -> dict[str, Any]:
        """What must be the same for an old result to count."""
        return {"size": self.size, "mtime_ns": self.mtime_ns, "tag": self.tag}


@dataclass(frozen=True)
class Inputs:
    """All files of a job.

    Attributes:
        filesystem: The pyarrow file system that they lie in.
        files: Sorted by name.
        folder: Name of the folder that their names are relative to.
    """

    filesystem: Any
    files: tuple[InputFile, ...]
    folder: str

    def domain_of(self, file: InputFile, domain_from: str) -> str | None:
        """The domain of a whole file.

        Args:
            file: One of `files`.
            domain_from: `file` (its name without endings), `folder` (the one it lies in, relative to the input) or `none`.

        Returns:
            None for `none`.
        """
        if domain_from == "none":
            return None
        above, base = posixpath.split(file.name)
        return _TEXT.sub("", _LINES.sub("", _PARQUET.sub("", base))) if domain_from == "file" else above or self.folder


def find_inputs(inputs: Sequence[str], output: str | None = None) -> Inputs:
    """All files named by `inputs`.

    Args:
        inputs: Files, folders (searched to the bottom), globs (`*`, `?`, `[...]`, `**`), or URLs of these. In folders, files of other
            kinds and names starting with "." or "_" are left out. Text files too (also of a glob), if it names Parquet or JSON lines as well.
        output: Everything in this folder is left out; None: nothing is.

    Returns:
        Every file once, however many inputs name it.

    Raises:
        HeadwiseError: If an input names nothing, inputs lie in different file systems, a name cannot be used for a score file, or two
            files would share one.
    """
    if not inputs:
        raise HeadwiseError("no input given; name files, folders, globs or URLs")
    found: dict[str, Any] = {}
    roots, filesystem = [], None
    for text in inputs:
        place, root, infos = _expand(str(text))
        if filesystem is not None and not filesystem.equals(place):
            raise HeadwiseError(f"{text} lies in another file system than {inputs[0]}; score them in separate runs")
        filesystem = place
        roots.append(root)
        found.update((info.path, info) for info in infos)
    common = posixpath.commonpath(roots)
    if output is not None:
        place, own = resolve(output)
        if place.equals(filesystem):
            found = {path: info for path, info in found.items() if not path.startswith(f"{own}/")}
    if not found:
        raise HeadwiseError(f"{', '.join(map(str, inputs))}: no file to score; known are {FORMATS}")
    files = sorted((_file(info, common, filesystem) for info in found.values()), key=lambda file: file.name)
    seen: dict[str, str] = {}
    for file in files:
        safe_name(file.name, "an input")
        if (other := seen.setdefault(file.sidecar, file.name)) != file.name:
            raise HeadwiseError(f"{other} and {file.name} would share the score file {file.sidecar}; rename one")
    return Inputs(filesystem, tuple(files), posixpath.basename(common) or "all")


def shard_of(files: Sequence[InputFile], index: int, count: int) -> list[InputFile]:
    """One of several parts with about equally many bytes; a function of the names and sizes alone, so machines need not talk to each other.

    Args:
        files: All of them.
        index: Which part, from 0.
        count: How many parts.

    Returns:
        The files of the part, sorted by name; none if there are fewer files than parts.
    """
    loads = [(0, shard) for shard in range(count)]
    mine = []
    for file in sorted(files, key=lambda file: (-file.size, file.name)):  # largest first, each to the part with the fewest bytes
        load, shard = loads[0]
        heapq.heapreplace(loads, (load + file.size, shard))
        if shard == index:
            mine.append(file)
    return sorted(mine, key=lambda file: file.name)


def safe_name(name: object, of: str) -> str:
    """The name of a file below a folder, checked: nothing that is read or written under it lies outside of that folder.

    Args:
        name: From a listing, a record or a manifest.
        of: What it names, for the message.

    Returns:
        The name as it was given.

    Raises:
        HeadwiseError: If it is no text, empty, absolute, has a part that is empty, `.` or `..`, a control character, a backslash, no valid
            Unicode, or a part of more than `LONGEST_NAME` bytes.
    """
    shown = ascii(name if not isinstance(name, str) or len(name) <= 100 else name[:100] + "...")
    if not isinstance(name, str) or any(part in ("", ".", "..") for part in name.split("/")):
        raise HeadwiseError(
            f"{shown} cannot be the name of {of}: a name lies below its folder, without empty parts, '.' and '..'"
        )
    if "\\" in name or any(category(character) in ("Cc", "Cs") for character in name):  # control characters, lone surrogates
        raise HeadwiseError(
            f"{shown} cannot be the name of {of}: it holds a character that names of results cannot have; rename it"
        )
    if max(len(part.encode()) for part in name.split("/")) > LONGEST_NAME:
        raise HeadwiseError(
            f"{shown} is too long for the name of {of}: a file or folder may have {LONGEST_NAME} bytes; rename it"
        )
    return name


def resolve(text: str) -> tuple[Any, str]:
    """Where a path or URL leads. Kinds of URLs that pyarrow does not know are opened with fsspec.

    Args:
        text: A path, also one that begins with `~`, or a URL. Nothing need be there.

    Returns:
        (pyarrow file system, path inside it).

    Raises:
        HeadwiseError: If it is too long, no valid Unicode, or of a kind that cannot be opened.
    """
    _check_path(text)
    scheme, mark, rest = text.partition("://")
    if not mark or scheme == "file":
        return fs.LocalFileSystem(), posixpath.normpath(Path(rest if mark else text).expanduser().absolute().as_posix())
    try:
        place, path = fs.FileSystem.from_uri(text)
        return place, path.rstrip("/")
    except (pa.ArrowException, ValueError) as error:
        native = error
    except OSError as error:
        raise HeadwiseError(f"{text} cannot be opened: {one_line(error)}") from error
    try:
        from fsspec.core import url_to_fs

        place, path = url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise HeadwiseError(f"{text} cannot be opened: {one_line(native)}; fsspec: {one_line(error)}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(place)), str(path).rstrip("/")


def contents(place: Any, folder: str, recursive: bool = True) -> list[Any]:
    """What is in a folder of results: infos of pyarrow; nothing where there is no such folder.

    pyarrow raises `FileNotFoundError` for a folder that another process makes between its two looks; then it is looked at once more.
    """
    selector = fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
    try:
        return list(place.get_file_info(selector))
    except FileNotFoundError:
        return list(place.get_file_info(selector))


def one_line(error: BaseException) -> str:
    """An error's message in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_path(text: str) -> None:
    if len(text) > LONGEST_PATH:
        raise HeadwiseError(f"{text[:60]!a}... cannot be opened: a path of {len(text)} characters is too long")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HeadwiseError(f"{text!a} is no valid Unicode, so it cannot be opened; rename it") from error


def _expand(text: str) -> tuple[Any, str, list[Any]]:
    """(file system, folder that names are relative to, infos of the files found)."""
    _check_path(text)
    url, mark, query = text.partition("?") if "://" in text else (text, "", "")
    wild = _WILD.search(url)
    if wild and not ("://" not in text and Path(url).expanduser().exists()):
        head, _, pattern = url[: wild.start()].rpartition("/")
        base, pattern = (head or "/" if "/" in url[: wild.start()] else "."), pattern + url[wild.start() :]
        place, root = resolve(base + mark + query)
        accept = _matcher(f"{root.rstrip('/')}/{pattern}")
        infos = _listed(place, root, text, recursive="/" in pattern)
        return place, root, _chosen(info for info in infos if accept(info.path))
    place, path = resolve(text)
    try:
        info = place.get_file_info(path)
    except OSError as error:
        raise HeadwiseError(f"{text} cannot be opened: {one_line(error)}") from error
    if info.type == fs.FileType.File:
        if not _known(path):
            raise HeadwiseError(f"{text} is of no known kind; known are {FORMATS}")
        return place, posixpath.dirname(path), [info]
    if info.type == fs.FileType.NotFound:
        raise HeadwiseError(f"no such file or folder: {text}")
    infos = _listed(place, path, text, recursive=True)
    return place, path, _chosen(info for info in infos if not _hidden(posixpath.relpath(info.path, path)))


def _chosen(infos: Iterable[Any]) -> list[Any]:
    """Files of known kinds, and of these the tables, if there are any: text files beside them are notes and licences."""
    known = [info for info in infos if _known(info.path)]
    return [info for info in known if not _TEXT.search(info.path)] or known


def _listed(place: Any, folder: str, text: str, recursive: bool) -> Iterable[Any]:
    try:
        infos = place.get_file_info(fs.FileSelector(folder, recursive=recursive))
        return [info for info in infos if info.path and info.type == fs.FileType.File]  # a path is decoded when it is looked at
    except (OSError, UnicodeError) as error:
        raise HeadwiseError(f"{text} cannot be listed: {one_line(error)}") from error


def _known(path: str) -> bool:
    return bool(_PARQUET.search(path) or _LINES.search(path) or _TEXT.search(path))


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _matcher(pattern: str) -> Any:
    """A glob over whole paths: `*` and `?` stay inside a folder, `**` as a folder stands for any number of folders."""
    parts = []
    for part in pattern.split("/"):
        inner = fnmatch.translate(part).replace(".*", "[^/]*").removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
        parts.append("(?:[^/]+/)*" if part == "**" else inner + "/")
    return re.compile("".join(parts).removesuffix("/")).fullmatch


def _file(info: Any, common: str, filesystem: Any) -> InputFile:
    name = posixpath.relpath(info.path, common) if common else info.path
    mtime = getattr(info, "mtime_ns", None)
    tag = None
    if mtime is None and isinstance(filesystem, fs.PyFileSystem) and isinstance(filesystem.handler, fs.FSSpecHandler):
        details = filesystem.handler.fs.info(info.path)
        tag = next(
            (str(details[key]) for key in ("ETag", "etag", "md5Hash", "mtime", "created", "LastModified") if details.get(key)),
            None,
        )
    return InputFile(name, info.path, int(info.size), mtime, tag)
