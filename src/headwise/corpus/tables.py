"""The score files of a job, read in pieces: OUT/scores/<name>, all made with the same model, heads and options."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headwise.corpus.arrow import pa, pq
from headwise.corpus.documents import CONFIG_KEY, HASH_KEY
from headwise.corpus.folder import Folder
from headwise.corpus.inputs import one_line
from headwise.heads.errors import HeadwiseError

ROWS = 65_536  # rows of a batch
COMMAND = "headwise select score"


class ScoreFiles:
    """All score files below OUT/scores (OUT: a folder or a URL), in the order of their names, which end in .parquet.

    config: the hash that all of them carry; description: what it stands for (how files were read, the scorer). rows: name -> how many.
    unfinished: files that were being scored when this was opened, or when a job was stopped.
    """

    def __init__(self, out: str) -> None:
        """Open. Raises `HeadwiseError` if there are none, one cannot be read, or they carry different hashes."""
        self.out = Folder(out)
        self._folder = self.out.below("scores")
        self.config, self.description, self.rows = "", dict[str, Any](), dict[str, int]()
        self.names = [name for name in self._folder.names() if name.endswith(".parquet")]
        if not self.names:
            raise HeadwiseError(f"{out} holds no score file; make them first: {COMMAND} INPUT -o {out}")
        for name in self.names:
            self._check(name)
        self.unfinished = len({name.rsplit(".", 2)[0] for name in self.out.below("tmp/scores").names()})

    @property
    def total(self) -> int:
        """Rows of all files."""
        return sum(self.rows.values())

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """(name, record batch) of all files, some columns, at most `ROWS` rows at once."""
        for name in self.names:
            yield from ((name, batch) for batch in self.read(name, columns))

    def read(self, name: str, columns: Sequence[str]) -> Iterator[Any]:
        """Record batches of one file. Raises `HeadwiseError` if a column is missing or the file is damaged."""
        with self._open(name) as file:
            missing = [column for column in columns if column not in file.schema_arrow.names]
            if missing:
                raise HeadwiseError(f"{self._shown(name)} has no column {missing[0]!r}; is it a score file of `{COMMAND}`?")
            yield from file.iter_batches(batch_size=ROWS, columns=list(columns))

    def _check(self, name: str) -> None:
        with self._open(name) as file:
            self.rows[name] = file.metadata.num_rows
            metadata = file.schema_arrow.metadata or {}
        config = metadata.get(HASH_KEY, b"").decode()
        if not config:
            raise HeadwiseError(f"{self._shown(name)} does not say how it was scored; is it a score file of `{COMMAND}`?")
        if self.config and config != self.config:
            raise HeadwiseError(
                f"{self._shown(name)} was scored with other options ({config}) than {self.names[0]} ({self.config}); "
                "scores of two kinds never mix: score all files again with one set of options"
            )
        self.config, self.description = config, self.description or json.loads(metadata.get(CONFIG_KEY, b"{}"))

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        try:
            with self._folder.open(name) as source, pq.ParquetFile(source) as file:
                yield file
        except (pa.ArrowInvalid, OSError) as error:
            raise HeadwiseError(f"{self._shown(name)} cannot be read as Parquet ({one_line(error)}); score it again") from error

    def _shown(self, name: str) -> str:
        return f"{self._folder.location}/{name}"
