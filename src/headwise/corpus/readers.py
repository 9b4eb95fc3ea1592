"""Files as rows, and rows as chunks: bounded memory, one row for every row or line of the file, whatever is wrong with it.

A line is a row, blank or broken lines too. What makes a row unusable is told by a reason and a detail; what makes a file unreadable from some point
on ends it (lines) or its row group (Parquet), and is kept in `Reader.damaged`. Reading always takes place in the same steps, so a damaged file
gives the same rows each time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from headwise.corpus.arrow import pa, pq
from headwise.corpus.columns import plain_name, rows_of
from headwise.corpus.inputs import InputFile, one_line
from headwise.corpus.options import ScoreOptions

STEP = 1 << 16  # bytes of lines read at once: so many in front of a damaged place may be lost with it
LONGEST_LINE = 256 << 20  # bytes; longer lines are rejected, so that a file without line ends cannot fill the memory
PARQUET_ROWS = 64  # rows decoded at once
BROKEN = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises for damaged data


class UnreadableError(Exception):
    """The bytes of a file cannot be had (network, rights): not damage, and worth another try later."""


class Row(NamedTuple):
    """One row of a file. text: None if `problem` (reason, detail) says why there is none. size: bytes it takes."""

    text: str | None
    domain: str | None
    id: str | None
    problem: tuple[str, str] | None
    size: int


@dataclass(frozen=True)
class Rows:
    """A chunk of a file: rows `first`, `first + 1`, ... problems: index in the chunk -> (reason, detail). position: share of the file read so far."""

    first: int
    texts: list[str | None]
    domains: list[str | None]
    ids: list[str | None]
    problems: dict[int, tuple[str, str]]
    position: float = 0.0


class Source(io.RawIOBase):
    """The bytes of an input file for pyarrow; counts them, and tells failures to get them from damage inside them."""

    def __init__(self, filesystem: Any, path: str, seekable: bool) -> None:
        try:
            self._file = filesystem.open_input_file(path) if seekable else filesystem.open_input_stream(path, compression=None)
        except OSError as error:
            raise UnreadableError(one_line(error)) from error
        self._seekable = seekable
        self.count = 0

    def readable(self) -> bool:
        """As of all sources."""
        return True

    def seekable(self) -> bool:
        """Parquet is read from its end."""
        return self._seekable

    def read(self, size: int = -1) -> bytes:
        """The next bytes. Raises `UnreadableError`."""
        try:
            data: bytes = self._file.read(None if size < 0 else size)
        except OSError as error:
            raise UnreadableError(one_line(error)) from error
        self.count += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """As of any file."""
        return int(self._file.tell())

    def size(self) -> int:
        """Bytes; pyarrow asks for it."""
        return int(self._file.size())

    def close(self) -> None:
        """Close the file below too."""
        if not self.closed:
            self._file.close()
        super().close()


class Reader:
    """The rows of one file. After the last row, `damaged` says what could not be read, or None."""

    def __init__(self, filesystem: Any, file: InputFile, options: ScoreOptions, domain: str | None = None) -> None:
        """domain: of all rows, where no column gives it."""
        self._filesystem, self._file, self._options, self._domain = filesystem, file, options, domain
        self.damaged: str | None = None
        self.position = 0.0  # share of the file read so far, in [0, 1]

    def chunks(self) -> Iterator[Rows]:
        """The file cut into chunks of at most `chunk_rows` rows and `chunk_bytes` bytes; a larger row is a chunk of its own."""
        first, held, size = 0, list[Row](), 0
        for row in self.rows():
            if held and (len(held) == self._options.chunk_rows or size + row.size > self._options.chunk_bytes):
                yield _chunk(first, held, self.position)
                first, held, size = first + len(held), [], 0
            held.append(row)
            size += row.size
        if held:
            yield _chunk(first, held, self.position)

    def rows(self) -> Generator[Row]:
        """All rows. Raises `UnreadableError` if the bytes cannot be had."""
        source = Source(self._filesystem, self._file.path, self._file.is_parquet)
        try:
            yield from self._parquet(source) if self._file.is_parquet else self._lines(source)
        finally:
            source.close()

    def _parquet(self, source: Source) -> Iterator[Row]:
        try:
            # Both options are needed for column chunks to be streamed instead of model.
            table = pq.ParquetFile(pa.PythonFile(source, mode="r"), buffer_size=1 << 20, pre_buffer=False)
        except BROKEN as error:
            self.damaged = one_line(error)
            return
        wanted = [self._options.text_column, self._options.domain_column, self._options.id_column]
        columns = [name for name in table.schema_arrow.names if name in wanted]
        total, done = table.metadata.num_rows, 0
        for group in range(table.num_row_groups):
            left = table.metadata.row_group(group).num_rows
            for row in self._row_group(table, group, columns, left):
                done += 1
                self.position = done / total
                yield row

    def _row_group(self, table: Any, group: int, columns: list[str], left: int) -> Iterator[Row]:
        try:
            if not columns:  # nothing to read, but the rows exist
                columns = table.schema_arrow.names[:1]
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, row_groups=[group], columns=columns):
                left -= batch.num_rows
                names = self._options.text_column, self._options.domain_column, self._options.id_column
                yield from (Row(*parts) for parts in rows_of(batch, *names, self._domain))
            error = "rows are missing" if left > 0 else None
        except BROKEN as broken:
            error = one_line(broken)
        if error is not None:
            self.damaged = self.damaged or f"row group {group}: {error}"
            yield from (Row(None, self._domain, None, ("row group cannot be read", error), 0) for _ in range(left))

    def _lines(self, source: Source) -> Iterator[Row]:
        stream = pa.PythonFile(source, mode="r")
        if self._file.compression:
            stream = pa.CompressedInputStream(stream, self._file.compression)
        rest, lost, start = bytearray(), False, True
        while True:
            try:
                block = stream.read(STEP)
            except BROKEN as error:
                self.damaged = one_line(error)  # the line it happened in is incomplete, so it is no row
                return
            self.position = source.count / max(self._file.size, 1)
            if not block:
                break
            if start:
                block, start = block.removeprefix(b"\xef\xbb\xbf"), False
            *lines, tail = block.split(b"\n")
            for line in lines:
                yield _too_long(self._domain) if lost else self._parse(bytes(rest) + line)
                rest, lost = bytearray(), False
            rest += tail
            if len(rest) > LONGEST_LINE:
                rest, lost = bytearray(), True
        if rest or lost:
            yield _too_long(self._domain) if lost else self._parse(bytes(rest))

    def _parse(self, line: bytes) -> Row:
        """A line of JSON as a row; never raises."""
        options, size = self._options, len(line)
        try:
            data = json.loads(line.decode())
        except UnicodeDecodeError as error:
            return Row(None, self._domain, None, ("not UTF-8", one_line(error)), size)
        except (ValueError, RecursionError) as error:
            problem = ("broken JSON", one_line(error)) if line.strip() else ("blank line", "")
            return Row(None, self._domain, None, problem, size)
        if not isinstance(data, dict):
            return Row(None, self._domain, None, ("not a JSON object", type(data).__name__), size)
        domain = self._domain if options.domain_column is None else plain_name(data.get(options.domain_column))
        key = None if options.id_column is None else plain_name(data.get(options.id_column))
        text = data.get(options.text_column)
        found: tuple[str, str] | None = None
        if text is None:
            found = ("no text", "") if options.text_column in data else ("no such column", options.text_column)
        elif not isinstance(text, str):
            found = ("not a text", type(text).__name__)
        else:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                found = ("not valid text", one_line(error))
        return Row(None if found else text, domain, key, found, size)


def columns_of(filesystem: Any, file: InputFile) -> list[str] | None:
    """Names of the columns of a Parquet file, or of the first JSON object among the first lines; None if there are none to be seen."""
    try:
        source = Source(filesystem, file.path, file.is_parquet)
        try:
            if file.is_parquet:
                return list(pq.ParquetFile(pa.PythonFile(source, mode="r")).schema_arrow.names)
            stream = pa.PythonFile(source, mode="r")
            stream = pa.CompressedInputStream(stream, file.compression) if file.compression else stream
            for line in stream.read(1 << 20).split(b"\n")[:100]:
                try:
                    data = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(data, dict):
                    return list(data)
        finally:
            source.close()
    except (UnreadableError, *BROKEN):
        return None
    return None


def _chunk(first: int, rows: list[Row], position: float) -> Rows:
    texts, domains, ids, problems, _ = zip(*rows, strict=True)
    found = {index: problem for index, problem in enumerate(problems) if problem is not None}
    return Rows(first, list(texts), list(domains), list(ids), found, position)


def _too_long(domain: str | None) -> Row:
    return Row(None, domain, None, ("line too long", f"more than {LONGEST_LINE >> 20} MiB"), 0)
