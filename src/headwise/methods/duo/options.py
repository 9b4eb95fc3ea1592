"""What the gate detector is asked for; see `gates` for how it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from headwise.heads.errors import HeadwiseError
from headwise.runtime.options import check_choice, check_least, check_seed, option, path_or, set_option, whole_numbers

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.methods.duo.prompts import LabelledText
    from headwise.models.model import Model
    from headwise.runtime.detector import Run

PENALTIES = ("mean", "group")
MIXES = ("teacher", "self")
PER = ("head", "layer")
PAPER_SEEN = (128, 256)  # sinks and recent tokens
PAPER_KEYS = (10, 32)  # pass-keys of a text, and words of each
PAPER_LONGEST = 32_000
TOKENS_PER_KEY = 100  # of a text; shorter texts get fewer and shorter pass-keys than the paper's
TEXTS = 50
ORDER_TEXTS = 4  # on which the order of layers is measured


@dataclass(frozen=True)
class Gates:
    """Gates: KV heads that cannot do without the middle of the text (DuoAttention, Xiao et al. 2024, arXiv:2410.10819, sec. 2.2).

    Attributes:
        lengths: Shortest and longest text in tokens, or one length; None: a third to all of the model's positions, at most 32,000.
        steps: Of AdamW without weight decay, one text per step.
        rate: Peak learning rate.
        sinks: First tokens that a streaming head sees; None: 128, less for short texts.
        recent: Most recent tokens that it sees; None: 256, less for short texts.
        penalty: Weight of the mean gate in the loss.
        form: `mean`, or `group`, which empties whole layers.
        mix: What the full term is: the full model's attention output (`teacher`), or full attention over the gated states (`self`).
        per: One gate per KV `head`, or one per `layer` for all of its heads.
        min_right: Share of label tokens that the model must predict by itself.
        haystack: Folder of texts, or the texts themselves; None takes three public-domain books.
        layer_order: Also measure in which order whole layers may stream, for zigzag's rule Z5.
        seed: Of the texts and their order.
    """

    name: ClassVar[str] = "gate"
    summary: ClassVar[str] = "KV heads that cannot do without the middle of the text (DuoAttention, Xiao et al. 2024)."

    lengths: int | Sequence[int] | None = option(
        None, "Shortest and longest text in tokens, e.g. 2000,8000.", "a third to all of the model's positions"
    )
    steps: int = option(2000, "Training steps.")
    rate: float = option(0.02, "Peak learning rate.")
    sinks: int | None = option(None, "First tokens that a streaming head sees.", "128, less for short texts")
    recent: int | None = option(None, "Most recent tokens that a streaming head sees.", "256, less for short texts")
    penalty: float = option(0.05, "Weight of the mean gate in the loss.")
    form: str = option("mean", "Penalty on the gates: mean, or group (empties whole layers).")
    mix: str = option(
        "teacher", "Full attention in the loss: the unchanged model's (teacher), or over the gated model's states (self)."
    )
    per: str = option("head", "head: one gate per KV head; layer: one gate per layer.")
    min_right: float = option(0.5, "Share of label tokens that the unchanged model must predict.")
    haystack: str | Path | Sequence[str] | None = option(None, "Folder of .txt/.md files (.gz too).", "three public-domain books")
    layer_order: bool = option(False, "Also measure in which order whole layers may stream, for zigzag's rule Z5.")
    seed: int = option(0, "Seed of the texts and of their order.")

    def __post_init__(self) -> None:
        set_option(self, "lengths", whole_numbers("lengths", self.lengths))
        set_option(self, "haystack", path_or(self.haystack))
        if isinstance(self.lengths, tuple) and len(self.lengths) > 2:
            raise HeadwiseError(
                f"lengths are the shortest and the longest text in tokens, like 2000,8000; got {list(self.lengths)}"
            )
        for name, known in (("form", PENALTIES), ("mix", MIXES), ("per", PER)):
            check_choice(name, getattr(self, name), known)
        check_least(1, steps=self.steps, sinks=self.sinks, recent=self.recent)
        check_seed(self.seed)
        if self.rate <= 0 or self.penalty < 0:
            raise HeadwiseError(f"the rate must be above 0 and the penalty not below; got {self.rate:g} and {self.penalty:g}")
        if not 0 <= self.min_right <= 1:
            raise HeadwiseError(f"min_right must lie in [0, 1]; got {self.min_right:g}")

    def seen(self, shortest: int) -> tuple[int, int]:
        """What a streaming head sees.

        Args:
            shortest: Tokens of the shortest text; gates need texts of three windows, so defaults shrink with it.

        Returns:
            Sinks and recent tokens, at least 1 each.
        """
        recent = self.recent or max(1, min(PAPER_SEEN[1], shortest // 6))
        return self.sinks or max(1, min(PAPER_SEEN[0], min(PAPER_SEEN[1], shortest // 6) // 2)), recent

    def sizes(self, positions: int | None) -> tuple[int, int]:
        """Shortest and longest text in tokens, for a model with so many positions."""
        if isinstance(self.lengths, tuple):
            return min(self.lengths), max(self.lengths)
        longest = min(positions or PAPER_LONGEST, PAPER_LONGEST)
        return longest // 3, longest

    def texts(self, model: Model) -> list[LabelledText]:
        """Texts with pass-keys, fewer and shorter ones than the paper's in short texts."""
        from headwise.methods.duo.prompts import VaultOptions, vault_texts
        from headwise.prompts.encoder import PieceEncoder
        from headwise.prompts.haystack import Haystack
        from headwise.runtime.needle_runs import haystack_texts

        lengths = self.sizes(model.positions)
        keys = max(1, min(PAPER_KEYS[0], lengths[0] // TOKENS_PER_KEY))
        words = max(2, min(PAPER_KEYS[1], lengths[0] // (keys * 30)))
        encoder = PieceEncoder(model.tokenizer)
        options = VaultOptions(lengths=lengths, keys=keys, words=words, seed=self.seed)
        return vault_texts(Haystack(haystack_texts(self.haystack), encoder), encoder, options, TEXTS)

    def find(self, model: Model, run: Run) -> HeadScores:
        """Gates of all KV heads, one value per query head of each; see `headwise.find`.

        With `layer_order` their tables hold the order of `with_layer_order` too; progress counts its measurements behind the
        training steps.
        """
        from dataclasses import replace

        from headwise.caches.groups import Window
        from headwise.methods.duo.gates import describe_run, gate_scores
        from headwise.methods.duo.order import with_layer_order

        sinks, recent = self.seen(self.sizes(model.positions)[0])
        options, texts = replace(self, sinks=sinks, recent=recent), self.texts(model)
        full = len(model.heads.full_layers)
        later = (full - 1) * (full + 2) // 2 if self.layer_order else 0
        parts = run.open(describe_run(model, texts, options))
        gates = gate_scores(model, texts, options, lambda done, total, remark: run.report(done, total + later, remark), parts)
        if not self.layer_order:
            return gates
        report = lambda done, total, remark: run.report(self.steps + done, self.steps + total, remark)  # noqa: E731
        return with_layer_order(model, gates, texts[:ORDER_TEXTS], Window(sinks, recent), report)
