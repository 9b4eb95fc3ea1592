"""What the measurements of this card share: finished parts, heads that several of them use, and findings of paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, NotTestable
from headwise.heads import HeadScores, NoSuccessfulRunError
from headwise.methods.atlas.options import InContext, Parametric
from headwise.models.model import Model
from headwise.prompts.knowledge_record import KnowledgeRecord
from headwise.stats.paired import bootstrap_mean, sign_flip_test

REGISTERED_FOR = 270  # heads of the model that the numbers of heads were registered for
KNOWN_FACTS, NQ = "known_1000.json.gz", "nq-open-oracle.jsonl.gz"
Cell = dict[str, NDArray[Any]]
Ends = tuple[float, float, float]  # mean and the ends of its 95 % interval


def share(model: Model, count: int) -> int:
    """As large a part of the model's heads as `count` is of 270, at least one."""
    return max(1, round(count * len(model.modules) * model.heads.shape[1] / REGISTERED_FOR))


def once(bench: Bench, name: str, make: Callable[[], Cell], told: Mapping[str, Any]) -> Cell:
    """A finished part, or one that is made now.

    Args:
        bench: Where it is kept.
        name: Of the part.
        make: Makes it.
        told: All that decides it beside model, size and seed.
    """
    kept = bench.cells(name.replace(" ", "-"), told)
    found = kept.load("all")
    if found is None:
        found = make(), []
        kept.save("all", *found)
    return found[0]


def ends(values: Any) -> Ends:
    """Mean over items with its 95 % interval."""
    mean, low, high = (round(float(value), 4) for value in bootstrap_mean(np.asarray(values, dtype=float)))
    return mean, low, high


def paired(differences: Any, **numbers: Number) -> Finding:
    """A finding whose effect is a mean difference, with its test over items."""
    differences = np.asarray(differences, dtype=float)
    return Finding({"difference": ends(differences)} | numbers, sign_flip_test(differences))


def known_fact_heads(bench: Bench, detector: type[InContext] = InContext) -> HeadScores:
    """D (or, for `Parametric`, -D) from known facts behind passages of four completed sentences.

    Raises:
        NotTestable: The model gives both answers of too few facts.
    """
    records, least = bench.pick((96, 50), (24, 16))
    data = bench.folder("known-facts-1209") / KNOWN_FACTS
    options = detector(
        data=data, make_passages=4, wording="cloze", followed="top5", records=records, min_records=least, seed=bench.seed
    )
    try:
        return bench.find(options)
    except NoSuccessfulRunError as why:
        raise NotTestable(str(why)) from why


def parametric_heads(bench: Bench) -> HeadScores:
    """-D from known facts; the same passes as for `known_fact_heads`."""
    return known_fact_heads(bench, Parametric)


def known_facts(bench: Bench) -> list[KnowledgeRecord]:
    """All known facts, as sentences to be completed."""
    from headwise.prompts.knowledge import read_knowledge

    return list(read_knowledge(bench.folder("known-facts-1209") / KNOWN_FACTS))
