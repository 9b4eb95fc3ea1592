"""How files are read and written.

Every text file of a user is read with one encoding, one line end, one limit, and one line that says what is wrong. Results are written whole or
not at all; unfinished work that the same command would continue is noted.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headwise.heads.errors import HeadFileError, HeadwiseError

UNPACKED_LIMIT = 512 * 2**20  # bytes that a .gz file may unpack to
_STEP = 2**20
_kept: set[str] = set()  # places where unfinished work of this process is kept


def read_text(path: str | Path, what: str = "text", error: type[HeadwiseError] = HeadwiseError, most: int | None = None) -> str:
    """Text of a UTF-8 file, plain or .gz; a byte order mark in front is dropped.

    Args:
        path: the file; it is unpacked if its name ends in `.gz`.
        what: what the file holds, for messages ("needles", "a head file").
        error: class of the error to raise.
        most: bytes that such a file may have, unpacked; no more than one above is ever read. None: any number, `UNPACKED_LIMIT` of a .gz.

    Returns:
        The text with its line ends as they are, see `split_lines`.

    Raises:
        HeadwiseError: the file is missing, unreadable, too large, a broken .gz, or not UTF-8 (the line is named).
    """
    path, limit = Path(path), UNPACKED_LIMIT if most is None else most
    try:
        with path.open("rb") as file:
            raw = file.read() if most is None else file.read(most + 1)
        if most is not None and len(raw) > most:
            raise OverflowError("too large")
        raw = _unpacked(raw, limit) if path.name.endswith(".gz") else raw
    except (OSError, EOFError, zlib.error) as cause:
        raise error(f"cannot read {what} from {path}: {getattr(cause, 'strerror', None) or cause}") from cause
    except OverflowError as cause:
        size = f"more than {limit // 2**20} MiB"
        way_out = f"it unpacks to {size}, which is all that is unpacked; if it is what you want, unpack it yourself and give the plain file"
        own = way_out if most is None else f"it has {size} (unpacked), and no such file needs as much"
        raise error(f"cannot read {what} from {path}: {own}") from cause
    return decode_text(raw, f"cannot read {what} from {path}", error)


def decode_text(raw: bytes, place: str, error: type[HeadwiseError] = HeadwiseError) -> str:
    """Bytes as UTF-8 without a byte order mark.

    Args:
        raw: the bytes.
        place: what a message begins with.
        error: class of the error to raise.

    Returns:
        The text.

    Raises:
        HeadwiseError: they are not UTF-8; line and byte are named.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as cause:
        known = "it looks like UTF-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "perhaps it is Windows-1252"
        line = raw.count(b"\n", 0, cause.start) + 1
        raise error(f"{place}, line {line}: byte 0x{raw[cause.start]:02x} is not UTF-8 ({known}); save it as UTF-8") from cause


def split_lines(text: str) -> list[str]:
    r"""Lines of a text. They end at `\n` or `\r\n` only: U+2028 and its kin are characters inside a line.

    A byte order mark in front of a line is dropped: files that were joined have one where the second begins.
    """
    lines = [line.removeprefix("\ufeff").removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines


def parse_json(text: str, place: str, error: type[HeadwiseError] = HeadwiseError) -> Any:
    """The JSON value of a text.

    Args:
        text: the whole of it.
        place: what a message begins with.
        error: class of the error to raise.

    Returns:
        Dicts, lists, texts, numbers, booleans or None.

    Raises:
        HeadwiseError: no JSON, nested too deeply, a number too long, or a text with half of a surrogate pair.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as cause:
        raise error(f"{place}: no valid JSON ({cause})") from cause
    except RecursionError as cause:
        raise error(f"{place}: no valid JSON (it is nested too deeply)") from cause
    except UnicodeEncodeError as cause:
        found = f"\\u{ord(cause.object[cause.start]):04x}"
        raise error(f"{place}: the text holds half of a surrogate pair ({found}), which is no character; leave it out") from cause
    except ValueError as cause:  # an integer of more than 4,300 digits
        raise error(f"{place}: no valid JSON ({cause})") from cause
    return value


def read_json(path: str | Path, what: str, error: type[HeadwiseError] = HeadwiseError) -> Any:
    """The JSON value of a file.

    Args:
        path: the file, plain or .gz.
        what: what it holds, for messages.
        error: class of the error to raise.

    Returns:
        As `parse_json`.

    Raises:
        HeadwiseError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, what, error), str(path), error)


def read_json_lines(path: str | Path, what: str, error: type[HeadwiseError] = HeadwiseError) -> Iterator[tuple[str, Any]]:
    """Values of a JSON-lines file, one by one.

    Args:
        path: the file, plain or .gz.
        what: what it holds, for messages.
        error: class of the error to raise.

    Yields:
        (place, value) of every line that is not blank; place is `FILE, line N`, for messages.

    Raises:
        HeadwiseError: as `read_text` and `parse_json`.
    """
    for number, line in enumerate(split_lines(read_text(path, what, error)), 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, parse_json(line, place, error)


def read_json_rows(path: str | Path, what: str, error: type[HeadwiseError] = HeadwiseError) -> Iterator[tuple[str, Any]]:
    """Values of a file that holds either one JSON list or JSON lines, one by one.

    Args:
        path: the file, plain or .gz.
        what: what it holds, for messages.
        error: class of the error to raise.

    Yields:
        (place, value); place is `FILE, entry N` or `FILE, line N`, for messages.

    Raises:
        HeadwiseError: as `read_text` and `parse_json`.
    """
    text = read_text(path, what, error)
    if text.lstrip().startswith("["):
        yield from ((f"{path}, entry {number}", row) for number, row in enumerate(parse_json(text, str(path), error), 1))
        return
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, parse_json(line, place, error)


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk, then rename: readers see the old file or the whole new one.

    Args:
        path: the file; missing folders are made.
        data: all that it will hold.

    Raises:
        HeadFileError: If it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise HeadFileError(f"could not write {path}: {error.strerror or error}; the file is as it was before") from error


def work_is_kept(place: object) -> None:
    """Note that finished parts of unfinished work lie in `place`: the same call would continue there."""
    _kept.add(str(place))


def work_is_done(place: object) -> None:
    """Note that nothing is left to continue in `place`."""
    _kept.discard(str(place))


def can_continue() -> bool:
    """Whether this process leaves unfinished work behind that the same command would continue."""
    return bool(_kept)


def _unpacked(raw: bytes, limit: int) -> bytes:
    """Contents of all gzip members. Raises `OverflowError` beyond the limit before more is unpacked, `EOFError` for half a file."""
    parts: list[bytes] = []
    size = 0
    while True:
        stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not stream.eof:
            part = stream.decompress(raw, _STEP)
            if not part and not stream.eof and not stream.unconsumed_tail:
                raise EOFError("the compressed file ends too early")
            size += len(part)
            if size > limit:
                raise OverflowError("too large")
            parts.append(part)
            raw = stream.unconsumed_tail
        raw = stream.unused_data.lstrip(b"\0")
        if not raw:
            return b"".join(parts)
