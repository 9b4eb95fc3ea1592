"""The detectors whose heads are compared, each run on two halves of its items, so that its agreement with itself is known."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import headwise as hw
from headwise.claims.attention_influence.proxy_heads import KEY_LENGTH, LENGTH, PAIRS, VALUE_TOKENS
from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.in_context_atlas.map_records import fact_records
from headwise.claims.in_context_atlas.maps import MAPS, four_maps
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadId, HeadScores, HeadSet
from headwise.methods.cafe.options import Evidence
from headwise.prompts.knowledge import KnowledgeRecord
from headwise.prompts.needles import bundled_needles
from headwise.prompts.ranking_data import needle_examples
from headwise.runtime.detector import Run

SHARE = 0.06  # of all heads that are removed: 16 of 270
HALVES = ("a", "b")
PASSAGES = 6
CLOZE = "cloze"  # known facts are sentences to be completed


class Found(NamedTuple):
    """Heads of one detector.

    Attributes:
        whole: Strongest heads by the mean of both halves.
        halves: Those of each half.
        scores: Mean of both halves, per query head.
    """

    whole: HeadSet
    halves: tuple[HeadSet, HeadSet]
    scores: HeadScores


def count_of(shape: tuple[int, int]) -> int:
    """How many heads are removed."""
    return max(2, round(SHARE * shape[0] * shape[1]))


def finders(bench: Bench) -> dict[str, Callable[[int], HeadScores]]:
    """Name -> half (0 or 1) -> scores from that half of the detector's items. Sizes are smaller for lab models and in the small version."""
    lengths = [bench.pick(512, 256)] if bench.real else [256]
    needles, texts = list(bundled_needles("detect")), needle_examples(bench.pick(64, 16), PASSAGES, bench.seed)
    depths, steps, samples = bench.pick(3, 2), bench.pick(50 if bench.real else 200, 40), bench.pick(32 if bench.real else 64, 16)
    short = {"lengths": lengths, "depths": depths}
    proxy: dict[str, Any] = {"length": LENGTH if bench.real else 448, "pairs": PAIRS, "key_length": KEY_LENGTH, "value_tokens": VALUE_TOKENS}
    made: dict[str, Callable[[int], Any]] = {
        "copy": lambda half: hw.Copy(needles=needles[half::2], **short),
        "semantic": lambda half: hw.Semantic(needles=needles[half::2], min_runs=8, **short),
        "query": lambda half: hw.Query(data=texts[half::2]),
        "evidence": lambda half: Evidence(data=texts[half::2]),
        "mdqa": lambda half: hw.Mdqa(data=texts[half::2]),
        "proxy": lambda half: hw.Proxy(**proxy, samples=samples, min_accuracy=0.2, seed=2 * bench.seed + half),
        "gate": lambda half: hw.Gates(lengths=[lengths[0]], steps=steps, seed=2 * bench.seed + half),
    }
    found: dict[str, Callable[[int], HeadScores]] = {name: partial(_by, bench, detector) for name, detector in made.items()}
    return found | {name: partial(_knowledge, bench, name) for name in MAPS}


def _by(bench: Bench, detector: Callable[[int], Any], half: int) -> HeadScores:
    return bench.find(detector(half))


def _knowledge(bench: Bench, name: str, half: int) -> HeadScores:
    """One of the Atlas' maps; all of them come from the same passes."""
    options = {
        "data": facts_third(bench, half), "wording": CLOZE, "followed": "top5", "records": bench.pick(64, 16), "min_records": bench.pick(32, 8),
        "seed": bench.seed,
    }  # fmt: skip
    return four_maps(bench.model, options, Run(bench.work / f"knowledge-{HALVES[half]}", bench.report))[name]


def facts_third(bench: Bench, part: int) -> list[KnowledgeRecord]:
    """Known facts behind passages that say another answer: heads are found on the parts 0 and 1; part 2 is for the test.

    Raises:
        NotTestable: For a lab model, or without the data set.
    """
    if not bench.real:
        raise NotTestable("facts of the real world are for real models")
    return [one for one in fact_records(bench) if zlib.crc32((one.subject or one.question).encode()) % 3 == part]


def find_all(bench: Bench) -> tuple[dict[str, Found], dict[str, str]]:
    """Heads by name, and why a detector found none.

    Each half is kept in a cell of the run as soon as it is found.
    """
    made, found, missing = finders(bench), {}, {}
    cells = bench.cells("heads", {"detectors": list(made)})
    for number, (name, finder) in enumerate(made.items()):
        halves = []
        for half, letter in enumerate(HALVES):
            bench.report(number + half / 2, len(made), f"finding {name} heads")
            key = f"{name}-{letter}"
            kept = cells.load(key)
            if kept is None:
                arrays, why = _values(bench, finder, half)
                cells.save(key, arrays, [{"why": why}])
                kept = arrays, [{"why": why}]
            if kept[1][0]["why"]:
                missing[name] = str(kept[1][0]["why"])
                break
            halves.append(kept[0]["values"])
        if len(halves) == len(HALVES):
            found[name] = _found(name, halves, group_size(bench) if name == "gate" else 1)
    return found, missing


def _values(bench: Bench, finder: Callable[[int], HeadScores], half: int) -> tuple[dict[str, np.ndarray], str]:
    """Scores of one half, [layer, query head]; or why there are none."""
    try:
        scores = finder(half)
    except HeadwiseError as why:
        return {"values": np.zeros(0)}, str(why)
    columns = bench.model.heads.shape[1]
    return {"values": np.repeat(scores.values, columns // scores.shape[1], axis=1)}, ""


def group_size(bench: Bench) -> int:
    """Query heads per KV head."""
    heads = bench.model.heads
    return int(heads.shape[1] // heads.kv_heads)


def _found(name: str, halves: Sequence[np.ndarray], group: int) -> Found:
    both = [HeadScores(values, name, 1) for values in (*halves, np.mean(halves, axis=0))]
    first, second, whole = (strongest(scores, group) for scores in both)
    return Found(whole, (first, second), both[2])


def strongest(scores: HeadScores, group: int = 1) -> HeadSet:
    """The strongest heads; where a KV head was scored, all of its query heads, so their number is the nearest multiple of the group's size."""
    count = count_of(scores.shape)
    if group == 1:
        return scores.top(count)
    ranked = [head for head in scores.ranking() if head.head % group == 0][: max(1, round(count / group))]
    return HeadSet.of([HeadId(layer, head + i) for layer, head in ranked for i in range(group)], scores.shape)
