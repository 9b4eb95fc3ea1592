"""Offline tokenizers for tests: one id per character, or one id per word. Both read back exactly what was encoded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

SPECIAL = ("<s>", "</s>", "<unk>")
# A word or a mark with the space in front of it; a line break; a lone white-space character.
WORD = r" ?\w+| ?[^\w\s]|\s"
# The pieces that prompts are composed behind; without them the start of a text could not be told from an unknown word.
ALWAYS = ("a", ".", "\n", "0", ":", "?", " ")
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127) if chr(code) not in "`~^")


def character_tokenizer() -> Any:
    """A tokenizer with 96 ids (the vocabulary of `tiny_model`): <s>, </s>, <unk>, line break, printable ASCII without ` ~ ^."""
    return _fast(list(CHARACTERS), r"[\s\S]")


def word_tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer whose ids are the words and marks of `texts`, each with and without the space in front of it."""
    pieces: dict[str, None] = dict.fromkeys(ALWAYS)
    for text in texts:
        for piece in re.findall(WORD, text):
            bare = piece.removeprefix(" ") or piece
            pieces |= {bare: None, piece: None}
            if not bare.isspace():
                pieces[" " + bare] = None
    return _fast(list(pieces), WORD)


def _fast(pieces: list[str], pattern: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    bos, eos, unknown = SPECIAL
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )
