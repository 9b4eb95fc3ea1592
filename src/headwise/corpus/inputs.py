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

from headwise.corpus.arrow import fs, pa
from headwise.heads.errors import HeadwiseError

FORMATS = ".parquet, .jsonl, .ndjson, and .jsonl, .ndjson or .json with .gz or .zst"
_PARQUET = re.compile(r"\.parquet$", re.IGNORECASE)
_LINES = re.compile(r"\.(?:(?:jsonl|ndjson)(?:\.(gz|zst))?|json\.(gz|zst))$", re.IGNORECASE)
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class InputFile:
    """One file. name: its path relative to the deepest folder that holds all inputs, with "/". path: inside its file system. size: bytes.

    mtime_ns: last change, or None where the file system tells none. tag: what tells versions apart there (etag), or None.
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
    def compression(self) -> str | None:
        """`gzip`, `zstd` or None: of the whole file, not of what is inside Parquet."""
        found = _LINES.search(self.name)
        return {"gz": "gzip", "zst": "zstd"}.get((found[1] or found[2] or "").lower()) if found else None

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
    """All files, sorted by name, and the file system they lie in. folder: name of the folder that their names are relative to."""

    filesystem: Any
    files: tuple[InputFile, ...]
    folder: str

    def domain_of(self, file: InputFile, domain_from: str) -> str | None:
        """The domain of a whole file: see `ScoreOptions.domain_from`."""
        if domain_from == "none":
            return None
        above, base = posixpath.split(file.name)
        return _LINES.sub("", _PARQUET.sub("", base)) if domain_from == "file" else above or self.folder


def find_inputs(inputs: Sequence[str], output: str | None = None) -> Inputs:
    """All files named by `inputs`: files, folders (searched to the bottom), globs (`*`, `?`, `[...]`, `**`), or URLs of these.

    In folders, files of other kinds and names starting with "." or "_" are left out, and so is everything in `output`.
    Raises `HeadwiseError` if an input names nothing, if inputs lie in different file systems, or if two files would share a score file.
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
        if (other := seen.setdefault(file.sidecar, file.name)) != file.name:
            raise HeadwiseError(f"{other} and {file.name} would share the score file {file.sidecar}; rename one")
    return Inputs(filesystem, tuple(files), posixpath.basename(common) or "all")


def shard_of(files: Sequence[InputFile], index: int, count: int) -> list[InputFile]:
    """The `index`-th of `count` parts with about equally many bytes, sorted by name; a function of the names and sizes alone."""
    loads = [(0, shard) for shard in range(count)]
    mine = []
    for file in sorted(files, key=lambda file: (-file.size, file.name)):  # largest first, each to the part with the fewest bytes
        load, shard = loads[0]
        heapq.heapreplace(loads, (load + file.size, shard))
        if shard == index:
            mine.append(file)
    return sorted(mine, key=lambda file: file.name)


def resolve(text: str) -> tuple[Any, str]:
    """A path or URL -> (pyarrow file system, path inside it). Kinds of URLs that pyarrow does not know are opened with fsspec."""
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


def one_line(error: BaseException) -> str:
    """An error's message in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _expand(text: str) -> tuple[Any, str, list[Any]]:
    """(file system, folder that names are relative to, infos of the files found)."""
    url, mark, query = text.partition("?") if "://" in text else (text, "", "")
    wild = _WILD.search(url)
    if wild and not ("://" not in text and Path(url).expanduser().exists()):
        head, _, pattern = url[: wild.start()].rpartition("/")
        base, pattern = (head or "/" if "/" in url[: wild.start()] else "."), pattern + url[wild.start() :]
        place, root = resolve(base + mark + query)
        accept = _matcher(f"{root.rstrip('/')}/{pattern}")
        infos = _listed(place, root, text, recursive="/" in pattern)
        return place, root, [info for info in infos if accept(info.path) and _known(info.path)]
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
    return place, path, [info for info in infos if _known(info.path) and not _hidden(posixpath.relpath(info.path, path))]


def _listed(place: Any, folder: str, text: str, recursive: bool) -> Iterable[Any]:
    try:
        infos = place.get_file_info(fs.FileSelector(folder, recursive=recursive))
    except OSError as error:
        raise HeadwiseError(f"{text} cannot be listed: {one_line(error)}") from error
    return [info for info in infos if info.type == fs.FileType.File]


def _known(path: str) -> bool:
    return bool(_PARQUET.search(path) or _LINES.search(path))


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
