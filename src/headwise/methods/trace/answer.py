"""Tracing an answer: where each of its tokens comes from, while it is generated or after the fact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headwise.attention.tail import last_rows
from headwise.attention.token_rows import TokenRows, token_rows
from headwise.caches.shared import full_cache
from headwise.heads.errors import HeadwiseError
from headwise.methods.trace.formula import label_of, passage_scores
from headwise.models.forward import token_tensor
from headwise.models.model import Model, check_ids, need_tokenizer
from headwise.prompts.answers import PASSAGE, allowed_positions, continuation_of, passages_of
from headwise.prompts.encoder import control_tokens
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import decode_rows, stop_ids
from headwise.runtime.head_probe import Probe, load_probe, shipped_probe
from headwise.stats.places import best_position, shifted


@dataclass(frozen=True)
class TokenSource:
    """Where one token of an answer comes from.

    Attributes:
        token: Its id.
        probability: That it was read from the prompt, calibrated.
        label: `read`, `remembered` or `unsure`.
        position: Position in the prompt that it was most likely read from; -1 if none can be a source.
        passages: Name of each passage -> sum of its positions' scores; empty for a prompt without passages.
    """

    token: int
    probability: float
    label: str
    position: int
    passages: dict[str, float]

    @property
    def passage(self) -> str | None:
        """The passage with the largest score."""
        return max(self.passages, key=lambda name: self.passages[name]) if self.passages else None


@dataclass(frozen=True)
class AnswerTrace:
    """Where an answer of T tokens comes from.

    Attributes:
        prompt: What was answered.
        tokens: One entry per token.
        features: [T, K], what each of the probe's heads says about the token.
        scores: [T, P], per position of the prompt; see `formula`.
        allowed: [P], positions that can be a source.
    """

    prompt: Prompt
    tokens: tuple[TokenSource, ...]
    features: NDArray[np.float64] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    allowed: NDArray[np.bool_] = field(repr=False)

    @property
    def ids(self) -> tuple[int, ...]:
        """The answer's tokens."""
        return tuple(token.token for token in self.tokens)

    @property
    def passages(self) -> dict[str, float]:
        """Passages from the largest to the smallest sum over the answer's tokens of score x probability that the token was read.

        Raises:
            HeadwiseError: The prompt has none.
        """
        sums = {name: sum(t.passages[name] * t.probability for t in self.tokens) for name in passages_of(self.prompt)}
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


class Tracing:
    """What `trace` yields: the traces of the latest text."""

    def __init__(self, model: Model, probe: Probe, prompts: Sequence[Prompt] | None, rows: TokenRows) -> None:
        self._model, self.probe, self._prompts, self._rows = model, probe, prompts, rows
        self._inputs: Tensor | None = None
        self._greedy: Tensor | None = None

    def traces(self, answers: Sequence[Sequence[int]] | None = None) -> list[AnswerTrace]:
        """One trace per batch row, of all tokens so far.

        Args:
            answers: The new tokens of each row as they were chosen. Only the last one matters: no pass has read it yet. None: it is the
                model's most likely token.

        Raises:
            HeadwiseError: No pass has reached the end of the prompt, or `answers` are not what the passes have read, or not the model's tokens.
        """
        last = self._greedy
        if last is None:
            raise HeadwiseError("nothing was traced: run the model over the whole prompt inside the block")
        known = list(self._rows.rows.values())
        if answers is not None:
            if any(len(answer) != len(known) + 1 for answer in answers) or len(answers) != len(last):
                raise HeadwiseError(
                    f"the passes have read {len(known)} tokens of an answer, so one of {len(known) + 1} tokens is wanted for each row"
                )
            said = [answer[-1] for answer in answers]
            check_ids(self._model.hf, min(said), max(said))  # no pass will
            last = torch.tensor(said, device=last.device)
        rows = [*known, (last, self._rows.newest(last))]
        features, scores = (torch.stack([row[i] for _, row in rows], dim=1).double().cpu().numpy() for i in (0, 1))
        tokens = torch.stack([token for token, _ in rows], dim=1).tolist()
        given = self._prompts or [Prompt(tuple(ids)) for ids in self._read()]
        return [
            self._one(prompt, tokens[i], features[i], scores[i][:, scores.shape[-1] - len(prompt.ids) :])
            for i, prompt in enumerate(given)
        ]

    def note(self, hf: nn.Module, inputs: Any, options: dict[str, Any], output: Any) -> None:
        """Hook: a pass has ended; what was read first is the prompt, and what is most likely now may be the next token."""
        ids = options.get("input_ids", inputs[0] if inputs else None)
        if not self._rows.rows and ids is not None and ids.shape[1] == self._rows.length:
            self._inputs = ids
        self._greedy = output.logits[:, -1].argmax(dim=-1)

    def _read(self) -> list[list[int]]:
        return [] if self._inputs is None else self._inputs.tolist()

    def _one(self, prompt: Prompt, ids: list[int], features: NDArray[np.float64], scores: NDArray[np.float64]) -> AnswerTrace:
        allowed = allowed_positions(prompt, control_tokens(self._model.tokenizer))
        spans = passages_of(prompt) if any(name.startswith(PASSAGE) for name in prompt.spans) else {}
        probabilities, moved = self.probe.probability(features), shifted(scores, self.probe.shift)
        tokens = tuple(
            TokenSource(
                token,
                float(probability),
                label_of(float(probability), self.probe.band),
                best_position(row, allowed, self.probe.shift),
                passage_scores(moved_row, allowed, spans),
            )
            for token, probability, row, moved_row in zip(ids, probabilities, scores, moved, strict=True)
        )
        return AnswerTrace(prompt, tokens, features, moved, allowed)


@contextmanager
def trace(
    model: Model, probe: Probe | str | Path | None = None, prompt: Prompt | Sequence[Prompt] | None = None
) -> Iterator[Tracing]:
    """Say of every token that is generated inside the block whether it was read from the prompt or remembered, and where it was read.

    Only the rows of the probe's heads that predict a token are computed a second time. One text at a time: a pass without a past starts anew.

    Args:
        model: With its tokenizer.
        probe: Of this model: a `Probe`, its file, or None for the one that comes with headwise.
        prompt: What is answered, with spans `passage/1`, ...; one per row for a batch (padded in front). None: the first pass is the prompt,
            which then has no passages.

    Yields:
        The traces so far.

    Raises:
        HeadwiseError: No tokenizer, a probe of another model, packed weights; and in a pass that takes tokens back (drafts), or over a compressed
            cache.
    """
    model = need_tokenizer(model, "tracing")
    found = probe_for(model, probe)
    prompts = [prompt] if isinstance(prompt, Prompt) else None if prompt is None else list(prompt)
    length = None if prompts is None else max(len(one.ids) for one in prompts)
    with token_rows(model, found.heads, found.weights, length) as rows:
        seen = Tracing(model, found, prompts, rows)
        hook = model.hf.register_forward_hook(seen.note, with_kwargs=True)
        try:
            yield seen
        finally:
            hook.remove()


def trace_answer(model: Model, prompt: Prompt, answer: Sequence[int], probe: Probe | str | Path | None = None) -> AnswerTrace:
    """Trace a finished answer in one pass, whoever wrote it.

    Args:
        model: The model that reads.
        prompt: What was answered.
        answer: The answer's tokens, or the prompt's and the answer's.
        probe: As for `trace`.

    Raises:
        HeadwiseError: As `trace`; an empty answer, one that does not continue the prompt, or more tokens than the model has positions.
    """
    answer = continuation_of(prompt, answer)
    ids = (*prompt.ids, *answer[:-1])
    check_length(model, len(ids))
    with trace(model, probe, prompt) as seen, torch.no_grad(), last_rows(model, len(answer)):
        model.hf(input_ids=token_tensor(model.hf, ids), use_cache=False, logits_to_keep=1)
        return seen.traces([answer])[0]


def trace_generated(model: Model, prompt: Prompt, probe: Probe | str | Path | None = None, limit: int = 64) -> AnswerTrace:
    """Answer a prompt greedily, token by token, and trace the answer meanwhile. It ends with its first line.

    Args:
        model: The model that answers.
        prompt: What is answered.
        probe: As for `trace`.
        limit: Longest answer in tokens.
    """
    with trace(model, probe, prompt) as seen:
        (said,) = decode_rows(model.hf, full_cache(model.hf), prompt.ids, stop_ids(model), limit, rows=1)
        return seen.traces([said])[0]


def probe_for(model: Model, probe: Probe | str | Path | None) -> Probe:
    """The probe of a model from what `trace` takes. Raises `HeadwiseError` if there is none, or it is another model's."""
    if probe is None:
        return shipped_probe(model, files(__package__) / "probes")
    found = probe if isinstance(probe, Probe) else load_probe(probe)
    found.check(model)
    return found


def check_length(model: Model, tokens: int) -> None:
    """Raise `HeadwiseError` for a text that the model has no room for."""
    if model.positions is not None and tokens > model.positions:
        raise HeadwiseError(
            f"prompt and answer have {tokens} tokens, but {model.name} has {model.positions} positions; give fewer or shorter documents"
        )
