"""What the paper claims about large models and long trainings: nothing that can be measured here, and what it would take."""

from __future__ import annotations

from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured

NEEDS = {
    "influence-paper.training": (
        "needs two trainings of a model with 7B parameters on 1T tokens each (8.4e22 operations: about ten days of the paper's 256 H100)"
    ),
    "influence-paper.larger_selector": "needs a third such training, and selectors of 1.3B and 7B parameters that read 241B tokens",
    "influence-paper.masking": "needs a model that solves MMLU, GSM8K and BBH (1B parameters or more, a GPU), and these sets",
    "influence-paper.mirror": "needs the two trained 7B models, and the selector's losses on the same tasks",
    "influence-paper.judge": "needs GPT-4o as a judge, the FineWeb-Edu classifier, and the four sources of SmolLM-Corpus",
}


def measure(bench: Bench) -> Measured:
    """No number; the reason for each claim."""
    return Measured({key: Finding.none(why) for key, why in NEEDS.items()})
