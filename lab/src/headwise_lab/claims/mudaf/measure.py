"""Eleven trainings of each of three lab models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headwise.claims.experiment import Bench, Measured
from headwise.claims.mudaf.judged import details, findings, more_findings
from headwise.claims.mudaf.passages import Parts
from headwise.claims.mudaf.trained import LAB_TUNING, Trainings
from headwise.prompts.passages import RankingExample
from headwise_lab.claims.lab_models import benches
from headwise_lab.microworld.registry import make_example
from headwise_lab.ranking import from_microworld

WORDS = 215  # of eleven passages, so that they and the answer fit the 512 positions of the lab models


def parts() -> Parts:
    """A fact in one of several passages of the micro-world."""

    def made(count: int, split: str, seed: int, sizes: tuple[int, ...]) -> list[RankingExample]:
        out = []
        for number in range(count):
            example = make_example("passages", split, np.random.default_rng([seed, 93, number]), n=sizes[number % len(sizes)], hops=1)
            out.append(replace(from_microworld(example), answers=(str(example.info["answer"]),)))
        return out

    judge = [one for one in made(200, "test", 3, (11,)) if sum(len(p.text.split()) for p in one.passages) <= WORDS]
    return Parts(made(96, "train", 1, (6,)), made(1200, "train", 2, (4, 5, 6)), judge[:100])


def measure(bench: Bench) -> Measured:
    """Eleven trainings of each of three models."""
    given = parts().first(*bench.pick((96, 1200, 100), (8, 8, 6)))
    tuning = replace(bench.pick(LAB_TUNING, replace(LAB_TUNING, steps=1, batch=2)), seed=bench.seed)
    models = [Trainings(one, given, tuning, more=True).result() for one in benches(bench)]
    return Measured(findings("lab", models) | more_findings("lab", models), details(models))
