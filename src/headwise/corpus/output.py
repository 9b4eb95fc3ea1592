"""The output folder: score files, done records and rejected rows; each file appears whole or not at all.

OUT/run.json                 the configuration that all results share; marks the folder as ours
OUT/scores/<name>.parquet    one row per input row (`sidecar.schema_of`)
OUT/done/<name>.json         written last: version of the input, rows, counts, config hash
OUT/rejected/<name>.jsonl    rows without a score: row, reason, detail; a damaged file ends it with row null
OUT/claims/, OUT/tmp/        work in progress
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headwise.corpus.arrow import fs, pa, pq
from headwise.corpus.inputs import InputFile, contents, one_line, resolve, safe_name
from headwise.corpus.options import Config
from headwise.corpus.readers import BROKEN
from headwise.heads.errors import HeadwiseError
from headwise.heads.text import reason

GROUP_ROWS = 1 << 16  # rows of a row group of a score file
COUNTS = ("rows", "scored", "flagged", "tokens")


class LostFileError(Exception):
    """The temporary file is gone: another process has taken this file over."""


class Record(NamedTuple):
    """A finished file, as its done record tells it.

    Attributes:
        name: Of the input, below the folder of all inputs.
        path: Where the input was.
        version: Of the input, see `InputFile.version`.
        config_hash: Of the configuration that it was scored with.
    """

    name: str
    path: str
    version: dict[str, Any]
    config_hash: str

    def is_of(self, file: InputFile) -> bool:
        """Whether the file is the one that was scored, unchanged since."""
        return self.name == file.name and self.version == file.version


def write_record(file: InputFile, config_hash: str, counts: Mapping[str, Any]) -> bytes:
    """The content of a done record.

    Args:
        file: The input that is finished.
        config_hash: Of the configuration that it was scored with.
        counts: `COUNTS`, `rejected` (reason -> rows) and `damaged`, as plain data.

    Returns:
        JSON, for `read_record`.
    """
    source = {"path": file.path, "version": file.version}
    full = {"name": file.name, "input": source, "config_hash": config_hash, **counts}
    return json.dumps(full, sort_keys=True, indent=1).encode()


def read_record(text: str | bytes, name: str) -> Record:
    """A done record, checked.

    Args:
        text: Its content.
        name: The name under which it stands.

    Raises:
        HeadwiseError: If it is none: broken, of wrong types or ranges, of another name, or of an input whose path does not end in its name.
    """
    try:
        data = _object(json.loads(text), "it")
        source = _object(data["input"], "input")
        version = _object(source["version"], "the version of the input")
        record = Record(safe_name(data["name"], "an input"), _text(source, "path"), version, _text(data, "config_hash"))
        counts = {key: _count(data[key], key) for key in COUNTS}
        rejected = {key: _count(value, f"the count {key!r}") for key, value in _object(data["rejected"], "rejected").items()}
        if data["damaged"] is not None:
            _text(data, "damaged")
        if counts["rows"] != counts["scored"] + sum(rejected.values()) or counts["flagged"] > counts["scored"]:
            raise HeadwiseError("its counts of rows do not add up")
        _check_version(version)
        if record.name != name or f"/{record.path}".rpartition(f"/{name}")[1:] != (f"/{name}", ""):
            raise HeadwiseError(f"it is of {record.name!r} at {record.path!r}")
    except (ValueError, KeyError, RecursionError) as error:
        raise HeadwiseError(f"the done record of {name} is broken (done/{name}.json: {reason(error)}); score it again") from error
    return record


def _check_version(version: Mapping[str, Any]) -> None:
    if set(version) != {"size", "mtime_ns", "tag"}:
        raise HeadwiseError("the version of the input must have size, mtime_ns and tag, and nothing else")
    _count(version["size"], "the size of the input")
    if not isinstance(version["mtime_ns"], int | None) or not isinstance(version["tag"], str | None):
        raise HeadwiseError("mtime_ns of the input must be a whole number or null, and tag a text or null")


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HeadwiseError(f"{what} must be a JSON object")
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise HeadwiseError(f"{key} must be a text")
    return value


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise HeadwiseError(f"{what} must be a whole number of at least 0")
    return value


class Output:
    """An output folder, local or in any file system of pyarrow or fsspec.

    Args:
        location: A path or URL. It is opened, or made with its `run.json`.
        config: What all results in it share.

    Attributes:
        config: As given.

    Raises:
        HeadwiseError: If it holds other things than scores, or results of another configuration.
    """

    def __init__(self, location: str, config: Config) -> None:
        self.config = config
        self._location = location
        self._place, self._root = resolve(location)
        text = json.dumps({"config_hash": config.hash, "config": config.data}, sort_keys=True, indent=1)
        if (old := self._read("run.json")) is None:
            empty = self._is_empty()
            if (old := self._read("run.json")) is None:  # no other process has begun meanwhile
                if not empty:
                    raise HeadwiseError(f"{location} holds other things than scores; choose an empty or a new folder")
                self._write("run.json", text.encode())
                old = self._read("run.json")
        try:
            marker = json.loads(old or "{}")
            if not {"config_hash", "config"} <= set(marker):
                raise KeyError("config")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise HeadwiseError(f"{location}/run.json is not of a scoring job; choose an empty or a new folder") from error
        self._check(marker["config_hash"], "run.json")
        self._finished = set(self._names("done", ".json"))

    @property
    def local(self) -> Path | None:
        """The folder if it is a local or mounted one."""
        return Path(self._root) if isinstance(self._place, fs.LocalFileSystem) else None

    def is_done(self, file: InputFile, look_again: bool = False) -> bool:
        """Whether a result of this version of the file is there. A broken or changed record counts as none.

        Args:
            file: An input.
            look_again: Also if none was there when the folder was opened.

        Returns:
            True if the file can be skipped.

        Raises:
            HeadwiseError: For a result of another configuration, or of another file with this name.
        """
        if not look_again and file.name not in self._finished:
            return False
        try:
            record = read_record(self._read(f"done/{file.name}.json") or "", file.name)
        except HeadwiseError:
            return False
        self._check(record.config_hash, f"done/{file.name}.json")
        if record.is_of(file):
            return True
        if record.path != file.path:
            raise HeadwiseError(
                f"{self._location} holds scores of {record.path} under the name {file.name}; choose another output for {file.path}"
            )
        return False

    def start(self, file: InputFile, schema: Any) -> Sidecar:
        """A new score file; what a dead process left of it is removed.

        Args:
            file: The input, which no other process is scoring.
            schema: Of `schema_of`.
        """
        for result in (f"scores/{file.sidecar}", f"rejected/{file.name}.jsonl", f"done/{file.name}.json"):
            folder, name = posixpath.split(f"tmp/{result}")
            for found in self._names(folder, ".tmp", recursive=False):
                if found.rpartition(".")[0] == name:  # behind it stands the token of the process that wrote it
                    self.delete(f"{folder}/{found}.tmp")
        return Sidecar(self, file, schema)

    def open(self, path: str) -> Any:
        """A stream that writes `path`, below the folder. Raises `OSError`."""
        self._place.create_dir(posixpath.dirname(self._full(path)), recursive=True)
        return self._place.open_output_stream(self._full(path), compression=None)

    def rename(self, old: str, new: str) -> None:
        """Flush a closed file to disk and give it its name, replacing what is there.

        Args:
            old: Its path below the folder.
            new: Its new path below the folder.

        Raises:
            LostFileError: It is gone: another process has taken the file over.
        """
        source, target = self._full(old), self._full(new)
        self._place.create_dir(posixpath.dirname(target), recursive=True)
        try:
            if self.local is None:
                if self._place.get_file_info(source).type == fs.FileType.NotFound:
                    raise LostFileError(old)
                self.delete(new)
                self._place.move(source, target)
                return
            _sync(source, os.O_RDWR)
            os.replace(source, target)
        except FileNotFoundError as error:
            raise LostFileError(old) from error
        with contextlib.suppress(OSError):  # not every file system lets a folder be synced
            _sync(posixpath.dirname(target), os.O_RDONLY)

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self._place.get_file_info(self._full(path)).type != fs.FileType.NotFound:
                self._place.delete_file(self._full(path))

    def finish(self, file: InputFile, record: dict[str, Any]) -> None:
        """Write the done record: from now on the file is skipped.

        Args:
            file: The input.
            record: As `counts` of `write_record`.

        Raises:
            HeadwiseError: If it cannot be written.
        """
        self._write(f"done/{file.name}.json", write_record(file, self.config.hash, record))

    def _is_empty(self) -> bool:
        """Whether nothing is in the folder, but what a process left that was killed when it began."""
        infos = contents(self._place, self._root, recursive=False)
        if any(info.type != fs.FileType.Directory or posixpath.basename(info.path) != "tmp" for info in infos):
            return False
        below = contents(self._place, self._full("tmp"))
        return all(re.fullmatch(r"run\.json\.[0-9a-f]{32}\.tmp", posixpath.basename(info.path)) for info in below)

    def _check(self, other: object, where: str) -> None:
        if other != self.config.hash:
            raise HeadwiseError(
                f"{self._location} holds scores of another configuration ({where}: {other}, now {self.config.hash}); choose another output"
            )

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _read(self, path: str) -> str | None:
        if self._place.get_file_info(self._full(path)).type != fs.FileType.File:
            return None
        with self._place.open_input_stream(self._full(path), compression=None) as stream:
            return bytes(stream.read()).decode(errors="replace")

    def _write(self, path: str, data: bytes) -> None:
        temporary = f"tmp/{path}.{uuid.uuid4().hex}.tmp"
        try:
            with self.open(temporary) as stream:
                stream.write(data)
            self.rename(temporary, path)
        except OSError as error:
            raise HeadwiseError(f"could not write {self._location}/{path}: {one_line(error)}") from error

    def _names(self, folder: str, suffix: str, recursive: bool = True) -> list[str]:
        """Names of the files in or below a folder that end in `suffix`, without it."""
        root = self._full(folder)
        infos = contents(self._place, root, recursive)
        paths = [posixpath.relpath(info.path, root) for info in infos if info.type == fs.FileType.File]
        return [path.removesuffix(suffix) for path in paths if path.endswith(suffix)]


class Sidecar:
    """The score file of one input file while it is written. Nothing has its final name before `commit`.

    Args:
        output: The folder.
        file: The input.
        schema: Of `schema_of`.
    """

    def __init__(self, output: Output, file: InputFile, schema: Any) -> None:
        token = uuid.uuid4().hex
        self._output, self._file, self._schema = output, file, schema
        self._table, self._list = f"tmp/scores/{file.sidecar}.{token}.tmp", f"tmp/rejected/{file.name}.jsonl.{token}.tmp"
        self._sink = output.open(self._table)
        self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd")
        self._rejects: Any = None
        self._held: list[Any] = []
        self._held_rows = 0
        self._counts = {"rows": 0, "scored": 0, "flagged": 0, "tokens": 0}
        self._reasons: dict[str, int] = {}

    def append(self, batch: Any, rejected: Sequence[dict[str, Any]]) -> None:
        """The next rows.

        Args:
            batch: A RecordBatch with the schema's columns.
            rejected: {row, reason, detail} of each of them that has no score.
        """
        scored = batch.column(batch.schema.names.index("score")).is_valid()
        kept = pa.RecordBatch.from_arrays(
            [batch.column("flagged"), batch.column("n_tokens")], names=["flagged", "tokens"]
        ).filter(scored)
        self._counts["rows"] += batch.num_rows
        self._counts["scored"] += kept.num_rows
        self._counts["flagged"] += sum(kept.column("flagged").to_pylist())
        self._counts["tokens"] += sum(kept.column("tokens").to_pylist())
        for entry in rejected:
            self._reasons[entry["reason"]] = self._reasons.get(entry["reason"], 0) + 1
        self._reject(rejected)
        self._held.append(batch)
        self._held_rows += batch.num_rows
        while self._held_rows >= GROUP_ROWS:
            self._write_group(GROUP_ROWS)

    def commit(self, damaged: str | None) -> dict[str, Any]:
        """Finish: rejected rows, then scores, then the done record, which is returned.

        Args:
            damaged: Why the input could not be read to its end, or None.

        Raises:
            LostFileError: If another process has taken the file over.
        """
        if damaged is not None:
            self._reject([{"row": None, "reason": "damaged file", "detail": damaged}])
        if self._held_rows:
            self._write_group(self._held_rows)
        self._writer.close()
        self._sink.close()
        final = f"rejected/{self._file.name}.jsonl"
        if self._rejects is None:
            self._output.delete(final)  # of an older version of the input
        else:
            self._rejects.close()
            self._output.rename(self._list, final)
        self._output.rename(self._table, f"scores/{self._file.sidecar}")
        record = {**self._counts, "rejected": dict(sorted(self._reasons.items())), "damaged": damaged}
        self._output.finish(self._file, record)
        return {"name": self._file.name, **record}

    def discard(self) -> None:
        """Remove what was written: the file is not finished."""
        with contextlib.suppress(*BROKEN):
            self._writer.close()
        for stream, path in ((self._sink, self._table), (self._rejects, self._list)):
            if stream is not None:
                with contextlib.suppress(*BROKEN):
                    stream.close()
                self._output.delete(path)

    def _write_group(self, count: int) -> None:
        table = pa.Table.from_batches(self._held, self._schema)
        self._writer.write_table(table.slice(0, count), row_group_size=count)
        self._held = table.slice(count).to_batches()
        self._held_rows -= count

    def _reject(self, entries: Sequence[dict[str, Any]]) -> None:
        if entries and self._rejects is None:
            self._rejects = self._output.open(self._list)
        for entry in entries:
            line = {"line": entry["row"] + 1, **entry} if entry["row"] is not None and not self._file.is_parquet else entry
            self._rejects.write(json.dumps(line).encode() + b"\n")


def _sync(path: str, flags: int) -> None:
    number = os.open(path, flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)
