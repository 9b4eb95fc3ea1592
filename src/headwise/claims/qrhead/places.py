"""How much a passage's score depends on where the passage stands."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headwise.heads import HeadSet
from headwise.models.model import Model
from headwise.prompts.passages import PassageComposer, RankingExample
from headwise.runtime.passage_table import measure_passages
from headwise.stats.paired import bootstrap_mean


def moved(example: RankingExample, place: int) -> RankingExample:
    """The example with its first gold passage at another place."""
    gold = min(example.gold)
    others = [p for i, p in enumerate(example.passages) if i != gold]
    return RankingExample(example.query, (*others[:place], example.passages[gold], *others[place:]), frozenset({place}))


def place_spread(
    model: Model, composer: PassageComposer, examples: list[RankingExample], choices: Mapping[str, HeadSet | None]
) -> dict[str, dict[str, np.ndarray]]:
    """How much the gold passage's score varies between all places that it can have.

    Args:
        model: That reads.
        composer: Words around passages and query.
        examples: With one gold passage each.
        choices: Name -> heads whose values are summed; None: all that see the whole text.

    Returns:
        Choice -> `raw` and `calibrated` -> [E]: standard deviation over places, as a share of the mean size of a passage's value.
    """
    out: dict[str, dict[str, list[float]]] = {name: {"raw": [], "calibrated": []} for name in choices}
    for example in examples:
        every = [moved(example, place) for place in range(len(example.passages))]
        table = measure_passages(model.hf, model, composer, every, seed=None)
        for name, heads in choices.items():
            for kind, found in out[name].items():
                values = np.nan_to_num(getattr(table, kind)).astype(np.float64)
                summed = values.sum(axis=(1, 2)) if heads is None else np.sum([values[:, h.layer, h.head] for h in heads], axis=0)
                size = np.abs(values).sum(axis=(1, 2)).mean(axis=-1)
                found.append(float(np.std([summed[place, place] / size[place] for place in range(len(every))])))
    return {name: {kind: np.array(row) for kind, row in kinds.items()} for name, kinds in out.items()}


def shrinks(spread: Mapping[str, np.ndarray]) -> tuple[float, float, float]:
    """By which share calibration reduces the spread over places: mean over examples with its interval; below 0 it grows."""
    mean, low, high = (round(x, 4) for x in bootstrap_mean(1 - spread["calibrated"] / np.maximum(spread["raw"], 1e-12)))
    return mean, low, high
