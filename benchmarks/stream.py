"""What streaming costs and keeps, with a scorer that has no model.

kills: --documents short documents through the local runner, three times killed (SIGKILL) at random points, against an uninterrupted run:
lost and doubled rows, results byte for byte. memory: peak of a process on one file and on one ten times as long. overhead: wall time over the time
spent in the scorer, with documents of 1,000 tokens and a scorer that sleeps as one of 50,000 tokens/s would (the 1.3B-parameter selector of
Hua et al. 2025 on one H100, see docs/scale.md). Children do not import torch, so that their memory is the stream's.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import show

KINDS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
FILES, KILLS = 20, 3
SPEED, LONG, LENGTH = 50_000.0, 1200, 4000  # tokens/s; documents of the overhead part, and bytes of each (four per token)
BASE, BYTES = 70_000, 1500  # documents of the smaller corpus of the memory part, and bytes of each


def write_file(path: Path, first: int, count: int, length: int) -> None:
    """Documents `first`, `first + 1`, ... of about `length` bytes; one in a hundred has no text."""
    words = [f"word{i * 7919 % 5003} " for i in range(5003)]
    texts = [
        None if i % 100 == 99 else f"{i} " + "".join(words[i % 4000 : i % 4000 + max(1, length // 9)] * (1 + length // 9000))
        for i in range(first, first + count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "id": range(first, first + count)}), path, row_group_size=1 << 20)
        return
    data = "".join(json.dumps({"text": text, "id": first + i}) + "\n" for i, text in enumerate(texts)).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, 1, mtime=0)
    path.write_bytes(pa.Codec("zstd").compress(data, asbytes=True) if path.suffix == ".zst" else data)


def child(chosen: argparse.Namespace) -> None:
    """Score and tell times as JSON; runs in a process of its own."""
    from headwise.corpus.local_runner import score_files
    from headwise.corpus.options import ScoreOptions

    source = Path(__file__).parents[1] / "src/headwise/testing/stub_scorer.py"
    spec = importlib.util.spec_from_file_location("stub_scorer", source)  # its package would import torch
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Timed(module.StubScorer):
        """Also counts the processor time of its two methods, each thread's own."""

        cpu, first = 0.0, 0.0  # first: when the first chunk was there

        def encode(self, texts: Any) -> Any:
            started = time.thread_time()
            encoded = super().encode(texts)
            self.cpu += time.thread_time() - started
            return encoded

        def score(self, documents: Any) -> Any:
            self.first = self.first or time.perf_counter()
            started = time.thread_time()
            scores = super().score(documents)
            self.cpu += time.thread_time() - started
            return scores

    scorer = Timed(tokens_per_second=chosen.speed or None)
    options = ScoreOptions(id_column="id", workers=2, chunk_rows=chosen.chunk_rows)
    started, cpu = time.perf_counter(), time.process_time()
    summary = score_files([chosen.child[0]], chosen.child[1], lambda: scorer, options)
    ended, cpu = time.perf_counter(), time.process_time() - cpu - scorer.cpu
    times = {
        "scorer_seconds": scorer.seconds,
        "stream_cpu_seconds": cpu,
        "first_chunk_seconds": scorer.first - started,
        "later_seconds": ended - scorer.first,
    }
    print(json.dumps({**summary.to_json(), **times}))


def start(inputs: Path, output: Path, speed: float = 0.0, chunk_rows: int = 1024) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        __file__,
        "--child",
        str(inputs),
        str(output),
        "--speed",
        str(speed),
        "--chunk-rows",
        str(chunk_rows),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, Any], int]:
    """(what the child told, its peak of resident memory in bytes)."""
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a child failed with {process.returncode}")
    return json.loads(told), usage.ru_maxrss * 1024


def tree(folder: Path) -> dict[str, bytes]:
    """All results; what is under way does not count."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.relative_to(folder).parts[0] != "claims"}


def kills(folder: Path, documents: int, seed: int) -> dict[str, Any]:
    per_file = documents // FILES
    for place in range(FILES):
        write_file(folder / f"in/{place:02}{KINDS[place % 4]}", place * per_file, per_file, 60)
    whole, _ = finish(start(folder / "in", folder / "whole"))
    draw, done_at_kill, output = random.Random(seed), [], folder / "killed"
    for _ in range(KILLS):
        before = set(output.glob("tmp/scores/*"))
        process = start(folder / "in", output)
        while not set(output.glob("tmp/scores/*")) - before:  # until it works (again)
            time.sleep(0.002)
        time.sleep(draw.uniform(0.1, 0.9) * whole["seconds"] / (KILLS + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        done_at_kill.append(len(list(output.glob("done/*"))))
    last, _ = finish(start(folder / "in", output))
    rows = [int(key) for path in sorted(output.glob("scores/*")) for key in pq.read_table(path)["id"].to_pylist()]
    return {
        "documents": per_file * FILES,
        "lost": per_file * FILES - len(set(rows)),
        "doubled": len(rows) - len(set(rows)),
        "in_order": rows == sorted(rows),
        "same_bytes": tree(output) == tree(folder / "whole"),
        "files_done_at_each_kill": done_at_kill,
        "files_left_for_the_last_run": last["files_scored"],
        "uninterrupted_seconds": whole["seconds"],
        "documents_per_second": per_file * FILES / whole["seconds"],
        "stream_cpu_us_per_document": 1e6 * whole["stream_cpu_seconds"] / whole["rows"],
    }


def memory(folder: Path) -> dict[str, Any]:
    peaks = {}
    for kind in (".parquet", ".jsonl.zst"):
        for times in (1, 10):
            place = folder / f"memory{times}{kind}"
            subprocess.run([sys.executable, __file__, "--make", str(place / f"a{kind}"), str(times * BASE)], check=True)
            _, peaks[kind, times] = finish(start(place, folder / f"out{times}{kind}"))
    ratios = {f"memory_10x_over_1x{kind}": peaks[kind, 10] / peaks[kind, 1] for kind in (".parquet", ".jsonl.zst")}
    return {**ratios, "peak_mib": {f"{times}x{kind}": round(peak / 2**20, 1) for (kind, times), peak in peaks.items()}}


def overhead(folder: Path) -> dict[str, Any]:
    for place, kind in enumerate((".parquet", ".jsonl.zst")):
        write_file(folder / f"long/{place}{kind}", place * LONG // 2, LONG // 2, LENGTH)
    told, _ = finish(start(folder / "long", folder / "long-out", SPEED, 128))
    return {
        "stream_overhead": told["seconds"] / told["scorer_seconds"] - 1,
        "stream_overhead_after_the_first_chunk": told["later_seconds"] / told["scorer_seconds"] - 1,
        "first_chunk_seconds": told["first_chunk_seconds"],
        "overhead_tokens": told["tokens"],
        "overhead_seconds": told["seconds"],
        "overhead_waiting_seconds": told["waiting_seconds"],
        "overhead_writing_seconds": told["seconds"]
        - told["waiting_seconds"]
        - told["scoring_seconds"],  # most of it flushing to disk
        "stream_cpu_share": told["stream_cpu_seconds"] / told["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default="kills,memory,overhead", help="names of parts, separated by commas")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the points where the process is killed")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--speed", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--chunk-rows", type=int, default=1024, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        return child(chosen)
    if chosen.make:
        return write_file(Path(chosen.make[0]), 0, int(chosen.make[1]), BYTES)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "kills" in chosen.only:
            result |= kills(folder, chosen.documents, chosen.seed)
        if "memory" in chosen.only:
            result |= memory(folder)
        if "overhead" in chosen.only:
            result |= overhead(folder)
    return show({**result, "cores": os.cpu_count(), "cpu": platform.processor() or platform.machine()}, chosen.json)


if __name__ == "__main__":
    main()
