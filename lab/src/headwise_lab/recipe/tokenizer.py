"""The lab models' tokenizer: byte-level BPE with 4,096 pieces, learnt from the training books, and for world models from names too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from headwise_lab.microworld.names import pool

VOCABULARY = 4096
MADE_UP = ("person", "place", "ship", "code")
BOS, EOS = "<s>", "</s>"


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Digits stay single, words carry their leading space, so ids of words can be concatenated without re-encoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def name_lists(times: int) -> Iterator[str]:
    """The made-up names of the training split, so many times over: names of every split then have about two pieces instead of four.

    They are made of the same syllables in all splits. Ordinary words are left to the books, or those of training would be single pieces
    and those of a test would not.
    """
    names = " ".join(name for kind in MADE_UP for name in pool(kind, "train"))
    return (" " + names for _ in range(times))


def save_for_transformers(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` reads; encoding adds one BOS."""
    from transformers import PreTrainedTokenizerFast

    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=context
    )
    fast.save_pretrained(folder)
