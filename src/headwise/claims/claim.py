"""A claim, written down before its number, and the one rule by which all claims are judged."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.heads.text import shorten

Number = float | tuple[float, float, float]
"""A measured number; with three values: its mean and the two ends of its 95 % interval."""
LEVEL = 0.05  # of corrected p-values
P_BOUND = f"corrected p <= {LEVEL}"
HELD, NOT_HELD, NOT_TESTABLE = "held", "not held", "not testable"
VERDICTS = (HELD, NOT_HELD, NOT_TESTABLE)
CARDS = {  # card -> (its title, the page of the method)
    "retrieval-head": ("Retrieval heads", "methods/retrieval-head.md"),
    "qrhead": ("Query heads", "methods/query-heads.md"),
    "cafe": ("Coarse to fine (CAFE)", "methods/coarse-to-fine.md"),
    "compresskv": ("CompressKV", "methods/compresskv.md"),
    "zigzagattention": ("ZigzagAttention", "methods/zigzagattention.md"),
    "attention-influence": ("AttentionInfluence", "methods/attention-influence.md"),
    "in-context-atlas": ("Atlas of in-context learning", "methods/in-context-atlas.md"),
    "specontext": ("SpeContext", "methods/specontext.md"),
    "unwanted-uncertainty": ("Unwanted uncertainty", "methods/doubt.md"),
    "mudaf": ("MuDAF", "methods/mudaf.md"),
    "rhio": ("RHIO", "methods/rhio.md"),
    "transfer": ("Cross-transfer (ours)", "claims.md"),
}
DECIDING = ("key", "metric", "rule", "gate", "tested", "data", "controls")  # fields of a claim that its verdict depends on
RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_BOUND = re.compile(r"([a-z][a-z0-9_]*)(?:\.(low|high))? (>=|<=|==|>|<) (-?\d+(?:\.\d+)?(?:e-?\d+)?)")
_KEY = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")
_ENDS = {None: 0, "low": 1, "high": 2}


@dataclass(frozen=True)
class Bound:
    """One comparison of a measured number with a limit, such as `recall >= 0.8` or `gain.low > 0`.

    Attributes:
        name: Of the number.
        end: What is compared: 0 the mean, 1 and 2 the lower and the upper end of the interval.
        relation: A key of `RELATIONS`.
        limit: The limit.
    """

    name: str
    end: int
    relation: str
    limit: float

    @classmethod
    def read(cls, text: str) -> Bound:
        """A bound from its text.

        Raises:
            HeadwiseError: The text is none.
        """
        found = _BOUND.fullmatch(text)
        if found is None:
            raise HeadwiseError(f"{text!r} is no bound; write one like 'recall >= 0.8' or 'gain.low > 0'")
        return cls(found[1], _ENDS[found[2]], found[3], float(found[4]))

    def met(self, numbers: Mapping[str, Number]) -> bool:
        """Whether the number keeps the bound; NaN keeps none.

        Raises:
            HeadwiseError: The number was not measured.
        """
        if self.name not in numbers:
            raise HeadwiseError(f"the number {self.name} of a bound was not measured; measured were {', '.join(sorted(numbers))}")
        number = numbers[self.name]
        if not isinstance(number, tuple | list):
            number = (number, number, number)
        value = math.nan if number[self.end] is None else float(number[self.end])
        return RELATIONS[self.relation](value, self.limit)


@dataclass(frozen=True)
class Claim:
    """One claim, registered before its number.

    The gate says what the unablated model must do, so that the claim can be tested at all; the rule says when it holds. Both are lists of
    bounds over measured numbers (see `Bound`), all of which must be met.

    Attributes:
        key: Family and name, such as `rank.selected_above_all.hotpotqa`; p-values are corrected inside a family.
        card: Method card, a key of `CARDS`.
        place: Number of the claim on the card, or where else it comes from.
        sentence: What is claimed, in our words.
        metric: What the numbers of gate and rule are, with units.
        rule: Bounds; the first one's number is the effect that is shown, unless `effect` names another.
        gate: Bounds; empty: nothing is needed.
        tested: Whether the corrected p-value must be at most `LEVEL`, too.
        effect: Name of the number that is shown.
        control: Name of the number that is shown beside it, such as the same quantity for random heads or another method; empty: none.
        paper: The paper's number, as text.
        data: Data, splits and sizes.
        controls: What stands beside the chosen heads.
        tries: What was tried before; empty: this is the first try.
    """

    key: str
    card: str
    place: str
    sentence: str
    metric: str
    rule: tuple[str, ...]
    gate: tuple[str, ...] = ()
    tested: bool = False
    effect: str = ""
    control: str = ""
    paper: str = ""
    data: str = ""
    controls: str = ""
    tries: str = ""

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise HeadwiseError(f"the key of a claim is family.name in small letters; got {self.key!r}")
        if self.card not in CARDS:
            raise HeadwiseError(f"unknown card {self.card!r} of the claim {self.key}; use {', '.join(CARDS)}")
        if not self.rule:
            raise HeadwiseError(f"the claim {self.key} has no rule")
        for text in (*self.gate, *self.rule):
            Bound.read(text)
        if not self.effect:
            object.__setattr__(self, "effect", Bound.read(self.rule[0]).name)

    @property
    def family(self) -> str:
        """The part of the key before the first dot."""
        return self.key.split(".")[0]

    @property
    def whole_rule(self) -> tuple[str, ...]:
        """The bounds of the rule, and where it is tested the one on p."""
        return (*self.rule, *([P_BOUND] if self.tested else []))

    @property
    def needed(self) -> set[str]:
        """Names of the numbers that gate, rule and display need."""
        named = {Bound.read(text).name for text in (*self.gate, *self.rule)}
        return named | {self.effect} | ({self.control} if self.control else set())

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Finding:
    """What was measured for one claim.

    Attributes:
        numbers: Name -> number; those that the claim needs and any others.
        p: Raw p-value of the claim's test, in (0, 1].
        note: A remark for readers.
        missing: Why nothing was measured; empty: it was.
    """

    numbers: Mapping[str, Number]
    p: float | None = None
    note: str = ""
    missing: str = ""

    @classmethod
    def none(cls, why: str) -> Finding:
        """Nothing was measured, and why."""
        return cls({}, missing=why)

    def check(self, claim: Claim) -> None:
        """Refuse a measurement that the claim cannot be judged by.

        Raises:
            HeadwiseError: A number or the p-value is missing, or is none.
        """
        for name, number in self.numbers.items():
            if not all(map(_is_number, number if isinstance(number, tuple | list) and len(number) == 3 else [number])):
                raise HeadwiseError(f"the measurement of {claim.key} gave a {name} that is no number, nor one with the two ends of its interval")
        if self.p is not None and not (_is_number(self.p) and 0 <= self.p <= 1):
            raise HeadwiseError(f"the measurement of {claim.key} gave a p-value that is none: {self.p}")
        if self.missing:
            return
        absent = claim.needed - self.numbers.keys()
        if absent:
            raise HeadwiseError(f"the measurement of {claim.key} gave no {', '.join(sorted(absent))}")
        if claim.tested and self.p is None:
            raise HeadwiseError(f"the measurement of {claim.key} gave no p-value")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "numbers": {name: list(value) if isinstance(value, tuple | list) else value for name, value in self.numbers.items()},
            **({} if self.p is None else {"p": self.p}),
            **({"note": self.note} if self.note else {}),
            **({"missing": self.missing} if self.missing else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        """The finding of `to_json`; numbers that are null or infinite are NaN.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: The data is none.
        """
        def one(value: Any) -> float:
            if isinstance(value, str | bytes):
                raise ValueError(f"{shorten(repr(value))} is no number")
            found = math.nan if value is None else float(value)
            return found if math.isfinite(found) else math.nan

        def number(value: Any) -> Number:
            if isinstance(value, list):
                mean, low, high = map(one, value)
                return (mean, low, high)
            return one(value)

        numbers = {str(name): number(value) for name, value in data["numbers"].items()}
        p = data.get("p")
        return cls(numbers, None if p is None else one(p), str(data.get("note", "")), str(data.get("missing", "")))


@dataclass(frozen=True)
class Verdict:
    """A judged claim.

    Attributes:
        verdict: One of `VERDICTS`.
        why: Why it cannot be tested; empty: it could be.
        p_corrected: Over the family; None: no test, or not testable.
        missed: Of a claim that is not held, the bounds of its whole rule that were missed.
    """

    verdict: str
    why: str = ""
    p_corrected: float | None = None
    missed: tuple[str, ...] = ()


def judge(claims: Mapping[str, Claim], findings: Mapping[str, Finding]) -> dict[str, Verdict]:
    """Verdicts of the findings of one model.

    A claim is not testable if nothing was measured or a bound of its gate is missed. Otherwise it held if all bounds of its rule are met and,
    for a tested one, its p-value is at most `LEVEL` after the correction of Benjamini and Hochberg over the testable claims of its family.

    Args:
        claims: Key -> claim.
        findings: Key -> finding, of all or some of the claims.

    Returns:
        Key -> verdict, in the order of the findings.

    Raises:
        HeadwiseError: A finding of a claim that is not there, or one that lacks a number.
    """
    unknown = findings.keys() - claims.keys()
    if unknown:
        raise HeadwiseError(f"no such claim: {', '.join(sorted(unknown))}")
    missed = {key: _gate(claims[key], one) for key, one in findings.items()}
    corrected = _corrected(claims, {key: one for key, one in findings.items() if not missed[key]})
    out = {}
    for key, one in findings.items():
        claim = claims[key]
        if missed[key]:
            out[key] = Verdict(NOT_TESTABLE, missed[key])
            continue
        broken = [text for text in claim.rule if not Bound.read(text).met(one.numbers)]
        p = corrected.get(key)
        if claim.tested and (p is None or p > LEVEL):
            broken.append(P_BOUND)
        out[key] = Verdict(NOT_HELD if broken else HELD, p_corrected=p, missed=tuple(broken))
    return out


def _is_number(value: object) -> bool:
    """Whether it is a real number; NaN is one, too."""
    return isinstance(value, int | float | np.integer | np.floating | np.bool_)


def _gate(claim: Claim, finding: Finding) -> str:
    """Why the claim cannot be tested; empty if it can."""
    finding.check(claim)
    if finding.missing:
        return finding.missing
    missed = [text for text in claim.gate if not Bound.read(text).met(finding.numbers)]
    return f"gate missed: {'; '.join(_with_value(text, finding.numbers) for text in missed)}" if missed else ""


def _with_value(text: str, numbers: Mapping[str, Number]) -> str:
    bound = Bound.read(text)
    number = numbers[bound.name]
    return f"{text} ({number[bound.end] if isinstance(number, tuple) else number:.3g})"


def _corrected(claims: Mapping[str, Claim], findings: Mapping[str, Finding]) -> dict[str, float]:
    """Key -> corrected p of the tested claims, family by family."""
    from headwise.stats.paired import benjamini_hochberg

    families: dict[str, dict[str, float]] = {}
    for key, one in findings.items():
        if claims[key].tested and one.p is not None:
            families.setdefault(claims[key].family, {})[key] = one.p
    out: dict[str, float] = {}
    for raw in families.values():
        out |= dict(zip(raw, benjamini_hochberg(list(raw.values())).tolist(), strict=True))  # type: ignore[arg-type]
    return out
