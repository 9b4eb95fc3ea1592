"""The rows that scores belong to, read back from the inputs: whole rows of a choice, and the texts of a few documents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.corpus.arrow import fs, pa, pq
from headwise.corpus.inputs import InputFile, find_inputs
from headwise.corpus.options import ScoreOptions
from headwise.corpus.readers import BROKEN, LONGEST_LINE, STEP, Reader, Source, UnreadableError
from headwise.corpus.tables import ScoreFiles
from headwise.heads.errors import HeadwiseError

BATCH = 1024  # rows of Parquet held at once


class Originals:
    """The input of every score file.

    inputs: where they are now, as they were given to `select score`; without them, where they were (which only works for local files).
    """

    def __init__(self, files: ScoreFiles, inputs: Sequence[str] = ()) -> None:
        self._done = files.out.below("done")
        self._place: Any = fs.LocalFileSystem()
        self._named: dict[str, InputFile] | None = None
        if inputs:
            found = find_inputs(inputs, files.out.location)
            self._place, self._named = found.filesystem, {file.name: file for file in found.files}
        reading = files.description.get("reading", {})
        self._options = ScoreOptions(text_column=reading.get("text_column", "text"))

    def file(self, name: str) -> InputFile:
        """The input of the score file `name`. Raises `HeadwiseError` if it is not there any more, or not as it was."""
        record, file = self._record(name), None
        if record is not None and self._named is not None:
            file = self._named.get(record["name"])
        elif record is not None:
            with contextlib.suppress(HeadwiseError):  # no such file any more
                file = find_inputs([record["input"]["path"]]).files[0]
        if record is None or file is None:
            raise HeadwiseError(f"the input of {name} is not where it was; say where the inputs are: --inputs")
        if record["input"]["version"]["size"] != file.size:
            raise HeadwiseError(f"{file.path} has changed since it was scored ({file.size} bytes now); score it again")
        return replace(file, name=record["name"])

    def texts(self, name: str, rows: Sequence[int]) -> list[str | None]:
        """The texts of some rows of the input of `name`, in their order; None for what cannot be read."""
        try:
            file = self.file(name)
            found = self._parquet_texts(file, rows) if file.is_parquet else self._line_texts(file, max(rows), set(rows))
        except (HeadwiseError, UnreadableError, *BROKEN):
            return [None] * len(rows)
        return [found.get(row) for row in rows]

    def copy(self, name: str, chosen: NDArray[np.bool_], sink: Any) -> None:
        """Write the chosen rows ([row] bool) of the input of `name` to a stream, in the input's own format, all columns."""
        file = self.file(name)
        try:
            if file.is_parquet:
                self._copy_parquet(file, chosen, sink)
                return
            with pa.CompressedOutputStream(sink, file.compression) if file.compression else _Kept(sink) as stream:
                for row, line in enumerate(self._raw_lines(file)):
                    if row < len(chosen) and chosen[row]:
                        stream.write(line + b"\n")
        except (UnreadableError, *BROKEN) as error:
            raise HeadwiseError(f"{file.path} cannot be copied: {error}") from error

    def _record(self, name: str) -> Any:
        """The done record of a score file, whose input has its name, or its name without .parquet."""
        return self._done.read_json(f"{name}.json") or self._done.read_json(f"{name.removesuffix('.parquet')}.json")

    def _parquet_texts(self, file: InputFile, rows: Sequence[int]) -> dict[int, str]:
        column, found, first = self._options.text_column, dict[int, str](), 0
        with Source(self._place, file.path, True) as source:
            table = pq.ParquetFile(pa.PythonFile(source, mode="r"), buffer_size=1 << 20, pre_buffer=False)
            for group in range(table.num_row_groups):
                size = table.metadata.row_group(group).num_rows
                wanted = sorted(row - first for row in rows if first <= row < first + size)
                if wanted:
                    at = first
                    for batch in table.iter_batches(batch_size=BATCH, row_groups=[group], columns=[column]):
                        inside = [row for row in rows if at <= row < at + batch.num_rows]
                        found |= {row: batch.column(0)[row - at].as_py() for row in inside}
                        at += batch.num_rows
                first += size
        return found

    def _line_texts(self, file: InputFile, last: int, rows: set[int]) -> dict[int, str]:
        found = {}
        for number, row in enumerate(Reader(self._place, file, self._options).rows()):
            if number in rows and row.text is not None:
                found[number] = row.text
            if number >= last:
                break
        return found

    def _copy_parquet(self, file: InputFile, chosen: NDArray[np.bool_], sink: Any) -> None:
        with Source(self._place, file.path, True) as source:
            table = pq.ParquetFile(pa.PythonFile(source, mode="r"), buffer_size=1 << 20, pre_buffer=False)
            first = 0
            with pq.ParquetWriter(sink, table.schema_arrow, compression="zstd") as writer:
                for group in range(table.num_row_groups):
                    size = table.metadata.row_group(group).num_rows
                    if chosen[first : first + size].any():  # a group that could not be read has no chosen row
                        at = first
                        for batch in table.iter_batches(batch_size=BATCH, row_groups=[group]):
                            writer.write_batch(batch.filter(pa.array(chosen[at : at + batch.num_rows])))
                            at += batch.num_rows
                    first += size

    def _raw_lines(self, file: InputFile) -> Iterator[bytes]:
        """Lines as they are; the same number of them as `Reader` has rows."""
        with Source(self._place, file.path, False) as source:
            stream = pa.PythonFile(source, mode="r")
            stream = pa.CompressedInputStream(stream, file.compression) if file.compression else stream
            rest, start = bytearray(), True
            while block := _block(stream):
                if start:
                    block, start = block.removeprefix(b"\xef\xbb\xbf"), False
                *lines, tail = block.split(b"\n")
                for line in lines:
                    yield bytes(rest) + line
                    rest.clear()
                if len(rest) <= LONGEST_LINE:  # a longer line is never chosen
                    rest += tail
            if rest:
                yield bytes(rest)


class _Kept:
    """A stream that stays open when the block ends."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __enter__(self) -> Any:
        return self._stream

    def __exit__(self, *error: object) -> None:
        return None


def _block(stream: Any) -> bytes:
    """The next bytes; nothing more from where the file is damaged: rows behind it have no score."""
    try:
        data: bytes = stream.read(STEP)
    except BROKEN:
        return b""
    return data
