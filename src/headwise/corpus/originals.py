"""Input rows read back for their scores: the whole rows of a choice, and the texts of a few documents."""

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
from headwise.corpus.output import Record, read_record
from headwise.corpus.readers import BROKEN, PARQUET_ROWS, Reader, Source, UnreadableError, raw_lines, unpacked
from headwise.corpus.tables import ScoreFiles
from headwise.heads.errors import HeadwiseError

BATCH = 1024  # rows of Parquet held at once


class Originals:
    """The input of every score file."""

    def __init__(self, files: ScoreFiles, inputs: Sequence[str] = ()) -> None:
        """Nothing is read yet.

        Args:
            files: The scores.
            inputs: Where the inputs are now, as they were given to `select score`; without them, where they were (which only works for local
                files that were not touched since).
        """
        self._done = files.out.below("done")
        self._place: Any = fs.LocalFileSystem()
        self._named: dict[str, InputFile] | None = None
        if inputs:
            found = find_inputs(inputs, files.out.location)
            self._place, self._named = found.filesystem, {file.name: file for file in found.files}
        self._options = ScoreOptions(text_column=files.text_column)

    def file(self, name: str) -> InputFile:
        """The input of the score file `name`.

        Without `inputs` a file counts only if it is unchanged to the last detail that its done record holds: else a changed record could name
        any file of this machine, and its text would end in a report.

        Raises:
            HeadwiseError: If it is not there any more, or not as it was, or its done record is broken.
        """
        record, file = self._record(name), None
        if record is not None and self._named is not None:
            file = self._named.get(record.name)
        elif record is not None:
            with contextlib.suppress(HeadwiseError):  # no such file any more
                file = find_inputs([record.path]).files[0]
        if record is None or file is None:
            raise HeadwiseError(f"the input of {name} is not where it was; say where the inputs are now with --inputs")
        if record.version["size"] != file.size:
            raise HeadwiseError(f"{file.path} has changed since it was scored ({file.size} bytes now); score it again")
        if self._named is None and not (record.version == file.version and file.path == record.path):
            raise HeadwiseError(
                f"the input of {name} was touched since it was scored; say where the inputs are now with --inputs"
            )
        return replace(file, name=record.name)

    def texts(self, name: str, rows: Sequence[int]) -> list[str | None]:
        """The texts of some rows of an input.

        Args:
            name: Of a score file.
            rows: At least one, in any order.

        Returns:
            In the order of `rows`; None for what cannot be read, whatever the reason.
        """
        try:
            file = self.file(name)
            found = self._parquet_texts(file, rows) if file.is_parquet else self._line_texts(file, max(rows), set(rows))
        except (HeadwiseError, UnreadableError, *BROKEN):
            return [None] * len(rows)
        return [found.get(row) for row in rows]

    def copy(self, name: str, chosen: NDArray[np.bool_], sink: Any) -> int:
        """Write the chosen rows of the input of `name` to a stream, in the input's own format, all columns.

        Args:
            name: Of a score file.
            chosen: [row] bool.
            sink: Where to write.

        Returns:
            How many rows were written: of a damaged input those that can be read.

        Raises:
            HeadwiseError: If the input cannot be had.
        """
        file, count = self.file(name), 0
        try:
            if file.is_parquet:
                return self._copy_parquet(file, chosen, sink)
            with pa.CompressedOutputStream(sink, file.compression) if file.compression else _Kept(sink) as stream:
                for row, line in enumerate(self._raw_lines(file)):
                    if row < len(chosen) and chosen[row] and line is not None:
                        stream.write(line if file.is_text else line + b"\n")
                        count += 1
        except UnreadableError as error:
            raise HeadwiseError(f"{file.path} cannot be copied: {error}") from error
        return count

    def _record(self, name: str) -> Record | None:
        """The done record of a score file, whose input has its name, or its name without .parquet."""
        for own in (name, name.removesuffix(".parquet")):
            if (text := self._done.read(f"{own}.json")) is not None:
                return read_record(text, own)
        return None

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

    def _copy_parquet(self, file: InputFile, chosen: NDArray[np.bool_], sink: Any) -> int:
        count = 0
        with Source(self._place, file.path, True) as source:
            table = pq.ParquetFile(pa.PythonFile(source, mode="r"), buffer_size=1 << 20, pre_buffer=False)
            first = 0
            with pq.ParquetWriter(sink, table.schema_arrow, compression="zstd") as writer:
                for group in range(table.num_row_groups):
                    size = table.metadata.row_group(group).num_rows
                    for at, batch in _readable(table, group) if chosen[first : first + size].any() else ():
                        kept = batch.filter(pa.array(chosen[first + at : first + at + batch.num_rows]))
                        writer.write_batch(kept)
                        count += kept.num_rows
                    first += size
        return count

    def _raw_lines(self, file: InputFile) -> Iterator[bytes | None]:
        """Lines as they are, the same number of them as `Reader` has rows; a text file is one line."""
        with Source(self._place, file.path, False) as source:
            blocks = _until_damaged(unpacked(source, file.compression))
            yield from [b"".join(block or b"" for block in blocks)] if file.is_text else raw_lines(blocks)


def _readable(table: Any, group: int) -> Iterator[tuple[int, Any]]:
    """(number of its first row in the group, batch) of a row group, up to where it is damaged: found in the steps of `Reader` there."""
    at = 0
    for rows in (BATCH, PARQUET_ROWS):
        number = 0
        try:
            for batch in table.iter_batches(batch_size=rows, row_groups=[group]):
                if number >= at:
                    yield at, batch
                    at += batch.num_rows
                number += batch.num_rows
            return
        except BROKEN:
            continue


def _until_damaged(blocks: Iterator[bytes]) -> Iterator[bytes | None]:
    """The blocks, and None where the file is damaged: rows behind it have no score."""
    try:
        yield from blocks
    except BROKEN:
        yield None


class _Kept:
    """A stream that stays open when the block ends."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __enter__(self) -> Any:
        return self._stream

    def __exit__(self, *error: object) -> None:
        return None
