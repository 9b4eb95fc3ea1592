"""Compressed caches on a real model: needles, tables and ten look-ups in one answer, by method, budget and place of the question.

Run it with the heads and gates of `headwise detect`, a task and a length at a time; every context that is done is kept in --output FOLDER and not
measured again. `--report` judges the registered claims (registered/, family `cache`) by what lies there.

    python benchmarks/cache_real.py --heads SEMANTIC.json --gates GATES.json --output FOLDER --task needle --length 2048 --contexts 4
    python benchmarks/cache_real.py --heads SEMANTIC.json --gates GATES.json --output FOLDER --report --json
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cache_real_report import report
from common import hardware, show

from headwise.caches.controls import Full, Oracle, RandomTokens
from headwise.evaluation.compression import Candidate, measure_compression
from headwise.evaluation.contexts import Context, data_contexts
from headwise.evaluation.tasks import extraction_contexts, key_value_contexts, needle_contexts
from headwise.heads import load_heads
from headwise.methods.adakv.press import AdaKV
from headwise.methods.compresskv.press import CompressKV
from headwise.methods.duo.press import DuoAttention
from headwise.methods.headkv.press import HeadKV
from headwise.methods.pyramidkv.press import PyramidKV
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.methods.zigzag.press import ZigzagAttention
from headwise.models.load import load
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.prompt import Prompt
from headwise.prompts.questions import OwnQuestion
from headwise.runtime.rundir import RunDirectory

TASKS = {"needle": needle_contexts, "key_value": key_value_contexts, "extraction": extraction_contexts}
REAL = "kv-retrieval"  # the data set; a folder of this name, with the file below, lies in --data
RECORDS, TEST = "kv-retrieval-75_keys.first200.jsonl.gz", 100  # the first so many records are for the test
ANSWER = 48  # tokens of its answers, at most
PER_LAYER = 2  # heads that choose for CompressKV, of 9 (the paper: 4 of 32)
KEEP = 0.5  # share of KV heads, or of layers, that keep everything
SEEN = {"sinks": 16, "recent": 64}  # of the others; the gates were found with the same


def oracle(size: float, prompt: Prompt) -> Oracle:
    """As in `headwise bench cache`: with the token behind each place."""
    last = len(prompt.ids) - 1
    kept = (i for span in prompt.spans.values() for i in range(span.start, min(span.stop, last) + 1))
    return Oracle(positions=tuple(sorted(set(kept))), compression_ratio=round(1 - size, 12))


def candidates(options: argparse.Namespace, draw: int) -> list[Candidate]:
    """The full cache, every method at every budget, and the two whose size their gates decide."""
    heads, gates = load_heads(options.heads), load_heads(options.gates)
    makers: dict[str, Any] = {
        "streamingllm": StreamingLLM,
        "random": partial(RandomTokens, seed=draw),
        "snapkv": SnapKV,
        "pyramidkv": PyramidKV,
        "adakv": AdaKV,
        "headkv": partial(HeadKV, heads=heads),
        "headkv, released form": partial(HeadKV, heads=heads, preset="released"),
        "compresskv": partial(CompressKV, heads, per_layer=PER_LAYER),
    }
    found = [Candidate("full", None, Full())]
    if options.gate_only:
        return found
    for size in options.budgets:
        found += [Candidate(name, size, make(compression_ratio=round(1 - size, 12))) for name, make in makers.items()]
        found.append(Candidate("oracle", size, partial(oracle, size), told=True))
    return [
        *found, Candidate("duoattention", None, DuoAttention(gates, KEEP, **SEEN)),
        Candidate("zigzag", None, ZigzagAttention(gates, KEEP, **SEEN)),
    ]  # fmt: skip


def real_table(model: Model, data: Path, length: int, draw: int, count: int) -> list[Context]:
    """Records of the data set, cut to as many pairs as fit; one of the pairs left is asked for."""
    with gzip.open(data / REAL / RECORDS, "rt", encoding="utf-8") as file:
        records = [json.loads(line)["ordered_kv_records"] for line in file][:TEST]
    rng, encoder, asked = np.random.default_rng([draw, 51]), PieceEncoder(model.tokenizer), []
    for number in rng.choice(TEST, count, replace=False):
        pairs = records[int(number)]
        lines = [f'"{key}": "{value}"' for key, value in pairs]
        sizes = np.cumsum([len(encoder.encode(f" {line},\n")) for line in lines])
        kept = int((sizes <= length - ANSWER - 120).sum())  # the rest is for the question
        key, value = pairs[int(rng.integers(kept))]
        text = "JSON data:\n{" + ",\n ".join(lines[:kept]) + "}\n"
        asked.append(OwnQuestion(text, f'What is the value of the key "{key}"?', (value,), f"{number}", f'"{key}": "'))
    return data_contexts(model, asked, REAL, ANSWER)


def drawn(model: Model, options: argparse.Namespace, draw: int) -> list[Context]:
    if options.task == REAL:
        if options.data is None:
            raise SystemExit(f"{REAL} needs --data: the folder that holds {REAL}/{RECORDS}")
        return real_table(model, options.data, options.length, draw, options.contexts)
    return TASKS[options.task](model, options.task, options.length, options.contexts, seed=draw)


def measured(model: Model, context: Context, options: argparse.Namespace, draw: int) -> list[dict[str, Any]]:
    """One row per place of the question, method and budget. The full cache alone is the same in both places."""
    places = ["outside"] if options.gate_only else ["inside", "outside"]
    found = measure_compression(model, candidates(options, draw), [context], places, min_full=0.0)
    wanted = ("question", "method", "budget", "exact", "survival", "positions", "bytes", "bytes_full", "tokens")
    said = {(answer["question"], one["method"], one["budget"]): one["text"] for answer in found.answers for one in answer["said"]}
    own = {"task": options.task, "length": options.length, "draw": draw, "gold": found.answers[0]["gold"]}
    return [
        own | {name: row[name] for name in wanted} | {"said": said[row["question"], row["method"], row["budget"]]}
        for row in found.rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--heads", type=Path, required=True, help="head file of `headwise detect semantic`")
    parser.add_argument("--gates", type=Path, required=True, help="head file of `headwise detect gate`")
    parser.add_argument("--data", type=Path, help=f"folder that holds the folder {REAL}")
    parser.add_argument("--task", choices=[*TASKS, REAL], default="needle")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--draws", type=int, default=3, help="seeds 0, 1, ... of the contexts")
    parser.add_argument("--contexts", type=int, default=4, help="of each draw")
    parser.add_argument(
        "--budgets", type=lambda text: [float(part) for part in text.split(",")], default=[0.03, 0.05, 0.1, 0.2, 0.5]
    )
    parser.add_argument("--gate-only", action="store_true", help="the full cache alone")
    parser.add_argument("--report", action="store_true", help="measure nothing; judge what lies in --output")
    parser.add_argument("--output", type=Path, required=True, help="folder for finished contexts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.report:
        show(report(options.output) | {"hardware": hardware()}, options.json)
        return
    model = load(options.model)
    about = describe_model(model) | {
        "heads": options.heads.name,
        "gates": options.gates.name,
        "per_layer": PER_LAYER,
        "keep": KEEP,
    }
    cells = RunDirectory(options.output, about | SEEN)
    for draw in range(options.draws):
        for number, context in enumerate(drawn(model, options, draw)):
            key = f"{options.task}-{options.length}-{'full' if options.gate_only else 'all'}-{draw}-{number}"
            if cells.load(key) is None:
                started = time.process_time()
                rows = measured(model, context, options, draw)
                cells.save(key, {}, rows)
                seconds = time.process_time() - started
                print(f"{key}: {seconds:.0f} s, full cache {rows[0]['exact']:.2f}, {rows[0]['said']!r}", flush=True)


if __name__ == "__main__":
    main()
