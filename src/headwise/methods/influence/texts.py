"""Texts of a corpus as token ids; what is no text gets a reason, never an error, so that rows stay aligned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from headwise.corpus.documents import Encoded


def encode_documents(tokenizer: Any, texts: Sequence[object], vocabulary: int) -> list[Encoded]:
    """Ids of each text without special tokens, by a Hugging Face tokenizer. Safe in several threads, once the tokenizer has encoded anything at all.

    vocabulary: number of ids that the model knows. Reasons: `no text`, `not valid text` (lone surrogates, or no string), `token outside of the
    vocabulary` (a model that was not resized for its tokenizer would fail in the middle of a job).
    """
    reasons = [_unusable(text) for text in texts]
    usable = [text for text, reason in zip(texts, reasons, strict=True) if reason is None]
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    rows = iter(tokenizer(usable, **options)["input_ids"] if usable else [])
    found = []
    for reason in reasons:
        ids = np.asarray(next(rows) if reason is None else [], dtype=np.int32)
        if len(ids) and ids.max() >= vocabulary:
            ids, reason = ids[:0], "token outside of the vocabulary"
        found.append(Encoded(ids, reason))
    return found


def _unusable(text: object) -> str | None:
    """Why something is no text to score, or None. Missing values of tables come as None or NaN."""
    if text is None or (isinstance(text, float) and math.isnan(text)) or (isinstance(text, str) and not text.strip()):
        return "no text"
    try:
        return None if isinstance(text, str) and text.encode() else "not valid text"
    except UnicodeEncodeError:  # lone surrogates
        return "not valid text"
