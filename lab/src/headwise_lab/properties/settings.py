"""What a measurement of the properties consists of. Every value is written into the result."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headwise.heads import HeadwiseError

PART = (0.0, 0.9)  # of the haystack, for prompts; the rest is plain text for perplexity
GATE_TOKENS = 16  # longest answer of models that are expected to answer nothing


@dataclass(frozen=True)
class Settings:
    """Sizes of all measurements; the full size takes about two minutes of one core per model.

    Attributes:
        seed: Of haystack windows, random heads, micro-world items and intervals.
        lengths: Context lengths in tokens for detection; those that do not fit a model are left out.
        depths: Number of needle depths.
        needles: Of the detection and the test half each.
        top: Numbers of heads ablated (the largest at most half of the heads).
        controls: Random draws per number.
        ablation_length: Context length of the ablation sweep.
        ablation_depths: Its number of needle depths.
        mode: Of every ablation, see `headwise.attention.ablate`.
        scope: Of every ablation, see `headwise.attention.ablate`.
        items: Questions per micro-world task; closed-book ones, which are short, are twice as many.
        item_controls: Random draws there.
        all_controls: Random draws where heads are removed at every position.
        step_length: Context length of the view by steps.

    Raises:
        HeadwiseError: A number out of range.
    """

    seed: int = 0
    lengths: tuple[int, ...] = (128, 256, 432)
    depths: int = 5
    needles: int = 16
    top: tuple[int, ...] = (1, 2, 4, 8, 16)
    controls: int = 20
    ablation_length: int = 256
    ablation_depths: int = 3
    mode: str = "zero"
    scope: str = "answer"
    items: int = 40
    item_controls: int = 10
    all_controls: int = 4
    step_length: int = 256

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise HeadwiseError(f"the seed must be 0 or more; got {self.seed}")
        for name in ("depths", "needles", "controls", "ablation_depths", "items", "item_controls", "all_controls"):
            if getattr(self, name) < 1:
                raise HeadwiseError(f"{name} must be at least 1; got {getattr(self, name)}")

    def quick(self) -> Settings:
        """A small version to see whether everything runs; its intervals are wide, and rank tests cannot reach 0.05."""
        return replace(
            self,
            lengths=(128, 256),
            depths=2,
            needles=6,
            top=(2, 4, 8),
            controls=4,
            ablation_depths=1,
            items=8,
            item_controls=3,
            all_controls=2,
        )


@dataclass(frozen=True)
class RealSettings(Settings):
    """Sizes for a real model; with 135M parameters about 70 minutes of one core.

    long_length, long_needles, long_depths: contexts of the comparison with longer ones. ablation_places: depths of the needles of the
    ablation sweep, in place of `ablation_depths`. mode_controls: random draws with modes `uniform` and `mean`. paraphrased_lengths: contexts
    of paraphrased needles, the ablated ones first; paraphrased_places: their depths; paraphrased_k: heads ablated there. facts,
    two_step: questions about the real world. item_k: heads ablated there; item_beside: fewer, without draws. candidates: facts per
    relation that the whole model is asked first.
    """

    lengths: tuple[int, ...] = (512, 1024)
    ablation_length: int = 512
    step_length: int = 512
    long_length: int = 4096
    long_needles: int = 6
    long_depths: tuple[float, ...] = (0.3, 0.7)
    ablation_places: tuple[float, ...] = (0.5,)
    mode_controls: int = 10
    paraphrased_lengths: tuple[int, int] = (128, 512)
    paraphrased_places: tuple[float, ...] = (1 / 3, 2 / 3)
    paraphrased_k: int = 8
    paraphrased_controls: int = 10
    item_controls: int = 20
    facts: int = 100
    two_step: int = 40
    item_k: int = 16
    item_beside: int = 8
    candidates: int = 25

    def quick(self) -> RealSettings:
        """See `Settings.quick`."""
        return replace(
            self,
            lengths=(512,),
            depths=2,
            needles=4,
            top=(4, 16),
            controls=3,
            long_length=1024,
            long_needles=4,
            mode_controls=2,
            paraphrased_lengths=(128, 256),
            paraphrased_controls=2,
            item_controls=2,
            facts=8,
            two_step=4,
            candidates=4,
        )


def near_share(top: tuple[int, ...], heads: int, share: float) -> int:
    """The number of heads that is nearest to a share of them.

    Args:
        top: Numbers to choose from; the smaller of two equally near ones wins.
        heads: All heads.
        share: In [0, 1].
    """
    return min(sorted(top), key=lambda k: abs(k - share * heads))
