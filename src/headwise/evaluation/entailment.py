"""Support by an entailment model: any sequence classifier of transformers that names a label for entailment."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headwise.evaluation.support import Values, content_words
from headwise.heads.errors import HeadwiseError
from headwise.heads.text import reason
from headwise.stats.metrics import units

# Names of the label whose probability is the score; "not_entailment" and "unsupported" are others.
ENTAILS = re.compile(r"entail(?:s|ed|ment)?|support(?:s|ed)", re.IGNORECASE)
POSITIONS = 512  # where a tokenizer names no longest input
ENDLESS = 10**6  # tokenizers without a limit name an absurd number


class EntailmentChecker:
    """The probability that a chunk (premise) entails a sentence (hypothesis).

    Pairs are scored in batches, each pair once: scores are kept under a hash of sentence and chunk. A chunk that shares no content word with a
    sentence scores 0 without being read, because reading all pairs often costs more than making the answers.

    Attributes:
        name: What tables call it.
        skipped: Pairs without a common content word so far.
        read: Pairs that the model has read so far.
    """

    def __init__(self, model_name_or_folder: str, device: str = "cpu", batch: int = 32, offline: bool = False) -> None:
        """Load the model.

        Args:
            model_name_or_folder: A folder with a checkpoint and its tokenizer, or a hub id.
            device: As torch takes it.
            batch: Pairs read at once, at least 1.
            offline: Never fetch anything.

        Raises:
            HeadwiseError: There is no such model, it is no sequence classifier, or no label of it is called entailment or supported.
        """
        if batch < 1:
            raise HeadwiseError(f"a batch holds at least 1 pair; got {batch}")
        given = model_name_or_folder
        if not given.strip():
            raise HeadwiseError("an entailment model is needed: entailment:FOLDER, or entailment:HUB-ID")
        self._places = _entailing(_config(given, offline), given)
        self._model, self._tokenizer = _loaded(given, offline, device)
        self._device, self._batch = device, batch
        self.name = f"entailment ({Path(given).name})"
        limit = int(getattr(self._tokenizer, "model_max_length", 0) or 0)
        positions = getattr(self._model.config, "max_position_embeddings", None)
        self._limit = min(limit if 0 < limit < ENDLESS else POSITIONS, int(positions or POSITIONS))
        self._known: dict[bytes, float] = {}
        self.skipped = self.read = 0

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Values:
        """[n] probabilities of entailment."""
        keys = [hashlib.sha256(f"{sentence}\0{chunk}".encode()).digest() for sentence, chunk in pairs]
        fresh: dict[bytes, tuple[str, str]] = {}
        for key, (sentence, chunk) in zip(keys, pairs, strict=True):
            if key in self._known:
                continue
            if content_words(sentence) & set(units(chunk)):
                fresh[key] = sentence, chunk
            else:
                self._known[key] = 0.0
                self.skipped += 1
        order = sorted(fresh, key=lambda key: len(fresh[key][1]))  # pairs of like length: little padding
        for start in range(0, len(order), self._batch):
            some = order[start : start + self._batch]
            for key, value in zip(some, self._entailed([fresh[key] for key in some]), strict=True):
                self._known[key] = value
        self.read += len(order)
        return np.asarray([self._known[key] for key in keys], dtype=np.float64)

    def describe(self) -> dict[str, Any]:
        """Name, labels and a digest of the first and the last weights: another checkpoint in the same folder is another checker."""
        weights = list(self._model.parameters())
        told = b"".join(weight.detach().float().cpu().numpy().tobytes() for weight in (weights[0], weights[-1]))
        labels = {str(place): str(label) for place, label in self._model.config.id2label.items()}
        return {"checker": self.name, "labels": labels, "weights": hashlib.sha256(told).hexdigest()[:16]}

    @torch.no_grad()
    def _entailed(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        sentences, chunks = zip(*pairs, strict=True)
        options = {"padding": True, "truncation": "only_first", "max_length": self._limit, "return_tensors": "pt"}
        try:
            given = self._tokenizer(list(chunks), list(sentences), **options).to(self._device)
        except Exception as error:  # a sentence that alone is longer than the model's positions
            raise HeadwiseError(f"{self.name} cannot read a sentence beside a chunk within {self._limit} tokens: {reason(error)}") from error
        found = self._model(**given).logits.float().softmax(dim=-1)[:, self._places].sum(dim=-1)
        if not torch.isfinite(found).all():
            raise HeadwiseError(f"{self.name} gives probabilities that are NaN or infinite")
        return [float(value) for value in found]


def _config(given: str, offline: bool) -> Any:
    from transformers import AutoConfig

    if Path(given).is_dir() and not (Path(given) / "config.json").is_file():
        raise HeadwiseError(f"{given} holds no config.json, so it is no entailment model")
    try:
        return AutoConfig.from_pretrained(given, local_files_only=offline)
    except (OSError, ValueError) as error:
        raise HeadwiseError(f"no entailment model {given!r}: {reason(error)}") from error


def _entailing(config: Any, given: str) -> list[int]:
    """Places of the labels whose probability is the score."""
    labels = {int(place): str(label) for place, label in (getattr(config, "id2label", None) or {}).items()}
    places = [place for place, label in labels.items() if ENTAILS.fullmatch(label.strip())]
    if not places:
        named = ", ".join(labels.values()) or "none"
        raise HeadwiseError(f"{given} is no entailment model: none of its labels ({named}) is called entailment or supported")
    return places


def _loaded(given: str, offline: bool, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(given, local_files_only=offline)
        model, report = AutoModelForSequenceClassification.from_pretrained(given, local_files_only=offline, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        raise HeadwiseError(f"cannot load the entailment model {given!r}: {reason(error)}") from error
    if report["missing_keys"]:  # a classifier that was never trained would score by chance
        first = sorted(report["missing_keys"])[0]
        raise HeadwiseError(f"{given} holds no weights for {first}, so its labels were never trained; give an entailment model")
    return model.to(device).eval(), tokenizer
