"""`headwise detect --score gate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads import HeadScores
    from headwise.methods.duo.prompts import VaultOptions
    from headwise.models.model import Model

PAPER = (10, 32)  # pass-keys and words of each
TOKENS_PER_KEY = 100  # of a text; shorter texts get fewer and shorter pass-keys than the paper's
TEXTS = 50
ORDER_TEXTS = 4  # on which the order of layers is measured


def gate_heads(
    model: str | None,
    device: str,
    dtype: str,
    revision: str | None,
    lengths: str | None,
    steps: int,
    window: str | None,
    haystack: Path | None,
    seed: int,
    json: bool,
    layer_order: bool = False,
) -> HeadScores:
    """Gates of all KV heads, found on pass-keys in a haystack. layer_order: with the order of layers for zigzag's rule Z5."""
    from headwise.caches.groups import Window
    from headwise.methods.duo.gates import GateOptions, find_gates
    from headwise.methods.duo.prompts import vault_texts
    from headwise.methods.duo.zigzagattention import with_layer_order
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.haystack import Haystack, bundled_texts, read_texts

    seen = None if window is None else o.numbers(window, "window", repeats=True)
    if seen is not None and len(seen) != 2:
        raise HeadwiseError(
            f"--window takes two numbers, the first and the most recent tokens that a head sees, like 128,256; got {window}"
        )
    loaded = o.load(model, device, dtype, revision)
    chosen = _texts(loaded, lengths, seed)
    sinks, recent = seen or _window(chosen.lengths[0])
    options = GateOptions(steps=steps, sinks=sinks, recent=recent, seed=seed)
    encoder = PieceEncoder(loaded.tokenizer)
    text = Haystack(bundled_texts() if haystack is None else read_texts(haystack), encoder)
    texts = vault_texts(text, encoder, chosen, TEXTS)
    with progress("detecting", hidden=json) as report:
        gates = find_gates(loaded, texts, options, report)
    if not layer_order:
        return gates
    with progress("layers", hidden=json) as report:
        return with_layer_order(loaded, gates, texts[:ORDER_TEXTS], Window(sinks, recent), report)


def _texts(loaded: Model, lengths: str | None, seed: int) -> VaultOptions:
    """Texts of the wanted lengths, or of a third to all of the model's positions (at most the paper's 32,000)."""
    from headwise.methods.duo.prompts import VaultOptions

    given = None if lengths is None else o.numbers(lengths, "lengths")
    longest = max(given) if given else min(loaded.positions or 32_000, 32_000)
    shortest = min(given) if given else longest // 3
    keys = max(1, min(PAPER[0], shortest // TOKENS_PER_KEY))
    words = max(2, min(PAPER[1], shortest // (keys * 30)))
    return VaultOptions(lengths=(shortest, longest), keys=keys, words=words, seed=seed)


def _window(shortest: int) -> tuple[int, int]:
    """The paper's 128 and 256 tokens, or less where texts are short: gates need texts of three windows."""
    recent = min(256, shortest // 6)
    return max(1, min(128, recent // 2)), max(1, recent)
