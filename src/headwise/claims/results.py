"""Result files of the ledger: one per model and experiment. Judged when they are read, by the rules of the ledger that is installed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from headwise.claims import ledger
from headwise.claims.claim import CARDS, P_BOUND, Bound, Claim, Finding, Number, Verdict, judge
from headwise.claims.experiment import Experiment
from headwise.heads.errors import HeadwiseError
from headwise.heads.files import read_json
from headwise.heads.plain import plain

KIND, SCHEMA = "headwise_claims", 1


@dataclass(frozen=True)
class Result:
    """One result file.

    Attributes:
        experiment: Its name.
        digest: Version of the declarations that it was measured with.
        model: Name, kind, shape, weights.
        quick: Whether the small version was measured.
        seed: Of the run.
        findings: Key -> finding.
        details: Tables behind them.
        versions: Library -> version.
    """

    experiment: str
    digest: str
    model: Mapping[str, Any]
    quick: bool
    seed: int
    findings: Mapping[str, Finding]
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            KIND: SCHEMA,
            "experiment": self.experiment,
            "ledger": self.digest,
            "model": dict(self.model),
            "quick": self.quick,
            "seed": self.seed,
            "findings": {key: one.to_json() for key, one in self.findings.items()},
            "details": dict(self.details),
            "versions": dict(self.versions),
        }

    @property
    def known(self) -> Experiment | None:
        """Its experiment in the ledger that is installed, if it is there."""
        return next((one for one in ledger.experiments() if one.name == self.experiment), None)

    @property
    def old(self) -> bool:
        """Whether it was measured with other declarations than those of the ledger that is installed."""
        known = self.known
        return known is None or ledger.digest(known) != self.digest


def read_result(path: Path) -> Result:
    """A result file.

    Raises:
        HeadwiseError: The file is none.
    """
    data = read_json(path, "a result of headwise claims")
    if isinstance(data, dict) and data.get(KIND, SCHEMA) != SCHEMA:
        raise HeadwiseError(f"{path} was written by another version of headwise: its format is {data[KIND]}, and this one reads {SCHEMA}")
    if not isinstance(data, dict) or data.get(KIND) != SCHEMA:
        raise HeadwiseError(f"{path} is no result of headwise claims; give a folder that headwise claims run wrote")
    try:
        found = _from_json(data)
        if not found.old:
            _check(found)
        return found
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise HeadwiseError(f"{path} is broken: {error!r}; delete it and run headwise claims run again") from error


def _from_json(data: Mapping[str, Any]) -> Result:
    """Inverse of `Result.to_json`."""
    findings = {str(key): Finding.from_json(one) for key, one in data["findings"].items()}
    model = dict(data["model"])
    if not isinstance(model["name"], str):
        raise TypeError("the model's name is no text")
    return Result(
        str(data["experiment"]), str(data["ledger"]), model, bool(data["quick"]), int(data["seed"]), findings,
        dict(data["details"]), dict(data["versions"]),
    )  # fmt: skip


def _check(result: Result) -> None:
    """Raise `HeadwiseError` or `KeyError` unless the result answers exactly the claims of its experiment."""
    claims = result.known.claims if result.known else ()
    for claim in claims:
        result.findings[claim.key].check(claim)
    if len(result.findings) > len(claims):
        raise HeadwiseError("it has findings of claims that the experiment does not answer")


def as_read(result: Result) -> Result:
    """What is read from the file of a result: judged before it is written, it would give other verdicts where a number is infinite."""
    return _from_json(plain(result.to_json()))


def read_results(folders: Iterable[Path]) -> list[Result]:
    """All results in and below some folders, sorted by model and experiment.

    Raises:
        HeadwiseError: A folder that is not there or holds no result, or two results of one model and experiment.
    """
    found: dict[tuple[str, str], tuple[Path, Result]] = {}
    for folder in folders:
        if not folder.exists():
            raise HeadwiseError(f"there is no folder {folder}; headwise claims run -o {folder} would make it")
        paths = sorted(folder.glob("*/*.json")) + sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
        if not paths:
            raise HeadwiseError(f"{folder} holds no result of headwise claims")
        for path in paths:
            one = read_result(path)
            key = (str(one.model["name"]), one.experiment)
            if key in found:
                raise HeadwiseError(f"{found[key][0]} and {path} are both about {key[1]} of {key[0]}; give one of them")
            found[key] = (path, one)
    return [found[key][1] for key in sorted(found)]


def shipped() -> Path:
    """Folder of the results that come with headwise."""
    return Path(str(files("headwise.claims") / "measured"))


def shipped_results() -> list[Result]:
    """The results that come with headwise."""
    return read_results([shipped()]) if any(shipped().glob("*/*.json")) else []


@dataclass(frozen=True)
class Row:
    """One claim on one model.

    Attributes:
        claim: What is claimed.
        experiment: What measures it.
        model: Name of the model.
        finding: What was measured; None: nothing yet.
        verdict: By the rule of `judge`; None: nothing yet, or measured by another version of the ledger (`old`).
        quick: Whether the small version was measured.
        old: Whether the result belongs to another version of the ledger.
    """

    claim: Claim
    experiment: str
    model: str
    finding: Finding | None = None
    verdict: Verdict | None = None
    quick: bool = False
    old: bool = False

    @property
    def told(self) -> str:
        """The verdict as a word; `old` or empty where there is none."""
        return self.verdict.verdict if self.verdict else "old" if self.old else ""

    @cached_property
    def page(self) -> str:
        """Page of the method, below docs/."""
        return CARDS[self.claim.card][1]

    def number(self, name: str) -> Number | None:
        """A measured number."""
        return None if self.finding is None or not name else self.finding.numbers.get(name)

    def to_json(self) -> dict[str, Any]:
        """Flat plain data; `decided_by`: the number that the first missed bound of the rule, else its first one, compares with its `limit`."""
        effect, low, high = _ends(self.number(self.claim.effect))
        control, control_low, control_high = _ends(self.number(self.claim.control))
        missed = self.verdict.missed if self.verdict else ()
        first = Bound.read(next((bound for bound in missed if bound != P_BOUND), self.claim.rule[0]))
        decided, decided_low, decided_high = _ends(self.number(first.name))
        return {
            "model": self.model, "claim": self.claim.key, "card": self.claim.card, "place": self.claim.place, "sentence": self.claim.sentence,
            "verdict": self.told, "why": self.verdict.why if self.verdict else "", "metric": self.claim.metric,
            "effect_name": self.claim.effect, "effect": effect, "low": low, "high": high,
            "missed": "; ".join(missed),
            "control_name": self.claim.control, "control": control, "control_low": control_low, "control_high": control_high,
            "decided_by": first.name, "decided": decided, "decided_low": decided_low, "decided_high": decided_high, "limit": first.limit,
            "p": None if self.finding is None else self.finding.p,
            "p_corrected": self.verdict.p_corrected if self.verdict else None,
            "paper": self.claim.paper, "rule": "; ".join(self.claim.whole_rule), "gate": "; ".join(self.claim.gate), "tested": self.claim.tested,
            "data": self.claim.data, "controls": self.claim.controls, "tries": self.claim.tries,
            "note": self.finding.note if self.finding else "",
            "numbers": {} if self.finding is None else {name: _ends(number) for name, number in self.finding.numbers.items()},
            "experiment": self.experiment, "page": self.page, "quick": self.quick, "old": self.old,
        }  # fmt: skip


def _ends(number: Number | None) -> tuple[float | None, float | None, float | None]:
    if number is None:
        return None, None, None
    values = number if isinstance(number, tuple | list) else (number, math.nan, math.nan)
    mean, low, high = (None if one is None or math.isnan(one) else float(one) for one in values)
    return mean, low, high


def rows(results: Sequence[Result], cards: Sequence[str] = (), keys: Sequence[str] = ()) -> list[Row]:
    """Every claim of the ledger on every model that there are results of, in the order of the ledger; without any result on no model ("").

    Claims of experiments that are not for a model (the micro-world's on a real one) have no row of it.
    Families are corrected over all claims of a model that could be tested; cards and keys choose what is shown, not what is corrected.

    Args:
        results: Of any models.
        cards: Claims of these cards; empty: all.
        keys: These claims; empty: all.
    """
    every = ledger.claims()
    out: dict[str, list[Row]] = {key: [] for key in every}
    for model in dict.fromkeys(str(one.model["name"]) for one in results) or ("",):
        mine = [one for one in results if one.model["name"] == model]
        fresh = {key: finding for one in mine if not one.old for key, finding in one.findings.items()}
        judged = judge(every, fresh)
        by_experiment = {one.experiment: one for one in mine}
        kind = str(mine[0].model["kind"]) if mine else ""
        for experiment in ledger.experiments():
            found = by_experiment.get(experiment.name)
            if found is None and mine and experiment.minutes.of(kind, False) is None:
                continue
            for claim in experiment.claims:
                if found is None:
                    row = Row(claim, experiment.name, model)
                elif found.old:
                    row = Row(claim, experiment.name, model, None, None, found.quick, True)
                else:
                    row = Row(claim, experiment.name, model, found.findings[claim.key], judged[claim.key], found.quick)
                out[claim.key].append(row)
    return [row for key, each in out.items() for row in each if (not cards or row.claim.card in cards) and (not keys or key in keys)]
