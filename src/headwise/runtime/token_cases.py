"""What a probe is fitted on: features of tokens that were read and of tokens that were remembered, measured record by record.

Each record gives two prompts, or three: its swapped passage (the token of the swapped answer was read, that of the right answer is remembered,
on the same activations), no passage (whatever the model says comes from its weights), and a passage of another question (what it says and
the passage does not hold comes from its weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention.token_rows import TokenRows, token_rows
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadSet
from headwise.models.forward import token_tensor
from headwise.models.model import Model
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord
from headwise.prompts.passages import Passage
from headwise.prompts.prompt import Prompt
from headwise.runtime.rundir import RunDirectory

PIECE = 8  # records that are read in one batch and kept at once
RAGGED = ("looks", "length", "marks")  # of different widths from batch to batch
NOTHING = 10**9  # rank of a token that was not looked for
Values = NDArray[np.float64]


class Newest(NamedTuple):
    """The newest rows of a batch of prompts.

    Attributes:
        rows: Of the probe's heads.
        logits: [B, vocabulary] of the next token.
        padding: Positions in front of each prompt.
    """

    rows: TokenRows
    logits: torch.Tensor
    padding: list[int]

    def features(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """[B, K] for one token per prompt."""
        found = self.rows.newest(torch.tensor(list(tokens), device=self.logits.device)).features
        return np.asarray(found.cpu().numpy(), dtype=np.float32)

    def ranks(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """[B] how many tokens are more likely than the given one."""
        own = self.logits.gather(1, torch.tensor(list(tokens), device=self.logits.device)[:, None])
        return np.asarray((self.logits > own).sum(dim=1).cpu().numpy(), dtype=np.int64)


@torch.no_grad()
def read_newest(model: Model, heads: HeadSet, prompts: Sequence[Prompt], weights: Sequence[float] | None = None) -> Newest:
    """Run a batch of prompts, padded in front, and give the rows that predict what follows them.

    Args:
        model: The model.
        heads: K heads.
        prompts: B prompts.
        weights: [K] for the rows' scores; None: ones.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    padding = [longest - len(prompt.ids) for prompt in prompts]
    ids = torch.cat(
        [token_tensor(model.hf, [*prompt.ids[:1] * pad, *prompt.ids]) for prompt, pad in zip(prompts, padding, strict=True)]
    )
    places = torch.arange(longest, device=ids.device) - torch.tensor(padding, device=ids.device)[:, None]
    with token_rows(model, heads, weights or [1.0] * len(heads)) as rows:
        out = model.hf(
            input_ids=ids,
            attention_mask=(places >= 0).long(),
            position_ids=places.clamp(min=0),
            use_cache=False,
            logits_to_keep=1,
        )
    return Newest(rows, out.logits[:, -1].float(), padding)


@dataclass(frozen=True)
class Cases:
    """N records as K heads see them.

    Attributes:
        read, remembered: [N, K] features of the swapped and of the right answer's first token where the swapped passage is read.
        closed, unrelated: [N, K] features of what the model says without a passage, and with that of another question; NaN where that is no
            word of its own (a special token, or a token of that passage), and where it was not measured.
        read_rank, remembered_rank, said_rank: [N] how many tokens are more likely than the swapped answer's, the right answer's, and what is
            said without a passage, where the swapped passage is read.
        said_features: [N, K] features of what is said without a passage, where the swapped passage is read.
        same_token: [N] both answers begin with the same token.
        looks: [K, P] attention of each record's newest row where the swapped passage is read.
        places: Positions of the first tokens of the swapped answer's mentions.
        allowed: [P] positions inside the passage.
    """

    read: Values
    remembered: Values
    closed: Values
    unrelated: Values
    said_features: Values
    read_rank: NDArray[np.int64]
    remembered_rank: NDArray[np.int64]
    said_rank: NDArray[np.int64]
    same_token: NDArray[np.bool_]
    looks: tuple[Values, ...]
    places: tuple[tuple[int, ...], ...]
    allowed: tuple[NDArray[np.bool_], ...]


def measure_cases(
    model: Model,
    heads: HeadSet,
    records: Sequence[KnowledgeRecord],
    composer: KnowledgeComposer,
    special: frozenset[int],
    beside: bool = False,
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> Cases:
    """Measure all records, batch by batch; finished batches are kept in `directory`.

    Args:
        model: The model.
        heads: K heads.
        records: With swapped passages, all short enough for the model.
        composer: Makes the prompts.
        special: Tokens that are no words.
        beside: Also measure what is said beside the passage of another question, which doubles the cost.
        directory: Where finished batches lie, if they are kept.
        report: `report(done, total, remark)`; progress in records.
    """
    cells: list[dict[str, NDArray[Any]]] = []
    for start in range(0, len(records), PIECE):
        kept = directory.load(str(start)) if directory else None
        if kept is None:
            others = [records[(start + i + PIECE) % len(records)].passage for i in range(PIECE)] if beside else []
            kept = _batch(model, heads, records[start : start + PIECE], others, composer, special), []
            if directory:
                directory.save(str(start), *kept)
        cells.append(kept[0])
        report(min(start + PIECE, len(records)), len(records), "records")
    joined: dict[str, Any] = {name: np.concatenate([cell[name] for cell in cells]) for name in cells[0] if name not in RAGGED}
    found: dict[str, Any] = {
        name: joined[name].astype(np.float64) for name in ("read", "remembered", "closed", "unrelated", "said_features")
    }
    found |= {name: joined[name] for name in ("read_rank", "remembered_rank", "said_rank", "same_token")}
    return Cases(**found, **_ragged(cells))


def _ragged(cells: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Any]:
    looks, places, allowed = [], [], []
    for cell in cells:
        for row, length, where in zip(cell["looks"], cell["length"], cell["marks"], strict=True):
            looks.append(row[:, :length].astype(np.float64))
            places.append(tuple(np.flatnonzero(where[:length] == 2).tolist()))
            allowed.append(where[:length] > 0)
    return {"looks": tuple(looks), "places": tuple(places), "allowed": tuple(allowed)}


def _batch(
    model: Model,
    heads: HeadSet,
    records: Sequence[KnowledgeRecord],
    others: Sequence[Passage | None],
    composer: KnowledgeComposer,
    special: frozenset[int],
) -> dict[str, NDArray[Any]]:
    closed, said = _own_words(model, heads, [composer.closed(r) for r in records], special, inside=False)
    strange = [composer.opened(r, passages=[other]) for r, other in zip(records, others, strict=False) if other is not None]
    unrelated = _own_words(model, heads, strange, special, inside=True)[0] if strange else np.full_like(closed, np.nan)
    prompts = [composer.opened(r, swapped=True) for r in records]
    new, old = (
        [composer.first_token(text) for text in texts]
        for texts in zip(*((r.swapped_answer, r.answers[0]) for r in records), strict=True)
    )
    seen = read_newest(model, heads, prompts)
    looks, marks = seen.rows.looks().cpu().numpy(), list(_marks(prompts))
    longest = looks.shape[-1]
    return {
        "read": seen.features(new), "remembered": seen.features(old), "said_features": seen.features(said),
        "read_rank": seen.ranks(new), "remembered_rank": seen.ranks(old),
        "said_rank": np.where(np.array(said) == np.array(new), NOTHING, seen.ranks(said)),
        "same_token": np.array(new) == np.array(old),
        "closed": closed, "unrelated": unrelated,
        "looks": np.stack([np.pad(row[:, pad:], ((0, 0), (0, pad))) for row, pad in zip(looks, seen.padding, strict=True)]).astype(np.float16),
        "length": np.array([len(prompt.ids) for prompt in prompts]),
        "marks": np.stack([np.pad(row, (0, longest - len(row))) for row in marks]),
    }  # fmt: skip


def _marks(prompts: Sequence[Prompt]) -> Iterator[NDArray[np.int8]]:
    """[P] per prompt: 2 where a mention of the answer begins, 1 elsewhere in a passage, 0 outside."""
    for prompt in prompts:
        row = np.zeros(len(prompt.ids), dtype=np.int8)
        for name, span in prompt.spans.items():
            if name.startswith("passage/"):
                row[span.start : span.stop] = np.maximum(row[span.start : span.stop], 1)
            elif name.startswith("answer/"):
                row[span.start] = 2
        row[0] = 0
        yield row


def _own_words(
    model: Model, heads: HeadSet, prompts: Sequence[Prompt], special: frozenset[int], inside: bool
) -> tuple[NDArray[np.float32], list[int]]:
    """Features [B, K] of what the model says, NaN where it is no word of its own; and what it says. inside: the prompts hold passages."""
    seen = read_newest(model, heads, prompts)
    said = seen.logits.argmax(dim=-1).tolist()
    found = seen.features(said)
    for row, prompt, token in zip(found, prompts, said, strict=True):
        if token in special or (inside and token in prompt.ids):
            row[:] = np.nan
    return found, said
