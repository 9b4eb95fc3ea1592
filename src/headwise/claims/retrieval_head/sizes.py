"""How much is measured, for real and for lab models, whole and quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headwise.claims.experiment import Bench

MODE, SCOPE = "zero", "answer"  # of every ablation, unless a claim is about another one
RETRIEVAL, STRONG = 0.1, 0.5  # a retrieval head's mean score, and that of a strong one (Wu et al. 2024, sec. 2 and fig. 3)
REMOVED, REMOVED_MORE = 50 / 1024, 100 / 1024  # shares of all heads that Wu et al. remove (sec. 4)


@dataclass(frozen=True)
class Sizes:
    """Sizes of all measurements; those that are given here are the ones registered for real models.

    Attributes:
        seed: Of haystack windows, random heads, questions and intervals.
        lengths: Context lengths in tokens for detection; those that do not fit a model are left out.
        depths: Number of needle depths.
        needles: Of the detection and the test half each.
        top: Numbers of heads ablated.
        controls: Random draws per number.
        mode_controls: Random draws with modes `uniform` and `mean`.
        ablation_length: Context length of the ablation sweep; its answers are also traced step by step.
        ablation_places: Its needle depths.
        long_length: Context length of the comparison with longer ones.
        long_needles: Needles there.
        long_depths: Depths there.
        paraphrased_lengths: Contexts of paraphrased needles, those with ablated heads first.
        paraphrased_places: Their depths.
        paraphrased_k: Heads ablated there.
        paraphrased_controls: Random draws there.
        facts: Facts known by heart, and as many contradicted ones.
        two_step: Two-step questions.
        candidates: Facts per relation that the whole model is asked first.
        items: Questions per task of the micro-world; those without a text, which are short, are twice as many.
        item_controls: Random draws of all these questions.
        all_controls: Random draws where heads are ablated at every position.
    """

    seed: int = 0
    lengths: tuple[int, ...] = (512, 1024)
    depths: int = 5
    needles: int = 16
    top: tuple[int, ...] = (1, 2, 4, 8, 16)
    controls: int = 20
    mode_controls: int = 10
    ablation_length: int = 512
    ablation_places: tuple[float, ...] = (0.5,)
    long_length: int = 4096
    long_needles: int = 6
    long_depths: tuple[float, ...] = (0.3, 0.7)
    paraphrased_lengths: tuple[int, int] = (128, 512)
    paraphrased_places: tuple[float, ...] = (1 / 3, 2 / 3)
    paraphrased_k: int = 8
    paraphrased_controls: int = 10
    facts: int = 100
    two_step: int = 40
    candidates: int = 25
    items: int = 40
    item_controls: int = 20
    all_controls: int = 4


REAL = Sizes()
QUICK_REAL = replace(
    REAL, lengths=(512,), depths=2, needles=4, top=(4, 16), controls=3, mode_controls=2, long_length=1024, long_needles=4,
    paraphrased_lengths=(128, 256), paraphrased_controls=2, facts=8, two_step=4, candidates=4, item_controls=2,
)  # fmt: skip
LAB = replace(
    REAL, lengths=(128, 256, 432), ablation_length=256, ablation_places=(0.0, 0.5, 1.0), long_length=1024, paraphrased_lengths=(128, 256),
    item_controls=10,
)  # fmt: skip
QUICK_LAB = replace(
    LAB, lengths=(128, 256), depths=2, needles=6, top=(2, 4, 8), controls=4, mode_controls=2, ablation_places=(0.5,), long_needles=4,
    paraphrased_controls=2, items=8, item_controls=3, all_controls=2,
)  # fmt: skip


def sizes_of(bench: Bench) -> Sizes:
    """The sizes for a bench's model, version and seed."""
    whole: Sizes = bench.pick(REAL, QUICK_REAL) if bench.real else bench.pick(LAB, QUICK_LAB)
    return replace(whole, seed=bench.seed)


def near_share(top: Sequence[int], heads: int, share: float) -> int:
    """The number of heads that is nearest to a share of them.

    Args:
        top: Numbers to choose from; the smaller of two equally near ones wins.
        heads: All heads.
        share: In [0, 1].
    """
    return min(sorted(top), key=lambda k: abs(k - share * heads))
