"""The registered tables: needles, tables of random keys and of UUIDs, and ten look-ups in one answer, by method, budget and place of the question."""

from __future__ import annotations

import gzip
import json
from functools import partial
from typing import Any

import numpy as np

from headwise.caches.controls import Full, Oracle, RandomTokens
from headwise.claims.cache_runs import Row, Runs, Tables, Test, compared, largest, smallest, table_rows
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured
from headwise.evaluation.compression import Candidate
from headwise.evaluation.contexts import Context, data_contexts
from headwise.evaluation.tasks import extraction_contexts, key_value_contexts, needle_contexts
from headwise.heads import HeadScores
from headwise.methods.adakv.press import AdaKV
from headwise.methods.compresskv.options import Semantic
from headwise.methods.compresskv.press import CompressKV
from headwise.methods.headkv.press import HeadKV
from headwise.methods.pyramidkv.press import PyramidKV
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.prompts.prompt import Prompt
from headwise.prompts.questions import OwnQuestion
from headwise.stats.paired import benjamini_hochberg

TASKS = {"needle": needle_contexts, "key_value": key_value_contexts, "extraction": extraction_contexts}
SMALL = (0.03, 0.05, 0.1)  # budgets at which needles are compared
LOOKUPS = 0.2  # budget at which tables and look-ups are compared
BASELINES = ("streamingllm", "snapkv", "pyramidkv", "adakv")
BUDGETED = (*BASELINES, "random", "headkv", "compresskv")  # equal budgets; HeadKV's released form holds more
TABLE_METHODS = ("snapkv", "adakv", "pyramidkv", "compresskv")
LEAST = {"needle": 0.8, "table": 0.3}  # what the gates ask of the full cache
LOST = -0.05  # a method that loses no more on needles is nearly lossless there
PER_LAYER = 2  # heads that choose for CompressKV, of 9 (the paper: 4 of 32)
UUIDS, RECORDS, TEST = "kv-retrieval", "kv-retrieval-75_keys.first200.jsonl.gz", 100  # the first so many records are for the test
ANSWER = 48  # tokens of its answers, at most
NAN = float("nan")


def lengths(bench: Bench) -> dict[str, int]:
    """Tokens of a prompt; lab models read short ones."""
    if bench.real:
        return {"normal": bench.pick(2048, 512), "short": bench.pick(1024, 480)}
    return {"normal": 512, "short": 480}


def semantic_heads(runs: Runs) -> HeadScores:
    """Semantic scores as they are registered: detection needles at five depths, windows anywhere in the novels."""
    bench = runs.bench
    options = Semantic(lengths=bench.pick(1024, 384) if bench.real else 384, depths=bench.pick(5, 3), min_runs=bench.pick(30, 1), seed=bench.seed)
    task = options.task(runs.model)
    return runs.semantic(task.first_needles(bench.pick(len(task.needles), 4)), options)


def candidates(heads: HeadScores, budgets: tuple[float, ...], draw: int) -> list[Candidate]:
    """The full cache, and every method at every budget."""
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
    for size in budgets:
        found += [Candidate(name, size, make(compression_ratio=round(1 - size, 12))) for name, make in makers.items()]
        found.append(Candidate("oracle", size, partial(oracle, size), told=True))
    return found


def oracle(size: float, prompt: Prompt) -> Oracle:
    """As in `headwise bench cache`: the answer's tokens, and the token behind each place."""
    last = len(prompt.ids) - 1
    kept = (i for span in prompt.spans.values() for i in range(span.start, min(span.stop, last) + 1))
    return Oracle(positions=tuple(sorted(set(kept))), compression_ratio=round(1 - size, 12))


def drawn(runs: Runs, task: str, length: int, count: int, draw: int) -> list[Context]:
    """Contexts of one draw, test split."""
    seed = runs.bench.seed * 1000 + draw
    if task == UUIDS:
        return uuid_tables(runs, length, seed, count)
    return TASKS[task](runs.model, task, length, count, seed=seed)


def uuid_tables(runs: Runs, length: int, seed: int, count: int) -> list[Context]:
    """Records of the data set, cut to as many pairs as fit; one of the pairs left is asked for."""
    with gzip.open(runs.bench.folder(UUIDS) / RECORDS, "rt", encoding="utf-8") as file:
        records = [json.loads(line)["ordered_kv_records"] for line in file][:TEST]
    rng, asked = np.random.default_rng([seed, 51]), []
    for number in rng.choice(TEST, count, replace=False):
        pairs = records[int(number)]
        lines = [f'"{key}": "{value}"' for key, value in pairs]
        sizes = np.cumsum([len(runs.encoder.encode(f" {line},\n")) for line in lines])
        kept = max(1, int((sizes <= length - ANSWER - 120).sum()))  # the rest is for the question
        key, value = pairs[int(rng.integers(kept))]
        text = "JSON data:\n{" + ",\n ".join(lines[:kept]) + "}\n"
        asked.append(OwnQuestion(text, f'What is the value of the key "{key}"?', (value,), f"{number}", f'"{key}": "'))
    return data_contexts(runs.model, asked, UUIDS, ANSWER)


def rows_of(runs: Runs, task: str, length: int, count: int, methods: Any, places: tuple[str, ...] = ("inside", "outside")) -> list[Row]:
    """See `table_rows`; `methods` makes the candidates of a draw."""
    return table_rows(runs, task, length, partial(drawn, runs, task, length, count), methods, places)


def only_full(draw: int) -> list[Candidate]:
    """For gates."""
    return [Candidate("full", None, Full())]


def measure_needles(bench: Bench) -> Measured:
    """Needles: CompressKV against its baselines, survival, the question outside, HeadKV at small budgets."""
    runs, length = Runs(bench), lengths(bench)["normal"]
    heads = semantic_heads(runs)
    tables = Tables(rows_of(runs, "needle", length, bench.pick(4, 1), lambda draw: candidates(heads, SMALL, draw)))
    findings = {f"cache.{name}": Finding(numbers, p) for name, (numbers, p) in needle_findings(tables, length).items()}
    return Measured(findings, {"table": tables.rows(), "heads": [str(head) for head in heads.ranking()[:16]]})


def needle_findings(tables: Tables, length: int) -> dict[str, tuple[dict[str, Number], float | None]]:
    """Name of the claim -> (numbers, p)."""

    def test(place: str, one: str, other: str, size: float, name: str = "exact") -> Test:
        return compared(*(tables.values("needle", length, place, who, size, name) for who in (one, other)))

    gate: dict[str, Number] = {"full": tables.full("needle", length)}
    first = {other: test("inside", "compresskv", other, 0.1) for other in (*BASELINES, "random")}
    survival = smallest([test("inside", "compresskv", "snapkv", size, "survival") for size in (0.05, 0.1)])
    outside = largest([test("outside", method, "random", 0.1, "survival") for method in ("snapkv", "compresskv")])
    head_cells = [(place, size) for place in ("inside", "outside") for size in SMALL]
    behind = [_behind(tables, length, place, size) for place, size in head_cells]
    gains = [test(place, "headkv", "snapkv", size) for place, size in head_cells]
    best, p = most_sure(gains)
    worst = smallest([first[other] for other in BASELINES]).ends
    return {
        "compresskv_first": (gate | {"above_baselines": worst, "above_random": first["random"].ends}, first["random"].p),
        "compresskv_survival": (gate | {"difference": survival.ends}, survival.p),
        "question_outside": (gate | {"difference": outside.ends}, None),
        "headkv_small": (gate | {"behind_best": round(max(behind), 4), "above_snapkv": best}, p),
    }


def _behind(tables: Tables, length: int, place: str, size: float) -> float:
    """How far HeadKV lies behind the best method of a cell; 0: it is the best, or one of them."""
    means = {method: float(tables.values("needle", length, place, method, size).mean()) for method in BUDGETED}
    return max(means.values()) - means["headkv"]


def most_sure(tests: list[Test]) -> tuple[tuple[float, float, float], float]:
    """Of several differences, one of which must be above 0, the surest: its ends, and its p corrected for having been chosen."""
    corrected = benjamini_hochberg(np.array([test.p for test in tests]))
    chosen = min(range(len(tests)), key=lambda i: (tests[i].ends[0] <= 0, corrected[i], -tests[i].ends[0]))
    return tests[chosen].ends, float(corrected[chosen])


def measure_tables(bench: Bench) -> Measured:
    """Tables of random keys."""
    return _table_claim(bench, "key_value", "cache.tables_fail", bench.pick(4, 1))


def measure_uuid_tables(bench: Bench) -> Measured:
    """Tables of UUIDs (kv-retrieval)."""
    return _table_claim(bench, UUIDS, "cache.real_tables_fail", bench.pick(2, 1))


def _table_claim(bench: Bench, task: str, key: str, count: int) -> Measured:
    """The methods are measured only if the full cache answers enough."""
    runs, length = Runs(bench), lengths(bench)["normal"]
    gate = Tables(rows_of(runs, task, length, count, only_full, ("outside",)))
    full = gate.full(task, length)
    if full[0] < LEAST["table"]:
        return Measured({key: Finding({"full": full, "difference": NAN}, 1.0)}, {"table": gate.rows()})
    heads = semantic_heads(runs)
    tables = Tables(rows_of(runs, task, length, count, lambda draw: candidates(heads, (LOOKUPS,), draw)))
    whole = tables.values(task, length, "inside", "full", None)
    worst = largest([compared(tables.values(task, length, "inside", method, LOOKUPS), whole) for method in TABLE_METHODS])
    return Measured({key: Finding({"full": full, "difference": worst.ends}, worst.p)}, {"table": tables.rows()})


def measure_lookups(bench: Bench) -> Measured:
    """Ten look-ups in one answer, by methods that lose little on needles."""
    runs, sizes = Runs(bench), lengths(bench)
    findings, tables = {}, []
    for key, length, counts in (
        ("cache.many_lookups", sizes["normal"], bench.pick((4, 2), (1, 1))),
        ("cache.many_lookups_short", sizes["short"], bench.pick((3, 3), (1, 1))),
    ):
        found, rows = _lookups(runs, length, *counts)
        findings[key] = found
        tables += rows
    return Measured(findings, {"table": tables})


def _lookups(runs: Runs, length: int, needles: int, texts: int) -> tuple[Finding, list[Row]]:
    gate = Tables(rows_of(runs, "extraction", length, texts, only_full, ("outside",)))
    numbers: dict[str, Number] = {"full": gate.full("extraction", length), "nearly_lossless": NAN, "difference": NAN}
    if gate.full("extraction", length)[0] < LEAST["table"]:
        return Finding(numbers), gate.rows()
    heads = semantic_heads(runs)
    methods = lambda draw: candidates(heads, (LOOKUPS,), draw)  # noqa: E731
    rows = rows_of(runs, "needle", length, needles, methods, ("inside",)) + rows_of(runs, "extraction", length, texts, methods, ("inside",))
    tables = Tables(rows)

    def lost(task: str, method: str) -> Test:
        return compared(tables.values(task, length, "inside", method, LOOKUPS), tables.values(task, length, "inside", "full", None))

    lossless = [method for method in (*BUDGETED, "headkv, released form") if method != "random" and lost("needle", method).ends[0] >= LOST]
    numbers["nearly_lossless"] = len(lossless)
    if lossless:
        numbers["difference"] = largest([lost("extraction", method) for method in lossless]).ends
    return Finding(numbers, note=f"nearly lossless on needles: {', '.join(lossless) or 'no method'}"), tables.rows()

