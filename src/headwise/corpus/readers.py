"""Files as rows, and rows as chunks: bounded memory, one row for every row or line of the file, whatever is wrong with it.

A line is a row, blank or broken lines too; a line ends at a line feed and nowhere else.
A text file is one row. An unusable row has a reason and a detail; what makes a file unreadable from some point
on ends it (lines) or its row group (Parquet), and is kept in `Reader.damaged`. Reading always takes place in the same steps, so a damaged file
gives the same rows each time.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from headwise.corpus.arrow import pa, pq
from headwise.corpus.columns import plain_name, rows_of
from headwise.corpus.documents import Rows
from headwise.corpus.inputs import InputFile, Inputs, one_line
from headwise.corpus.options import ScoreOptions
from headwise.heads.errors import HeadwiseError

STEP = 1 << 16  # bytes of lines read at once: so many in front of a damaged place may be lost with it
LONGEST_LINE = 256 << 20  # bytes; longer lines and text files are rejected, so that one without line ends cannot fill the memory
MOST_UNPACKED, MOST_TIMES = (
    256 << 20,
    200,
)  # a file that unpacks to more bytes than this, and to so many times its size, is a bomb
DEEPEST = 8  # fields inside fields whose names are looked at
LOOK_BYTES, LOOK_LINES = 1 << 20, 100  # of each file, in search of columns
LOOKED_AT = 3  # files whose columns are looked at before the work begins
BOM = b"\xef\xbb\xbf"
PARQUET_ROWS = 64  # rows decoded at once
BROKEN = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises for damaged data


class UnreadableError(Exception):
    """The bytes of a file cannot be had (network, rights): not damage, and worth another try later."""


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        text: None if there is a problem.
        domain: Its domain, or None.
        id: Its id, or None.
        problem: (reason, detail) why there is no text, or None.
        size: Bytes that it takes.
    """

    text: str | None
    domain: str | None
    id: str | None
    problem: tuple[str, str] | None
    size: int


class Source(io.RawIOBase):
    """The bytes of an input file for pyarrow; counts them, and tells failures to get them from damage inside them.

    Args:
        filesystem: Of pyarrow.
        path: Inside it.
        seekable: Whether the reader jumps in the file, as that of Parquet does.

    Attributes:
        count: Bytes read so far.

    Raises:
        UnreadableError: If it cannot be opened.
    """

    def __init__(self, filesystem: Any, path: str, seekable: bool) -> None:
        try:
            self._file = filesystem.open_input_file(path) if seekable else filesystem.open_input_stream(path, compression=None)
        except OSError as error:
            raise UnreadableError(one_line(error)) from error
        self._seekable = seekable
        self.count = 0

    def readable(self) -> bool:
        """Always."""
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
        """Go to a byte; see `io.IOBase.seek`."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """The number of the next byte."""
        return int(self._file.tell())

    def size(self) -> int:
        """Bytes; pyarrow asks for it."""
        return int(self._file.size())

    def close(self) -> None:
        """Close the file below too."""
        if not self.closed:
            self._file.close()
        super().close()


def unpacked(source: Source, compression: str | None) -> Generator[bytes]:
    """The bytes of a file in steps of at most `STEP`, unpacked, without a byte order mark at its start.

    Args:
        source: The file.
        compression: `gzip` or `zstd`; None: it is not packed.

    Raises:
        ValueError: At a damaged place, or for a file that unpacks to far more than it holds; `BROKEN` has all kinds of it.
        UnreadableError: If the bytes cannot be had.
    """
    stream = pa.PythonFile(source, mode="r")
    stream = pa.CompressedInputStream(stream, compression) if compression else stream
    total = 0
    while block := stream.read(STEP):
        total += len(block)
        if compression and total > max(MOST_UNPACKED, MOST_TIMES * source.count):
            raise ValueError(f"unpacks to more than {MOST_TIMES} times its size; the rest is not read")
        yield block.removeprefix(BOM) if total == len(block) else block


class Reader:
    """The rows of one file.

    Args:
        filesystem: The pyarrow file system that it lies in.
        file: The file.
        options: Columns and sizes of chunks.
        domain: Of all rows, where no column gives it.

    Attributes:
        damaged: After the last row: what could not be read, or None.
        position: Share of the file read so far, in [0, 1].
    """

    def __init__(self, filesystem: Any, file: InputFile, options: ScoreOptions, domain: str | None = None) -> None:
        self._filesystem, self._file, self._options, self._domain = filesystem, file, options, domain
        self.damaged: str | None = None
        self.position = 0.0

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
            if self._file.is_parquet:
                yield from self._parquet(source)
            elif self._file.is_text:
                yield self._text(source)
            else:
                yield from self._lines(source)
        finally:
            source.close()

    def _parquet(self, source: Source) -> Iterator[Row]:
        try:
            # Both options are needed for column chunks to be streamed instead of model.
            table = pq.ParquetFile(pa.PythonFile(source, mode="r"), buffer_size=1 << 20, pre_buffer=False)
        except BROKEN as error:
            self.damaged = one_line(error)
            return
        wanted = {self._options.text_column, self._options.domain_column, self._options.id_column} - {None}
        there = names_of(table.schema_arrow)
        columns = [name for name in [*table.schema_arrow.names, *there] if name in wanted]
        columns = list(dict.fromkeys(columns))
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
        for line in raw_lines(self._blocks(source)):
            yield _too_long(self._domain) if line is None else self._parse(line)

    def _blocks(self, source: Source) -> Iterator[bytes | None]:
        """Blocks of the file; the last one is None if the file breaks off in the middle."""
        try:
            for block in unpacked(source, self._file.compression):
                self.position = source.count / max(self._file.size, 1)
                yield block
        except BROKEN as error:
            self.damaged = one_line(error)
            yield None

    def _text(self, source: Source) -> Row:
        """A text file as one document: what could be read of it, as it is."""
        content = bytearray()
        for block in self._blocks(source):
            content += block or b""
            if len(content) > LONGEST_LINE:
                return _too_long(self._domain)
        if self.damaged is not None:
            return Row(None, self._domain, None, ("damaged file", self.damaged), len(content))
        self.position = 1.0
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            return Row(None, self._domain, None, ("not UTF-8", one_line(error)), len(content))
        return Row(text or None, self._domain, None, None if text else ("no text", ""), len(content))

    def _parse(self, line: bytes) -> Row:
        """A line of JSON as a row; never raises."""
        options, size = self._options, len(line)
        try:
            data = json.loads(line.removeprefix(BOM).decode())  # files that were joined have one where the second begins
        except UnicodeDecodeError as error:
            return Row(None, self._domain, None, ("not UTF-8", one_line(error)), size)
        except (ValueError, RecursionError) as error:
            problem = ("broken JSON", one_line(error)) if line.strip() else ("blank line", "")
            return Row(None, self._domain, None, problem, size)
        if not isinstance(data, dict):
            return Row(None, self._domain, None, ("not a JSON object", type(data).__name__), size)
        domain = self._domain if options.domain_column is None else plain_name(field_of(data, options.domain_column)[1])
        key = None if options.id_column is None else plain_name(field_of(data, options.id_column)[1])
        there, text = field_of(data, options.text_column)
        found: tuple[str, str] | None = None
        if text is None:
            found = ("no text", "") if there else ("no such column", options.text_column)
        elif not isinstance(text, str):
            found = ("not a text", type(text).__name__)
        else:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                found = ("not valid text", one_line(error))
        return Row(None if found else text, domain, key, found, size)


def raw_lines(blocks: Iterable[bytes | None]) -> Iterator[bytes | None]:
    """Lines without their line feeds; None for one of more than `LONGEST_LINE` bytes.

    A block that is None ends them, and what has no line feed in front of it is no line then: it is incomplete.
    """
    rest, lost = bytearray(), False
    for block in blocks:
        if block is None:
            return
        *lines, tail = block.split(b"\n")
        for line in lines:
            lost = lost or len(rest) + len(line) > LONGEST_LINE
            yield None if lost else bytes(rest) + line
            rest, lost = bytearray(), False
        rest += tail
        if len(rest) > LONGEST_LINE:
            rest, lost = bytearray(), True
    if rest or lost:
        yield None if lost else bytes(rest)


def check_columns(inputs: Inputs, files: Sequence[InputFile], options: ScoreOptions) -> None:
    """Refuse a column that none of the first files has: a misspelt name would give a corpus without scores.

    Args:
        inputs: The file system of the files.
        files: Those that will be read; the first `LOOKED_AT` are opened.
        options: Names of the columns.

    Raises:
        HeadwiseError: For such a column, naming those that there are.
    """
    seen = [(file, columns) for file in files[:LOOKED_AT] if (columns := _columns_of(inputs.filesystem, file, options))]
    for name in (options.text_column, options.domain_column, options.id_column):
        if name is not None and seen and not any(name in columns for _, columns in seen):
            file, columns = seen[0]
            shown = [column for column in columns if not any(other.startswith(f"{column}.") for other in columns)]
            raise HeadwiseError(f"no column {name!r} in {file.name}; it has {', '.join(shown[:40])}")


def field_of(data: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """A field of a JSON object, or of an object inside it: (whether it is there, its value).

    Args:
        data: The object.
        name: `a.b` is the field of that very name, or the field `b` of the object `a`.
    """
    if name in data:
        return True, data[name]
    found: Any = data
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            return False, None
        found = found[part]
    return True, found


def names_in(
    fields: Iterable[tuple[str, Any]], inner: Callable[[Any], Iterable[tuple[str, Any]]], depth: int = DEEPEST
) -> list[str]:
    """Names of all fields and of fields inside them, dotted.

    Args:
        fields: (name, value) each.
        inner: The fields of a value, none if it has none.
        depth: How many more levels are looked into.
    """
    found = []
    for name, value in fields:
        below = names_in(inner(value), inner, depth - 1) if depth else []
        found += [f"{name}.{one}" for one in below] if below else [name]
    return found


def names_of(schema: Any) -> list[str]:
    """Names of the columns of an Arrow schema, those inside structs with dots."""
    return names_in(
        ((field.name, field.type) for field in schema),
        lambda kind: (
            [(kind.field(i).name, kind.field(i).type) for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
        ),
    )


def _columns_of(filesystem: Any, file: InputFile, options: ScoreOptions) -> list[str]:
    """Names of the columns of a Parquet file, or of the JSON objects among the first lines; nothing if there are none to be seen."""
    if file.is_text:
        return [options.text_column]
    try:
        source = Source(filesystem, file.path, file.is_parquet)
        try:
            if file.is_parquet:
                schema = pq.ParquetFile(pa.PythonFile(source, mode="r")).schema_arrow
                return [*schema.names, *(name for name in names_of(schema) if name not in schema.names)]
            with contextlib.closing(unpacked(source, file.compression)) as blocks:
                start = b"".join(itertools.islice(blocks, LOOK_BYTES // STEP))
        finally:
            source.close()
    except (UnreadableError, *BROKEN):
        return []
    found: dict[str, None] = {}
    for line in start.split(b"\n")[:LOOK_LINES]:
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(line)
            if isinstance(data, dict):
                found |= dict.fromkeys(
                    [*data, *names_in(data.items(), lambda value: value.items() if isinstance(value, dict) else ())]
                )
    return list(found)


def _chunk(first: int, rows: list[Row], position: float) -> Rows:
    texts, domains, ids, problems, _ = zip(*rows, strict=True)
    found = {index: problem for index, problem in enumerate(problems) if problem is not None}
    return Rows(first, list(texts), list(domains), list(ids), found, position)


def _too_long(domain: str | None) -> Row:
    return Row(None, domain, None, ("line too long", f"more than {LONGEST_LINE >> 20} MiB"), 0)
