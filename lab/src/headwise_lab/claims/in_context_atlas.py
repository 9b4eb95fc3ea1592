"""Claims of the Atlas of in-context learning (card `in-context-atlas`) on the micro-world, whose facts lab models know by heart."""

from __future__ import annotations

import numpy as np

from headwise.claims.experiment import Bench, Experiment, Measured, Minutes
from headwise.claims.in_context_atlas.declared import map_claims
from headwise.claims.in_context_atlas.declared_trace import WORLD
from headwise.prompts.knowledge_record import KnowledgeRecord
from headwise.prompts.passages import Passage

_HERE = "headwise_lab.claims.in_context_atlas"
RECORDS = 1200

EXPERIMENTS = (
    Experiment(
        "atlas-world", "Head maps from facts of the micro-world: what in-context, parametric, task and retrieval heads are needed for",
        map_claims("world"), f"{_HERE}:measure_maps", Minutes(lab=3, real=None, quick_lab=1.5),
    ),
    Experiment(
        "trace-world", "Where answers about the micro-world were read: the probe beside its rivals", WORLD, f"{_HERE}:measure_tracing",
        Minutes(lab=0.3, real=None, quick_lab=0.3),
    ),
)  # fmt: skip


def measure_maps(bench: Bench) -> Measured:
    """Claims about head maps."""
    from headwise.claims.in_context_atlas.maps import measure_set

    return measure_set(bench, "world", records(bench.pick(RECORDS, RECORDS // 2)))


def measure_tracing(bench: Bench) -> Measured:
    """Claims about tracing."""
    from headwise_lab.claims.traced_world import measure

    return measure(bench)


def records(count: int) -> list[KnowledgeRecord]:
    """Facts that lab models know by heart, with a passage that says something else."""
    from headwise_lab.microworld.registry import make_example

    found = []
    for place in range(count):
        made = make_example("contradiction", "test", np.random.default_rng([place, 43]), words=0)
        told, question = made.context_text, "".join(piece.text for piece in made.turns[-1].ask).strip()
        new, known = str(made.info["answer"]), str(made.info["world_value"])
        if told.count(new) == 1 and known not in told:
            fact = made.info["facts"][made.info["gold"][0] - 1]
            more = {"kind": fact.relation, "subject": fact.entity, "name": str(place)}
            found.append(KnowledgeRecord(question, (known,), Passage(told.replace(new, known)), Passage(told), new, **more))
    return found
