"""Arrow columns as Python values; where a column holds something unusable, its values are converted one by one.

`a.b` names the column with that very name, or the field `b` of the column `a`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headwise.corpus.arrow import pa, pc

Problem = tuple[str, str]  # (reason, detail)
Parts = tuple[str | None, str | None, str | None, Problem | None, int]


def rows_of(batch: Any, text: str, domain: str | None, id: str | None, whole: str | None = None) -> Iterator[Parts]:
    """The rows of a RecordBatch, whatever is wrong with some of them.

    Args:
        batch: A pyarrow RecordBatch.
        text: Name of the column with the texts.
        domain: Name of the column with the domains; None: there is none.
        id: Name of the column with the ids; None: there is none.
        whole: The domain of all rows where no column is named.

    Yields:
        Each row as (text or None, domain, id, problem or None, bytes of the text). A problem is (reason, detail); there is no text then.
    """
    texts, problems, sizes = _texts(batch, text)
    domains = [whole] * batch.num_rows if domain is None else _names(batch, domain)
    ids = [None] * batch.num_rows if id is None else _names(batch, id)
    return zip(texts, domains, ids, problems, sizes, strict=True)


def plain_name(value: object) -> str | None:
    """A domain or id as a text: texts and integers are; anything else, and texts that are no valid Unicode, is None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value


def _texts(batch: Any, name: str) -> tuple[list[str | None], list[Problem | None], list[int]]:
    count = batch.num_rows
    column = _column(batch, name)
    if column is None:
        return [None] * count, [("no such column", name)] * count, [0] * count
    if not _is_text(column.type):
        valid = column.is_valid().to_pylist()
        wrong: Problem = ("not a text", str(column.type))
        return [None] * count, [wrong if there else ("no text", "") for there in valid], [0] * count
    sizes = [size or 0 for size in pc.binary_length(column).to_pylist()]
    problems: list[Problem | None] = [None] * count
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # some text is no UTF-8: find out which
        values = [_one(value) for value in column]
    for index, value in enumerate(values):
        if value is None:
            problems[index] = ("no text", "")
        elif value is False:
            values[index], problems[index] = None, ("not valid text", "not UTF-8")
    return values, problems, sizes


def _names(batch: Any, name: str) -> list[str | None]:
    column = _column(batch, name)
    if column is None:
        return [None] * batch.num_rows
    if not _is_text(column.type) and not pa.types.is_integer(column.type):
        return [None] * batch.num_rows
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_one(value) for value in column]
    return [plain_name(value) for value in values]


def _column(batch: Any, name: str) -> Any:
    """A column, or a field of a struct column (null where the struct is); None if there is none."""
    if name in batch.schema.names:
        return _decoded(batch.column(batch.schema.names.index(name)))
    top, *fields = name.split(".")
    if top not in batch.schema.names:
        return None
    column = batch.column(batch.schema.names.index(top))
    for field in fields:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(field) < 0:
            return None
        column = pc.struct_field(column, [column.type.get_field_index(field)])
    return _decoded(column)


def _decoded(column: Any) -> Any:
    """Dictionary-encoded and view columns as plain ones, which all functions of all pyarrow versions take."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_view = getattr(pa.types, "is_string_view", None)
    return column.cast(pa.large_string()) if is_view and is_view(column.type) else column


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _one(value: Any) -> Any:
    """The text of one Arrow value, None if it is null, False if it is not valid."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return False
