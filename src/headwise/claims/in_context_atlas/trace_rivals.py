"""Ways to say which passage an answer was read from, on one item: each gives a score per passage, most a score per position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from headwise.attention.attribute import attribute
from headwise.attention.columns import column_sums
from headwise.attention.observe import observe
from headwise.evaluation.leave_out import answer_logprobs, leave_one_out, without
from headwise.heads import HeadSet, HeadwiseError
from headwise.methods.trace.answer import trace_answer
from headwise.methods.trace.formula import passage_scores
from headwise.models.forward import token_tensor
from headwise.models.model import Model
from headwise.prompts.answers import allowed_positions, passages_of
from headwise.prompts.encoder import control_tokens
from headwise.prompts.prompt import Prompt
from headwise.runtime.head_probe import Probe
from headwise.stats.places import best_position, offset_to
from headwise.stats.probes import Values
from headwise.stats.ranking import bm25_candidates


@dataclass
class Said:
    """What a rival says of an item.

    Attributes:
        passages: Score per passage, in their order.
        offset: How far its best position lies behind the nearest mention of the answer; None if it knows no positions.
        read: How much it takes the first token to be read; None if it cannot tell.
    """

    passages: list[float]
    offset: int | None = None
    read: float | None = None
    more: dict[str, float] = field(default_factory=dict)


class Rivals:
    """All rivals on one model.

    Attributes:
        learned: Weights per head [L, H], or None until they are known.
    """

    def __init__(self, model: Model, probe: Probe, heads: HeadSet, rules: Sequence[str]) -> None:
        self.model, self.probe, self.heads, self.rules = model, probe, heads, tuple(rules)
        self.special = control_tokens(model.tokenizer)
        self.learned: Values | None = None

    def all(self, prompt: Prompt, answer: Sequence[int], question: str, said: str, number: int) -> dict[str, Said]:
        """What all rivals say of an answer; `said` is its text, `number` seeds the uniform choice."""
        out = {"probe": self.by_probe(prompt, answer), "rows": self.by_rows(prompt, answer)}
        out |= {rule: self.by_relevance(prompt, answer, rule) for rule in self.rules}
        if self.learned is not None:
            out["learned"] = self.by_learned(prompt, answer)
        out["leave_one_out"] = self.by_leaving_out(prompt, answer)
        names = passages_of(prompt)
        out["uniform"] = Said(np.random.default_rng([18, number]).random(len(names)).tolist())
        out["bm25"] = self.by_words(prompt, f"{question} {said}")
        return out

    def by_probe(self, prompt: Prompt, answer: Sequence[int]) -> Said:
        """The probe's scores of positions, over the answer; whether it was read: its score for the first token."""
        found = trace_answer(self.model, prompt, answer, self.probe)
        sums = found.passages
        first = found.tokens[0]
        read = float(self.probe.linear.scores(found.features[:1])[0])
        return Said(
            [sums[name] for name in passages_of(prompt)],
            self.offset(prompt, first.position),
            read,
            {"probability": first.probability},
        )

    def by_rows(self, prompt: Prompt, answer: Sequence[int]) -> Said:
        """Mean attention of the heads' rows, over the answer; whether it was read: what the first row pays to the passages."""
        count = len(answer)
        whole = self._columns(prompt, answer, torch.full((1, count), 1 / count))
        first = self._columns(prompt, answer, torch.eye(count)[:1])
        return self._of_positions(prompt, whole, first)

    def by_relevance(self, prompt: Prompt, answer: Sequence[int], rule: str) -> Said:
        """Positive relevance at the embeddings for the whole answer's logits, in one backward pass."""
        found = self._relevance(prompt, answer, rule, len(answer))
        return self._of_positions(prompt, found, found)

    def by_learned(self, prompt: Prompt, answer: Sequence[int]) -> Said:
        """Attention of all heads to each passage, with the weights of `learn`."""
        if self.learned is None:
            raise HeadwiseError("weights per head are not known yet: call learn first")
        masses = self.masses(prompt, answer)
        scores = np.einsum("lhn,lh->n", np.nan_to_num(masses), self.learned)
        return Said(scores.tolist())

    def by_leaving_out(self, prompt: Prompt, answer: Sequence[int]) -> Said:
        """By how many nats the answer's log-probability falls without each passage."""
        drops = leave_one_out(self.model, prompt, answer, list(passages_of(prompt)))
        return Said(list(drops.values()))

    def by_words(self, prompt: Prompt, text: str) -> Said:
        """BM25 of question and answer."""
        texts = {name: self.model.tokenizer.decode(prompt.ids[a:b]) for name, (a, b) in passages_of(prompt).items()}
        found = bm25_candidates({"q": text}, texts, len(texts))["q"]
        return Said([found.get(name, 0.0) for name in texts])

    def masses(self, prompt: Prompt, answer: Sequence[int]) -> Values:
        """[L, H, N]: attention of all heads from the answer's rows to each passage, mean over rows."""
        with observe(self.model, rows=len(answer), spans=list(passages_of(prompt).values())) as seen, torch.no_grad():
            self.model.hf(input_ids=self._ids(prompt, answer), use_cache=False, logits_to_keep=1)
        return seen.mass[:, 0].mean(dim=2).double().cpu().numpy()

    def learn(self, items: Sequence[tuple[Prompt, Sequence[int]]], subsets: int, penalty: float = 1e-2) -> Values:
        """Weights [L, H] by ridge regression on ablations (the idea of 2504.13752).

        The log-probability of an answer behind random halves of the passages is a sum over the passages that are left, and over heads, of
        weight x attention; centred within items.
        """
        rows, targets = [], []
        for number, (prompt, answer) in enumerate(items):
            names = list(passages_of(prompt))
            kept = np.random.default_rng([41, number]).random((subsets, len(names))) < 0.5
            prompts = [without(prompt, [name for name, keep in zip(names, row, strict=True) if not keep]) for row in kept]
            target = np.array(answer_logprobs(self.model, prompts, answer))
            masses = np.nan_to_num(self.masses(prompt, answer)).reshape(-1, len(names))
            features = kept @ masses.T
            rows.append(features - features.mean(axis=0))
            targets.append(target - target.mean())
        x, y = np.concatenate(rows), np.concatenate(targets)
        spread = np.where(x.std(axis=0) > 0, x.std(axis=0), np.inf)
        unit = x / spread
        weights = unit.T @ np.linalg.solve(unit @ unit.T + penalty * unit.shape[1] * np.eye(len(x)), y) / spread
        self.learned = weights.reshape(self.model.heads.shape)
        return self.learned

    def candidate(self, prompt: Prompt, token: int) -> dict[str, float]:
        """How much each rival takes one token behind the prompt to be read."""
        found = trace_answer(self.model, prompt, [token], self.probe)
        out = {"probe": float(self.probe.linear.scores(found.features[:1])[0])}
        if any(name.startswith("passage/") for name in prompt.spans):
            out["rows"] = self._inside(prompt, self._columns(prompt, [token], torch.ones(1, 1)))
            out |= {rule: self._inside(prompt, self._relevance(prompt, [token], rule, 1)) for rule in self.rules}
        return out

    def offset(self, prompt: Prompt, position: int) -> int | None:
        """How far a position lies behind the nearest mention of the answer."""
        starts = [place for name, span in prompt.spans.items() if name.startswith("answer/") for place in range(*span)]
        return offset_to(position, starts) if starts and position >= 0 else None

    def _ids(self, prompt: Prompt, answer: Sequence[int]) -> torch.Tensor:
        return token_tensor(self.model.hf, [*prompt.ids, *answer[:-1]])

    def _columns(self, prompt: Prompt, answer: Sequence[int], weights: torch.Tensor) -> Values:
        with column_sums(self.model, self.heads, len(prompt.ids), weights, _over_heads) as seen, torch.no_grad():
            self.model.hf(input_ids=self._ids(prompt, answer), use_cache=False, logits_to_keep=1)
        return torch.stack(list(seen.by_layer.values())).sum(dim=0)[0].double().cpu().numpy() / len(self.heads)

    def _relevance(self, prompt: Prompt, answer: Sequence[int], rule: str, count: int) -> Values:
        with attribute(self.model, rule) as seen:
            logits = self.model.hf(input_ids=self._ids(prompt, answer), logits_to_keep=count).logits[0]
            seen.explain(logits.gather(1, torch.tensor(list(answer), device=logits.device)[:, None]).sum())
        return seen.tokens[0, : len(prompt.ids)].double().clamp(min=0).cpu().numpy()

    def _of_positions(self, prompt: Prompt, scores: Values, first: Values) -> Said:
        allowed = allowed_positions(prompt, self.special)
        place = best_position(scores, allowed)
        sums = passage_scores(scores, allowed, passages_of(prompt))
        return Said(list(sums.values()), self.offset(prompt, place), self._inside(prompt, first))

    def _inside(self, prompt: Prompt, scores: Values) -> float:
        """Share of the scores that falls on the passages."""
        return float(scores[allowed_positions(prompt, self.special)].sum() / (scores.sum() or 1.0))


def _over_heads(columns: torch.Tensor) -> torch.Tensor:
    return columns.sum(dim=1)
