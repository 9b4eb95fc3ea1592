"""The score files of a job, read in pieces: OUT/scores/<name>, all made with the same model, heads and options."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headwise.corpus.arrow import pa, pc, pq
from headwise.corpus.documents import CONFIG_KEY, HASH_KEY
from headwise.corpus.folder import Folder
from headwise.corpus.inputs import one_line, safe_name
from headwise.heads.errors import HeadwiseError


def _is_float(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind))


def _is_name(kind: Any) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind) or pa.types.is_null(kind)
    )


ROWS = 65_536  # rows of a batch
KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("row", "n_tokens", "n_scored"), pa.types.is_integer),
    **dict.fromkeys(("loss_base", "loss_ref", "score"), _is_float),
    **dict.fromkeys(("flagged", "truncated"), pa.types.is_boolean),
    **dict.fromkeys(("domain", "reason", "id"), _is_name),
}
COMMAND = "headwise select score"


class ScoreFiles:
    """All score files below OUT/scores (OUT: a folder or a URL).

    Attributes:
        out: The folder OUT.
        names: Of the files, sorted; they end in .parquet.
        config: The hash that all of them carry.
        description: What it stands for: how files were read, the scorer.
        rows: Name -> how many.
        unfinished: Files that were being scored when this was opened, or when a job was stopped.
    """

    def __init__(self, out: str) -> None:
        """Open.

        Raises:
            HeadwiseError: If there are none, one cannot be read, or they carry different hashes.
        """
        self.out = Folder(out)
        self._folder = self.out.below("scores")
        self.config, self.description, self.rows = "", dict[str, Any](), dict[str, int]()
        self.names = [safe_name(name, "a score file") for name in self._folder.names() if name.endswith(".parquet")]
        if not self.names:
            raise HeadwiseError(f"{out} holds no score file; make them first: {COMMAND} INPUT -o {out}")
        for name in self.names:
            self._check(name)
        self.unfinished = len({name.rsplit(".", 2)[0] for name in self.out.below("tmp/scores").names()})

    @property
    def text_column(self) -> str:
        """The column that the texts were read from."""
        reading = self.description.get("reading")
        name = reading.get("text_column", "text") if isinstance(reading, dict) else "text"
        return name if isinstance(name, str) else "text"

    @property
    def total(self) -> int:
        """Rows of all files."""
        return sum(self.rows.values())

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """(name, record batch) of all files, some columns, at most `ROWS` rows at once."""
        for name in self.names:
            yield from ((name, batch) for batch in self.read(name, columns))

    def read(self, name: str, columns: Sequence[str]) -> Iterator[Any]:
        """Some columns of one file, at most `ROWS` rows at once.

        Args:
            name: Of a score file.
            columns: Names among those of `schema_of`.

        Yields:
            Record batches.

        Raises:
            HeadwiseError: If a column is missing, of another type or holds a number that cannot be, or if the file is damaged.
        """
        with self._open(name) as file:
            schema = file.schema_arrow
            for column in columns:
                if column not in schema.names:
                    raise HeadwiseError(f"{self._shown(name)} has no column {column!r}; is it a score file of `{COMMAND}`?")
                if not KINDS[column](schema.field(column).type):
                    raise HeadwiseError(
                        f"{self._shown(name)} has another kind of column {column!r} than a score file of `{COMMAND}`"
                    )
            for batch in file.iter_batches(batch_size=ROWS, columns=list(columns)):
                for column in columns:
                    self._check_range(name, column, batch.column(column))
                yield batch

    def _check_range(self, name: str, column: str, values: Any) -> None:
        if KINDS[column] is pa.types.is_integer:
            low, high = pc.min_max(values).as_py().values()
            if low is not None and not 0 <= low <= high < (2**62 if column == "row" else 2**31):
                raise HeadwiseError(f"{self._shown(name)} holds {low} to {high} in column {column!r}; score it again")
        elif KINDS[column] is _is_float and pc.any(pc.is_inf(values)).as_py():
            raise HeadwiseError(f"{self._shown(name)} holds an infinite number in column {column!r}; score it again")

    def _check(self, name: str) -> None:
        with self._open(name) as file:
            self.rows[name] = file.metadata.num_rows
            metadata = file.schema_arrow.metadata or {}
        config = metadata.get(HASH_KEY, b"").decode(errors="replace")
        if not config:
            raise HeadwiseError(f"{self._shown(name)} does not say how it was scored; is it a score file of `{COMMAND}`?")
        if self.config and config != self.config:
            raise HeadwiseError(
                f"{self._shown(name)} was scored with other options ({config}) than {self.names[0]} ({self.config}); "
                "scores of two kinds never mix: score all files again with one set of options"
            )
        self.config = config
        try:
            found = json.loads(metadata.get(CONFIG_KEY, b"{}"))
        except (ValueError, RecursionError) as error:
            raise HeadwiseError(
                f"{self._shown(name)} does not say how it was scored ({one_line(error)}); score it again"
            ) from error
        self.description = self.description or (found if isinstance(found, dict) else {})

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        try:
            with self._folder.open(name) as source, pq.ParquetFile(source) as file:
                yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise HeadwiseError(f"{self._shown(name)} cannot be read as Parquet ({one_line(error)}); score it again") from error

    def _shown(self, name: str) -> str:
        return f"{self._folder.location}/{name}"
