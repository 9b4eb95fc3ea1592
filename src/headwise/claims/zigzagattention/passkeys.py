"""Pass-keys: the texts that gates are found with and tested on, gates of several kinds, and what a pattern of whole and streaming heads answers.

A pass-key counts as right if all of its tokens are the most probable ones behind the true text. Heads that stream see their exact window
everywhere. Patterns are bool [layer with full attention, KV head], True: the head sees everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from headwise.caches.gated import gated, last_hidden
from headwise.caches.groups import Window
from headwise.claims.cache_runs import PARTS, Row, Runs, Values, needed, remembered
from headwise.claims.claim import Bound
from headwise.claims.experiment import NotTestable
from headwise.claims.zigzagattention.declared import GATES
from headwise.evaluation.perplexity import text_windows
from headwise.heads import HeadScores
from headwise.maths.gates import binarise, gate_loss
from headwise.methods.duo.gates import describe_run, rate_factor
from headwise.methods.duo.options import Gates
from headwise.methods.duo.prompts import LabelledText, VaultOptions, vault_texts
from headwise.models.model import device_of

SEEN = Window(4, 16)  # what a streaming head sees, while gates are found and in tests
FOUND_AT, TESTED_AT = (220, 280), 280  # tokens of a text
KEYS, WORDS, REAL_WORDS = 2, 4, 2  # words of a pass-key on lab models and on real ones
LEAST = Bound.read(GATES[0].gate[0]).limit  # share of the pass-keys that must be answered with everything visible
TEXTS, STEPS = 40, 60  # of a search
RATE = 0.04  # peak; twice the paper's, for few steps
PROSE = 30  # tokens that texts of prose are shorter
ROWS = 8  # texts in one pass
Name = TypeVar("Name", bound=Hashable)
GIVEN = {"self": {"mix": "self"}, "layer": {"per": "layer"}, "group": {"form": "group"}}  # kind of gates -> options


class Block(NamedTuple):
    """Texts of one length.

    Attributes:
        ids: [n, T].
        keys: Per text and pass-key the positions that predict its tokens.
    """

    ids: torch.Tensor
    keys: list[list[list[int]]]


def block(found: Sequence[LabelledText]) -> Block:
    """Texts of equal length with their pass-keys."""
    keys = []
    for text in found:
        runs: list[list[int]] = []
        for place in text.places:
            if runs and runs[-1][-1] == place - 1:
                runs[-1].append(place)
            else:
                runs.append([place])
        keys.append(runs)
    return Block(torch.tensor([text.ids for text in found]), keys)


class PassKeys:
    """A model, its gates, and what patterns answer.

    Attributes:
        runs: The model with its texts.
        words: Of a pass-key.
        seeds: Of gates.
        full: [text] share of the pass-keys that are answered with everything visible.

    Raises:
        NotTestable: Too few are, or the model's positions are too few.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs, bench, most = runs, runs.bench, runs.model.positions
        if most is not None and most < FOUND_AT[1]:
            raise NotTestable(f"needs {FOUND_AT[1]} positions; this model has {most}")
        self.words = REAL_WORDS if bench.real else WORDS
        self.seeds = range(bench.pick(1 if bench.real else 3, 1))
        self._answered: dict[bytes, Values] = {}
        self._gates: dict[tuple[str, int], HeadScores] = {}
        self.full = self.answered(self.everything())
        if self.full.mean() < LEAST and not bench.quick:  # an hour of searching for gates would tell nothing
            raise NotTestable(f"answers {self.full.mean():.2f} of the pass-keys with everything visible; {LEAST:g} is needed")

    @property
    def shape(self) -> tuple[int, int]:
        """Layers with full attention, KV heads."""
        return len(self.runs.model.heads.full_layers), self.runs.model.heads.kv_heads

    def texts(self, split: str, seed: int, lengths: tuple[int, int], count: int) -> list[LabelledText]:
        """Texts with pass-keys of a split's words."""
        part = PARTS["test" if split == "test" else "detect"]
        options = VaultOptions(lengths, KEYS, self.words, split, part=part, seed=self.runs.bench.seed + seed)
        with needed("texts with pass-keys"):
            return vault_texts(self.runs.haystack, self.runs.encoder, options, count)

    @cached_property
    def block(self) -> Block:
        """The texts for tests."""
        bench = self.runs.bench
        return block(self.texts("test", 0, (TESTED_AT, TESTED_AT), bench.pick(20 if bench.real else 10, 4)))

    # Gates

    def gates(self, kind: str, seed: int = 0) -> HeadScores:
        """Gates of one kind.

        Args:
            kind: `teacher` and `self`: the two mixtures. `layer` and `group`: those of Z3 and Z4. `all tokens` and `prose`: other losses.
                `half`: gates and optimiser in bfloat16.
            seed: Of texts and their order.
        """
        if (kind, seed) not in self._gates:
            self._gates[kind, seed] = self._find(kind, seed)
        return self._gates[kind, seed]

    def table(self, kind: str, seed: int = 0) -> Values:
        """The gates as [layer with full attention, KV head]."""
        return self.per_kv(self.gates(kind, seed).values)

    def per_kv(self, values: Values, reduce: Callable[..., Values] = np.mean) -> Values:
        """[layers, query heads] -> [layers with full attention, KV heads]."""
        model = self.runs.model
        return np.asarray(reduce(values.reshape(len(values), model.heads.kv_heads, -1), axis=2))[model.heads.full_layers]

    def _find(self, kind: str, seed: int) -> HeadScores:
        bench, least = self.runs.bench, 0.0 if kind in ("all tokens", "prose") else 0.5
        given: dict[str, Any] = {"sinks": SEEN.sinks, "recent": SEEN.recent, "seed": bench.seed + seed} | GIVEN.get(kind, {})
        options = Gates(steps=bench.pick(STEPS, 10), rate=RATE, min_right=least, **given)
        found = self.texts("train", seed, FOUND_AT, bench.pick(TEXTS, 10))
        if kind == "all tokens":
            found = [LabelledText(text.ids, (False, *[True] * (len(text.ids) - 1))) for text in found]
        if kind == "prose":
            rows = text_windows(self.runs.haystack, len(found), FOUND_AT[1] - PROSE, PARTS["detect"], bench.seed + seed).tolist()
            bos = self.runs.encoder.bos
            found = [LabelledText((*bos, *row), (False, *[True] * (len(bos) + len(row) - 1))) for row in rows]
        if kind == "half":
            return self._half_gates(found, options)
        return self.runs.gates(found, options)

    def _half_gates(self, found: Sequence[LabelledText], options: Gates) -> HeadScores:
        """As DuoAttention's code: gates and AdamW's state in bfloat16. The model and the loss stay in their own precision."""
        model, seed = self.runs.model, options.seed
        cells = self.runs.bench.cells(f"gates-half-{seed}", describe_run(model, found, options) | {"gates_in": "bfloat16"})
        rows = remembered(cells, "gates", lambda: [{"values": _search_in_half(model, found, options).tolist()}])
        values = np.array(rows[0]["values"])
        return HeadScores(np.repeat(values, model.heads.shape[1] // model.heads.kv_heads, axis=1), "gate")

    # Patterns

    def whole(self, pattern: Values) -> torch.Tensor:
        """The pattern as gates of all layers; those without full attention are not touched by any."""
        model = self.runs.model
        gates = torch.ones(model.heads.shape[0], model.heads.kv_heads, device=device_of(model.hf))
        gates[model.heads.full_layers] = torch.from_numpy(np.asarray(pattern, dtype=np.float32)).to(gates)
        return gates

    def answered(self, pattern: Values) -> Values:
        """[text] share of its pass-keys that are right; a pattern is measured once, and kept."""
        name = np.ascontiguousarray(pattern, dtype=bool).tobytes()
        if name not in self._answered:
            cells = self.runs.cells("patterns", seen=list(SEEN), texts=hashlib.sha256(self.block.ids.numpy().tobytes()).hexdigest()[:16])
            rows = remembered(cells, hashlib.sha256(name).hexdigest()[:24], lambda: self._answers(pattern))
            self._answered[name] = np.array([row["right"] for row in rows])
        return self._answered[name]

    def mean_answered(self, patterns: Sequence[Values]) -> Values:
        """[text] mean over patterns, such as those of several seeds."""
        return np.asarray(np.mean([self.answered(pattern) for pattern in patterns], axis=0))

    def all_answered(self, patterns: Mapping[Name, Sequence[Values]]) -> dict[Name, Values]:
        """Name -> `mean_answered` of its patterns, with progress."""
        found = {}
        for number, (name, own) in enumerate(patterns.items(), 1):
            found[name] = self.mean_answered(own)
            self.runs.bench.report(number, len(patterns), "pass-keys by patterns of heads")
        return found

    def everything(self) -> Values:
        """The pattern of the unchanged model."""
        return np.ones(self.shape, dtype=bool)

    @torch.no_grad()
    def _answers(self, pattern: Values) -> list[Row]:
        model, found = self.runs.model.hf, []
        with gated(model, self.whole(pattern), SEEN):
            for start in range(0, len(self.block.ids), ROWS):
                ids = self.block.ids[start : start + ROWS].to(device_of(model))
                hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                for row, keys in enumerate(self.block.keys[start : start + ROWS]):
                    found.append({"right": float(np.mean([_right(model, hidden[row], ids[row], places) for places in keys]))})
        return found

    @torch.no_grad()
    def needles(self, pattern: Values) -> float:
        """Share of test needles whose whole answer is right, one seed."""
        model, right = self.runs.model.hf, []
        with gated(model, self.whole(pattern), SEEN):
            for prompt in self.runs.prompts("test", 0):
                ids = torch.tensor([[*prompt.ids, *prompt.gold]], device=device_of(model))
                places = list(range(len(prompt.ids) - 1, ids.shape[1] - 1))
                said = _said(model, last_hidden(model, ids, places)[0])
                right.append(bool((said == ids[0, len(prompt.ids) :]).all()))
        return float(np.mean(right))


def top(values: Values, keep: float) -> Values:
    """The share `keep` of the KV heads with the highest values."""
    with needed("gates that differ"):
        return binarise(values, keep).kept


def _said(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model.get_output_embeddings()(hidden).argmax(dim=-1))


def _right(model: Any, hidden: torch.Tensor, ids: torch.Tensor, places: list[int]) -> float:
    return float((_said(model, hidden[places]) == ids[[place + 1 for place in places]]).all())


def _search_in_half(model: Any, found: Sequence[LabelledText], options: Gates) -> Values:
    """[layers, KV heads] gates in bfloat16 after all steps."""
    hf, full = model.hf, model.heads.full_layers
    trained = torch.nn.Parameter(torch.ones(model.heads.shape[0], model.heads.kv_heads, dtype=torch.bfloat16, device=device_of(hf)))
    optimiser = torch.optim.AdamW([trained], lr=options.rate, weight_decay=0.0)
    order = np.random.default_rng([options.seed, 13]).permutation(np.arange(options.steps) % len(found))
    for step, number in enumerate(order):
        with torch.no_grad():
            trained.clamp_(0, 1)
        optimiser.param_groups[0]["lr"] = options.rate * rate_factor(step, options.steps)
        optimiser.zero_grad()
        now, ids = trained.float(), torch.tensor([found[number].ids], device=device_of(hf))
        with gated(hf, now, SEEN, "teacher") as gating:
            teacher, student = gating.both(ids, found[number].places)
            loss = gate_loss(student, teacher, now[full])
            (loss.distillation + options.penalty * loss.penalty).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return trained.detach().double().cpu().numpy()
