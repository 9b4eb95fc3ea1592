"""A reader of answers by heads: which sentences of anybody's answer a small model finds in the documents, told from where its heads look.

Documents, question and answer are read in one pass (teacher forcing). The rows that predict the tokens of a sentence are those that would fetch
it. Two scores are taken from them, over the chosen heads: *attention*, their mass on the documents, and *copying*, how often the strongest key is
a document's token that is the very token to come (what makes a retrieval head, Wu et al. 2024, arXiv:2404.15574). How well scores tell supported
sentences from others is the area under the ROC curve against judgements, beside scores that need no model: the sentence's length and the words
it shares with the documents.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention.observe import observe
from headwise.attention.tail import last_rows
from headwise.evaluation.support import LexicalOverlap, check_sentences
from headwise.heads import HeadSet, HeadwiseError
from headwise.heads.errors import NoSuccessfulRunError
from headwise.heads.headfile import write_json
from headwise.heads.progress import Report, silent
from headwise.heads.types import Heads
from headwise.models.forward import token_tensor
from headwise.models.model import Model, describe_model, need_tokenizer
from headwise.prompts.answers import passages_of
from headwise.prompts.grounded import GroundedRecord, JudgedAnswer
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.prompt import Prompt
from headwise.runtime.options import check_choice, check_least, check_seed
from headwise.runtime.rundir import Cells
from headwise.stats.controls import layer_matched_random
from headwise.stats.paired import rank_p
from headwise.stats.probes import bootstrap_auc
from headwise.stats.ranks import auc

POOLS = ("mean", "max")
SCORES = ("attention", "copying")
ALL, ON_EVIDENCE = "all", "on evidence"
DRAWS = 1_000  # bootstrap draws per interval
Values = NDArray[np.float64]


@dataclass(frozen=True)
class ReaderOptions:
    """How sentences are scored. Raises `HeadwiseError` for a value out of range.

    Attributes:
        pool: Over the chosen heads: their `mean` at every token, or the `max`; over the tokens of a sentence it is the mean.
        controls: Draws of layer-matched random heads, at least 1.
        seed: Of draws and intervals.
    """

    pool: str = "mean"
    controls: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, POOLS)
        check_least(1, controls=self.controls)
        check_seed(self.seed)


@dataclass(frozen=True)
class ReadSentence:
    """A judged sentence and its scores.

    Attributes:
        record: Number of the record, from 0; sentences of one record are resampled together.
        text: The sentence.
        supported: Whether the documents say it: a judgement of 1; one below it counts as not supported.
        on_evidence: Whether the judgement names the documents it rests on. A sentence without evidence is often one that nobody looked for.
        attention: [1 + draws] in [0, 1]: score of the chosen heads, then of random ones.
        copying: [1 + draws] in [0, 1], likewise.
        words: Its length in words.
        lexical: Share of its content words in its best chunk.
    """

    record: int
    text: str
    supported: bool
    on_evidence: bool
    attention: tuple[float, ...]
    copying: tuple[float, ...]
    words: int
    lexical: float


@dataclass(frozen=True)
class ReaderResult:
    """What the reader told.

    Attributes:
        model: Name of the reading model.
        sentences: All that were scored.
        dropped: Reason -> answers that could not be read.
        options: How it was measured.
        provenance: All that is needed to repeat it.
    """

    model: str
    sentences: tuple[ReadSentence, ...]
    dropped: Mapping[str, int]
    options: ReaderOptions
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Areas under the ROC curve: one row per score, for all sentences and for those judged on evidence (where that differs).

        Returns:
            `judged` (`all`, or `on evidence`), `score` (`attention`, `copying`, `lexical overlap`, `length`), `heads` (`chosen`, `random`, or empty),
            `supported` and `unsupported` (sentences); with both kinds `auc` with its 95 % interval over records (`low`, `high`), for random heads
            the mean of the draws with the smallest and the largest, and for the chosen heads `p_rank`, their rank among the draws. `length`
            takes shorter sentences for supported. Without both kinds of sentences `auc` is None.
        """
        parts = {ALL: list(self.sentences), ON_EVIDENCE: [one for one in self.sentences if one.on_evidence]}
        if len(parts[ON_EVIDENCE]) in (0, len(self.sentences)):
            del parts[ON_EVIDENCE]
        return [row for judged, some in parts.items() for row in self._rows(judged, some)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        items = [asdict(one) for one in self.sentences]
        return {**self.provenance, "model": self.model, "dropped": dict(self.dropped), "rows": self.rows(), "sentences": items}

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write the result as JSON, atomically. Raises `HeadwiseError` if the file exists and is not to be replaced."""
        write_json(self.to_json(), path, overwrite)

    def _rows(self, judged: str, some: Sequence[ReadSentence]) -> Iterator[dict[str, Any]]:
        labels = np.asarray([one.supported for one in some], dtype=bool)
        groups = np.asarray([one.record for one in some])
        counts = {"judged": judged, "supported": int(labels.sum()), "unsupported": int((~labels).sum())}
        both = labels.any() and not labels.all()

        def row(score: str, values: Values, heads: str = "") -> dict[str, Any]:
            area = bootstrap_auc(values, labels, groups, DRAWS, self.options.seed) if both else (None, None, None)
            return {**counts, "score": score, "heads": heads} | dict(zip(("auc", "low", "high"), area, strict=True))

        for name in SCORES:
            table = np.asarray([getattr(one, name) for one in some], dtype=np.float64).reshape(len(some), -1)
            chosen = row(name, table[:, 0], "chosen")
            if not both:
                yield chosen
                continue
            random = np.asarray([auc(column[labels], column[~labels]) for column in table.T[1:]])
            yield chosen | {"p_rank": rank_p(-chosen["auc"], -random)}
            spread = {"auc": float(random.mean()), "low": float(random.min()), "high": float(random.max())}
            yield {**counts, "score": name, "heads": "random"} | spread
        yield row("lexical overlap", np.asarray([one.lexical for one in some]))
        yield row("length", np.asarray([-float(one.words) for one in some]))


def sentence_scores(model: Model, prompt: Prompt, sentences: Sequence[tuple[int, ...]], heads: Sequence[Heads], pool: str = "mean") -> Values:
    """Attention to the documents, and copying from them, per sentence of an answer, in one pass.

    Args:
        model: The model that reads.
        prompt: With spans `passage/1`, ...
        sentences: S sentences of the answer, as ids that follow the prompt and one another; none is empty.
        heads: N sets of heads.
        pool: See `ReaderOptions`.

    Returns:
        [2, N, S] in [0, 1]: attention, copying.

    Raises:
        HeadwiseError: No documents, an empty sentence, heads of another model, or more tokens than the model has positions.
    """
    check_choice("pool", pool, POOLS)
    chosen = [model.check(one) for one in heads]
    if not sentences or not all(sentences) or not all(map(len, chosen)):
        raise HeadwiseError("a reader needs sentences of at least one token, and at least one head")
    answer = [token for ids in sentences for token in ids]
    ids = (*prompt.ids, *answer[:-1])
    if model.positions is not None and len(ids) > model.positions:
        raise HeadwiseError(f"documents and answer have {len(ids)} tokens, and {model.name} has {model.positions} positions")
    spans = [(span.start, span.stop) for span in passages_of(prompt).values()]
    with observe(model, rows=len(answer), spans=spans) as seen, torch.no_grad(), last_rows(model, len(answer)):
        model.hf(input_ids=token_tensor(model.hf, ids), use_cache=False, logits_to_keep=1)
    mass = seen.mass[:, 0].sum(dim=-1).double().cpu().numpy()  # [L, H, T]
    strongest = seen.argmax[:, 0].cpu().numpy()  # [L, H, T], -1 where a layer has no heads
    inside = np.zeros(len(ids) + 1, dtype=bool)  # the last one stands for no position
    for start, stop in spans:
        inside[start:stop] = True
    copied = inside[strongest] & (np.asarray((*ids, -1))[strongest] == np.asarray(answer))
    bounds = np.cumsum([0, *map(len, sentences)])
    join = np.mean if pool == "mean" else np.max
    per_token = [[join(table[one.mask()], axis=0) for one in chosen] for table in (mass, copied.astype(np.float64))]
    return np.asarray([[[row[a:b].mean() for a, b in pairwise(bounds)] for row in rows] for rows in per_token])


def read_answers(
    model: Model,
    heads: HeadSet,
    records: Sequence[GroundedRecord],
    composer: GroundedComposer,
    options: ReaderOptions | None = None,
    directory: Cells | None = None,
    report: Report = silent,
) -> ReaderResult:
    """Score the judged sentences of all records.

    Args:
        model: The model that reads, with its tokenizer.
        heads: Its retrieval heads.
        records: With judged answers; answers without a judged sentence, without documents or without room are dropped and counted.
        composer: Makes the prompts.
        options: Pooling, controls.
        directory: Finished answers are kept there and not read again.
        report: Called with (done, total, remark).

    Raises:
        HeadwiseError: Heads of another model, or too few others for the controls.
        NoSuccessfulRunError: No judged answer can be read.
    """
    options, model = options or ReaderOptions(), need_tokenizer(model, "a reader of answers")
    heads = model.check(heads)
    pool = np.zeros(heads.shape, dtype=bool)
    pool[list(model.modules)] = True
    sets = [heads, *(layer_matched_random(heads, pool, (options.seed, draw)) for draw in range(options.controls))]
    dropped: Counter[str] = Counter()
    given = list(_readable(model, records, composer, dropped))
    if not given:
        why = "; ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "the file holds no judged answers"
        raise NoSuccessfulRunError(f"no judged answer can be read ({why}); give --data with judged sentences, such as ExpertQA's")
    found: list[ReadSentence] = []
    for number, (place, answer, prompt, ids) in enumerate(given):
        kept = directory.load(f"answer-{number}") if directory else None
        scores = sentence_scores(model, prompt, ids, sets, options.pool) if kept is None else kept[0]["scores"]
        if directory and kept is None:
            directory.save(f"answer-{number}", {"scores": scores}, [])
        found += _read(place, records[place], answer, scores)
        report(number + 1, len(given), f"{len(found)} sentences")
    return ReaderResult(model.name, tuple(found), dict(dropped), options, describe_reader(model, heads, records, composer, options))


def describe_reader(
    model: Model, heads: HeadSet, records: Sequence[GroundedRecord], composer: GroundedComposer, options: ReaderOptions
) -> dict[str, Any]:
    """All that decides the result as plain data; what a `RunDirectory` of `read_answers` is described by. Arguments as there."""
    told = json.dumps([record.row() for record in records], sort_keys=True).encode()
    return {
        "kind": "reader",
        "options": asdict(options),
        "chosen_heads": [str(head) for head in heads],
        "records": {"given": len(records), "digest": hashlib.sha256(told).hexdigest()[:16]},
        "composer": composer.describe(),
        "fingerprint": model.fingerprint,
    } | describe_model(model)


def _readable(
    model: Model, records: Sequence[GroundedRecord], composer: GroundedComposer, dropped: Counter[str]
) -> Iterator[tuple[int, JudgedAnswer, Prompt, list[tuple[int, ...]]]]:
    """(number of the record, answer, prompt, ids of the sentences) of every answer that can be read."""
    for place, record in enumerate(records):
        for answer in record.judged:
            if not record.documents:
                dropped["no documents"] += 1
            elif all(one.support is None for one in answer.sentences):
                dropped["no judged sentence"] += 1
            else:
                prompt = composer.opened(record)
                ids = sentence_ids(composer, prompt, [one.text for one in answer.sentences])
                if model.positions is not None and len(prompt.ids) + sum(map(len, ids)) > model.positions:
                    dropped["longer than the model's context"] += 1
                else:
                    yield place, answer, prompt, ids


def sentence_ids(composer: GroundedComposer, prompt: Prompt, sentences: Sequence[str]) -> list[tuple[int, ...]]:
    """Ids of the sentences of an answer as they follow a prompt and one another.

    Args:
        composer: That made the prompt.
        prompt: What was answered.
        sentences: None empty.
    """
    encoder = composer.encoder
    plain = [" ".join(sentence.split()) for sentence in sentences]
    first = encoder.encode_behind(plain[0], prompt.ids) if composer.chat else encoder.encode(" " + plain[0])
    return [first, *(encoder.encode(" " + sentence) for sentence in plain[1:])]


def _read(place: int, record: GroundedRecord, answer: JudgedAnswer, scores: Values) -> Iterator[ReadSentence]:
    """The judged sentences of an answer. scores: [2, 1 + draws, S]."""
    lexical = check_sentences(LexicalOverlap(), [one.text for one in answer.sentences], record.documents).scores
    evidence = any(one.documents for one in answer.sentences)
    for i, one in enumerate(answer.sentences):
        if one.support is not None:
            own = bool(one.documents) or not evidence
            attention, copying = (tuple(map(float, table[:, i])) for table in scores)
            yield ReadSentence(
                place, one.text, one.support == 1, own, attention, copying, len(one.text.split()), float(lexical[i])
            )
