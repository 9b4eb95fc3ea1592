"""Claim 9: a scoring job that is killed at random points ends with the files of one that was not.

Each try is a process of its own that kills itself (SIGKILL) in the middle of a drawn call of its scorer, so no handler runs.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwise.claims.attention_influence.exact import some_heads
from headwise.claims.attention_influence.real_texts import book_passages
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.corpus.documents import DocumentScore, Encoded
from headwise.heads import HeadSet, HeadwiseError
from headwise.methods.influence.scorer import AttentionInfluence
from headwise.models.load import load

CHUNK, CALLS = 4, 3  # documents of a call of the scorer, and calls of a file
SHORT = (20, 60)  # words of a document
CHILD = "import sys; from headwise.claims.attention_influence.resume import child; child(*sys.argv[1:])"


class Dying:
    """A scorer that kills its process in one of its calls."""

    def __init__(self, scorer: AttentionInfluence, call: int) -> None:
        """call: number of the deadly call, from 1; 0: none."""
        self._scorer, self._left = scorer, call

    @property
    def description(self) -> Mapping[str, Any]:
        """Of the scorer."""
        return self._scorer.description

    def encode(self, texts: Sequence[object]) -> list[Encoded]:
        """Of the scorer."""
        return self._scorer.encode(texts)

    def score(self, documents: Sequence[Encoded]) -> list[DocumentScore]:
        """Of the scorer, as long as the process lives."""
        found = self._scorer.score(documents)
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def child(name: str, heads: str, corpus: str, output: str, call: str) -> None:
    """Score a folder; runs in a process of its own."""
    from headwise.corpus.local_runner import score_files
    from headwise.corpus.options import ScoreOptions

    model = load(name)
    chosen = HeadSet.of([tuple(head) for head in json.loads(heads)], model.heads.shape)
    scorer = Dying(AttentionInfluence(model, chosen, min_tokens=0), int(call))
    score_files([corpus], output, lambda: scorer, ScoreOptions(chunk_rows=CHUNK, id_column="id"))


def write_corpus(folder: Path, files: int, seed: int) -> int:
    """`files` packed files of book passages; returns the number of documents."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = book_passages(files * CHUNK * CALLS, seed, SHORT)
    for i in range(files):
        lines = [json.dumps({"text": text, "id": number}) + "\n" for number, text in list(enumerate(texts))[i::files]]
        (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    return len(texts)


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a scored folder, but the marks of processes at work."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.relative_to(folder).parts[0] != "claims"}


def lost_and_doubled(folder: Path, documents: int) -> tuple[int, int]:
    """Documents that no row or more than one row is about."""
    import pyarrow.parquet as pq

    seen = [int(key) for path in sorted((folder / "scores").glob("*")) for key in pq.read_table(path)["id"].to_pylist()]
    return documents - len(set(seen)), len(seen) - len(set(seen))


def _try(bench: Bench, heads: str, corpus: Path, output: Path, call: int) -> bool:
    """Whether the process was killed; raises if it failed in another way."""
    command = [sys.executable, "-c", CHILD, bench.name, heads, str(corpus), str(output), str(call)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, -signal.SIGKILL):
        raise HeadwiseError(f"a scoring process failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}")
    return done.returncode != 0


def measure(bench: Bench) -> Measured:
    """One job without kills, one with; afterwards all their files are compared."""
    if importlib.util.find_spec("pyarrow") is None:
        raise NotTestable("needs pyarrow: pip install 'headwise[scale]'")
    kills, folder = bench.pick(3, 1), bench.work / "jobs"
    shutil.rmtree(folder, ignore_errors=True)  # a job that was killed with this measurement would be one kill more
    heads = json.dumps([list(head) for head in some_heads(bench.model, bench.seed)])
    files = 2 * kills
    documents = write_corpus(folder / "in", files, bench.seed)
    calls = np.random.default_rng([bench.seed, 9]).integers(1, 2 * CALLS, size=kills, endpoint=True).tolist()
    _try(bench, heads, folder / "in", folder / "whole", 0)
    killed = 0
    for number, call in enumerate(calls):
        bench.report(number + 1, kills + 2, "killed")
        killed += _try(bench, heads, folder / "in", folder / "killed", call)
    done = len(list((folder / "killed" / "done").glob("*")))
    _try(bench, heads, folder / "in", folder / "killed", 0)
    one, other = tree(folder / "whole"), tree(folder / "killed")
    different = sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())
    lost, doubled = lost_and_doubled(folder / "killed", documents)
    shutil.rmtree(folder, ignore_errors=True)
    numbers = {"killed": killed, "different_files": different, "lost": lost, "doubled": doubled, "files": len(one), "documents": documents}
    details = {"calls of the scorer at the kills": calls, "files of the corpus": files, "finished before the last try": done}
    return Measured({"influence-resume.killed": Finding(numbers)}, details)
