"""The labelled types that cross every boundary of headwise: one head, the scores of all heads, a chosen set of heads."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_seed, plain
from headwise.heads.text import shorten

Scores = NDArray[np.float64]
MOST_HEADS = 1_000_000  # far more than any model has; nothing larger is ever allocated
WRITTEN = re.compile(r"L?([0-9]{1,9})[H-]([0-9]{1,9})")


class HeadId(NamedTuple):
    """One query head. Written `L17H24`.

    Attributes:
        layer: From 0.
        head: Inside its layer, from 0.
    """

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """Read `L17H24` or `17-24`.

        Raises:
            HeadwiseError: The text is anything else.
        """
        found = WRITTEN.fullmatch(text.strip().upper())
        if found is None:
            raise HeadwiseError(f"{shorten(text)!r} is not a head; write it as L17H24 or 17-24 (layer, head, both from 0)")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of(cls, value: Any) -> HeadId:
        """One head from what people write: a `HeadId`, a pair (17, 24), or a text for `parse`.

        Raises:
            HeadwiseError: The value is nothing of the kind.
        """
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, tuple | list | np.ndarray) and len(value) == 2 and not any(isinstance(part, bool) for part in value):
            try:
                return cls(operator.index(value[0]), operator.index(value[1]))
            except TypeError:
                pass
        raise HeadwiseError(f"{shorten(repr(value))} is not a head; write (17, 24) or 'L17H24' (layer, head, both from 0)")


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores of all query heads of one model. `scores[5, 6]` and `scores["L5H6"]` are the score of one head.

    Attributes:
        values: [layer, head], higher is stronger, NaN = not scored.
        score: Which score ("copy", "query", "gate", ...).
        score_version: Raised when the numbers could change.
        runs: [run, layer, head], the per-run values whose mean is `values`, or None.
        run_info: One mapping per run (length, depth, needle, ...), as long as `runs`, or empty.
        provenance: Model, options, seeds, versions: all that is needed to repeat the run.
        tables: More numbers of the same heads by name, each [layer, head], [layer, KV head] or [layer]; NaN = none. Detectors say which they
            give: `lift` (semantic scores), `mean_gates` and `layer_order` (gates).
    """

    values: Scores
    score: str
    score_version: int = 1
    runs: NDArray[np.float32] | None = None
    run_info: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float64))
        if self.values.ndim != 2:
            raise HeadwiseError(f"scores must be a [layer, head] table; got {self.values.ndim} dimensions")
        check_grid(self.shape)
        if self.runs is not None and self.runs.shape[1:] != self.values.shape:
            raise HeadwiseError(f"per-run values of shape {self.runs.shape[1:]} beside scores of shape {self.values.shape}")
        if self.runs is not None and len(self.run_info) not in (0, len(self.runs)):
            raise HeadwiseError(f"{len(self.run_info)} run descriptions for {len(self.runs)} runs")
        tables = {name: np.asarray(table, dtype=np.float64) for name, table in self.tables.items()}
        for name, table in tables.items():
            _check_table(name, table, self.shape)
        object.__setattr__(self, "tables", tables)

    def __eq__(self, other: object) -> bool:
        """True if the same numbers, names, run descriptions and provenance stand in both (compared as a file would hold them)."""
        if not isinstance(other, HeadScores):
            return NotImplemented
        return (
            (self.score, self.score_version) == (other.score, other.score_version)
            and _same(self.values, other.values)
            and _same(self.runs, other.runs)
            and self.tables.keys() == other.tables.keys()
            and all(_same(table, other.tables[name]) for name, table in self.tables.items())
            and plain(self.run_info) == plain(other.run_info)
            and plain(self.provenance) == plain(other.provenance)
        )

    __hash__ = None  # type: ignore[assignment]  # its arrays can change

    def __getitem__(self, head: tuple[int, int] | str) -> float:
        """Score of one head, NaN if it has none.

        Raises:
            HeadwiseError: No such head.
        """
        if not isinstance(head, str | tuple):
            raise HeadwiseError(
                f"scores take one head, scores[5, 6] or scores['L5H6']; got {shorten(repr(head))} (all scores of a layer: scores.values[5])"
            )
        found = HeadId.of(head)
        check_inside((found,), self.shape)
        return float(self.values[found])

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, query heads per layer)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def frequency(self) -> Scores:
        """Activation frequency [layer, head]: the share of runs with a score above 0, NaN = not scored (Wu et al. 2024, sec. 3.4).

        Raises:
            HeadwiseError: The scores hold no per-run values.
        """
        if self.runs is None or len(self.runs) == 0:
            raise HeadwiseError(f"the {self.score} scores hold no per-run values, so there is no activation frequency")
        frequency = (np.nan_to_num(self.runs) > 0).mean(axis=0)
        return np.where(np.isnan(self.values), np.nan, frequency)

    def ranking(self) -> list[HeadId]:
        """All scored heads, strongest first; equal scores in the order of layer and head.

        Raises:
            HeadwiseError: No head is scored, or all scores are equal: such a table ranks nothing but the tie order.
        """
        scored = self.values[~np.isnan(self.values)]
        if scored.size == 0:
            raise HeadwiseError(f"no head has a {self.score} score, so there is nothing to rank")
        if scored.size > 1 and scored.min() == scored.max():
            raise HeadwiseError(
                f"all {scored.size} heads have the same {self.score} score ({scored.min():g}); that is no ranking"
            )
        order = np.argsort(-self.values, axis=None, kind="stable")[: scored.size]  # NaN sorts last
        return [HeadId(int(i) // self.shape[1], int(i) % self.shape[1]) for i in order]

    def top(self, k: int) -> HeadSet:
        """The k strongest heads, strongest first.

        Raises:
            HeadwiseError: As `ranking`, and for a k that is not in 1 to the number of scored heads.
        """
        return HeadSet(tuple(self._ranked("top", k)[:k]), self.shape, f"top {k} by {self.score} score")

    def bottom(self, k: int, seed: int = 0) -> HeadSet:
        """The k weakest scored heads, weakest first.

        Args:
            k: From 1 to the number of scored heads.
            seed: Equal scores (often many zeros) come in a random order of this seed, not layer by layer.

        Raises:
            HeadwiseError: As `top`, and for a seed out of range.
        """
        ranking = self._ranked("bottom", k)
        shuffled = (ranking[i] for i in np.random.default_rng([checked_seed(seed), 9]).permutation(len(ranking)))
        weakest = sorted(shuffled, key=lambda head: float(self.values[head]))
        return HeadSet(tuple(weakest[:k]), self.shape, f"bottom {k} by {self.score} score")

    def above(self, threshold: float) -> HeadSet:
        """All heads with a score above `threshold`, strongest first (may be empty). Raises as `ranking`."""
        chosen = tuple(h for h in self.ranking() if self.values[h] > threshold)
        return HeadSet(chosen, self.shape, f"{self.score} score above {threshold:g}")

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a head file; see `save_heads`."""
        from headwise.heads.headfile import save_heads  # which needs these types

        save_heads(self, path, overwrite)

    def _ranked(self, which: str, k: int) -> list[HeadId]:
        ranking = self.ranking()
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= len(ranking):
            raise HeadwiseError(
                f"{which} {shorten(repr(k))} asked for, but the file scores {len(ranking)} heads; choose 1 to {len(ranking)}"
            )
        return ranking


@dataclass(frozen=True)
class HeadSet:
    """An ordered choice of heads, and how it was made.

    `heads[0]` is its first head, `heads[:4]` its first four; `a | b` and `a - b` join and leave out; `"L5H6" in heads`, `(5, 6) in heads`.

    Attributes:
        heads: The heads in order, each once.
        shape: (layers, query heads per layer) of the model they belong to.
        chosen_by: How they were chosen, in words.
    """

    heads: tuple[HeadId, ...]
    shape: tuple[int, int]
    chosen_by: str = ""

    def __post_init__(self) -> None:
        check_grid(self.shape)
        check_inside(self.heads, self.shape)
        if len(set(self.heads)) != len(self.heads):
            raise HeadwiseError("a head set names a head twice")

    @classmethod
    def of(cls, heads: Heads, shape: tuple[int, int], chosen_by: str = "", model: str = "this model") -> HeadSet:
        """Heads from what people write. Whatever takes heads takes this.

        Args:
            heads: A `HeadSet` (given back as it is), or heads one by one: `[(5, 6)]`, `["L5H6", "7-0"]`.
            shape: (layers, query heads per layer) of the model.
            chosen_by: How they were chosen, in words; not for a `HeadSet`, which knows.
            model: What an error calls the model.

        Returns:
            The heads in the order given.

        Raises:
            HeadwiseError: `heads` is anything else, names a head twice, or does not belong to a model of this shape.
        """
        if isinstance(heads, HeadSet):
            heads.check_fits(shape, model)
            return heads
        if isinstance(heads, HeadScores):
            raise HeadwiseError("heads are wanted and scores were given; choose some of them, for example scores.top(8)")
        if isinstance(heads, str | bytes | Path):
            raise HeadwiseError(
                f"heads are wanted and {shorten(str(heads))!r} was given; give a list such as ['L5H6'], "
                "or load_heads(FILE).top(8) for a head file"
            )
        if isinstance(heads, HeadId) or (
            isinstance(heads, tuple) and len(heads) == 2 and all(isinstance(part, int) for part in heads)
        ):
            raise HeadwiseError(f"heads are wanted and the head {tuple(heads)} was given; put it into a list: [{tuple(heads)}]")
        if isinstance(heads, Mapping) or not isinstance(heads, Iterable):
            raise HeadwiseError(
                f"heads are wanted and {shorten(repr(heads))} was given; give a HeadSet or a list such as [(5, 6), 'L7H0']"
            )
        return cls(tuple(map(HeadId.of, heads)), shape, chosen_by)

    def __iter__(self) -> Iterator[HeadId]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __contains__(self, head: object) -> bool:
        return HeadId.of(head) in self.heads

    @overload
    def __getitem__(self, index: SupportsIndex) -> HeadId: ...

    @overload
    def __getitem__(self, index: slice) -> HeadSet: ...

    def __getitem__(self, index: SupportsIndex | slice) -> HeadId | HeadSet:
        """The head at a place, or the set of those at several."""
        if isinstance(index, slice):
            return HeadSet(self.heads[index], self.shape, f"{self.chosen_by}, a part" if self.chosen_by else "")
        try:
            return self.heads[index]
        except (IndexError, TypeError):
            raise HeadwiseError(
                f"no head at place {shorten(repr(index))}; the set holds {len(self)}, the first is heads[0]"
            ) from None

    def __or__(self, other: Heads) -> HeadSet:
        """These heads, then those of `other` that are not among them."""
        more = HeadSet.of(other, self.shape, "others", "the first set")
        return self._changed([head for head in more if head not in self.heads], (), f"and {more.chosen_by}")

    def __sub__(self, other: Heads) -> HeadSet:
        """These heads without those of `other`."""
        less = HeadSet.of(other, self.shape, "others", "the first set")
        return self._changed((), less.heads, f"without {less.chosen_by}")

    def _changed(self, more: Iterable[HeadId], less: Iterable[HeadId], how: str) -> HeadSet:
        kept = tuple(head for head in self.heads if head not in set(less))
        return HeadSet((*kept, *more), self.shape, f"{self.chosen_by or 'some heads'} {how}")

    def mask(self) -> NDArray[np.bool_]:
        """[layer, head] bool, True for the chosen heads."""
        out = np.zeros(self.shape, dtype=bool)
        for head in self.heads:
            out[head] = True
        return out

    def check_fits(self, shape: tuple[int, int], model: str, what: str = "these heads") -> None:
        """Refuse a set that belongs to a model of another shape.

        Args:
            shape: (layers, query heads per layer) of the model.
            model: What the error calls it.
            what: What the error calls the set.

        Raises:
            HeadwiseError: The shapes differ.
        """
        if self.shape == shape:
            return
        raise HeadwiseError(
            f"{what} belong to a model of {self.shape[0]} layers x {self.shape[1]} heads, but {shorten(model, 200)} has "
            f"{shape[0]} x {shape[1]}; {_way_out(self.shape, shape)}"
        )


Heads: TypeAlias = "HeadSet | Iterable[HeadId | tuple[int, int] | str]"


def check_grid(shape: tuple[int, ...]) -> None:
    """Refuse a table of heads that no model has, before anything of its size is made.

    Raises:
        HeadwiseError: No layers or heads, or more than `MOST_HEADS` heads.
    """
    if len(shape) != 2 or min(shape) < 0 or shape[0] * shape[1] > MOST_HEADS:
        raise HeadwiseError(f"no model has {' layers x '.join(map(str, shape))} heads (at most {MOST_HEADS} heads are taken)")


def check_inside(heads: Iterable[HeadId], shape: tuple[int, int]) -> None:
    """Refuse heads that a model does not have.

    Args:
        heads: The heads.
        shape: (layers, query heads per layer) of the model.

    Raises:
        HeadwiseError: One of them lies outside; it is named.
    """
    layers, count = shape
    for head in heads:
        if not (0 <= head.layer < layers and 0 <= head.head < count):
            raise HeadwiseError(f"head {head} lies outside a model of {layers} layers x {count} heads")


def _way_out(own: tuple[int, int], wanted: tuple[int, int]) -> str:
    """What to do about heads of the shape `own` where `wanted` is needed. Tables per KV head and bare lists of heads look like other models."""
    advice = "detect the heads of this model first"
    if own[0] == wanted[0] and own[1] and wanted[1] % own[1] == 0 and wanted[1] > own[1]:
        return f"{advice}, or, if the file has a column per KV head: headwise convert FILE NEW.json --group {wanted[1] // own[1]}"
    if own[0] <= wanted[0] and own[1] <= wanted[1]:
        return f"{advice}, or, if the file is a list that does not name all heads: headwise convert FILE NEW.json --shape {wanted[0]}x{wanted[1]}"
    return advice


def _check_table(name: object, table: Scores, shape: tuple[int, int]) -> None:
    if not isinstance(name, str) or not name:
        raise HeadwiseError(f"a table of scores needs a name; got {shorten(repr(name))}")
    layers, heads = shape
    fits = table.shape == (layers,) or (
        table.ndim == 2 and len(table) == layers and table.shape[1] > 0 and heads % table.shape[1] == 0
    )
    if not fits:
        raise HeadwiseError(
            f"table {shorten(name)!r} has the shape {table.shape} beside scores of {layers} layers x {heads} heads; "
            "it must be [layer], [layer, head] or [layer, KV head]"
        )
    if np.isinf(table).any():
        raise HeadwiseError(f"table {shorten(name)!r} holds an infinite number")


def _same(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.array_equal(a, b, equal_nan=True))
