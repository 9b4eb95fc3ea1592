"""The ledger: all experiments, of headwise and of other installed packages (entry points `headwise.claims`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points

from headwise.claims.claim import CARDS, DECIDING, Claim
from headwise.claims.experiment import COSTS, Experiment
from headwise.heads.errors import HeadwiseError

GROUP = "headwise.claims"


@cache
def experiments() -> tuple[Experiment, ...]:
    """All experiments, those of headwise first.

    Raises:
        HeadwiseError: Two of them have one name, or share a claim.
    """
    entries = sorted(entry_points(group=GROUP), key=lambda one: (not one.value.startswith("headwise."), one.name))
    found = tuple(one for entry in entries for one in entry.load())
    for what, names in (("experiments", [one.name for one in found]), ("claims", [claim.key for one in found for claim in one.claims])):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise HeadwiseError(f"two {what} are called {', '.join(sorted(twice))}")
    return found


def claims() -> dict[str, Claim]:
    """Key -> claim, in the order of the ledger."""
    return {claim.key: claim for one in experiments() for claim in one.claims}


def experiment_of(key: str) -> Experiment:
    """The experiment that answers a claim.

    Raises:
        HeadwiseError: No such claim, with the nearest keys.
    """
    found = next((one for one in experiments() if any(claim.key == key for claim in one.claims)), None)
    if found is None:
        raise HeadwiseError(f"unknown claim {key!r}; use {_near(key, list(claims()))} (headwise claims list shows all)")
    return found


def chosen(cards: Sequence[str] = (), keys: Sequence[str] = (), names: Sequence[str] = ()) -> list[Experiment]:
    """The experiments that answer claims of some cards, some claims, or have some names; without any of these all.

    Raises:
        HeadwiseError: An unknown card, claim or experiment.
    """
    for card in cards:
        check_card(card)
    known = {one.name for one in experiments()}
    for name in names:
        if name not in known:
            raise HeadwiseError(f"unknown experiment {name!r}; use {_near(name, sorted(known))}")
    wanted = {experiment_of(key).name for key in keys} | set(names)
    if not (cards or wanted):
        return list(experiments())
    return [one for one in experiments() if one.name in wanted or any(claim.card in cards for claim in one.claims)]


def check_card(card: str) -> None:
    """Raise `HeadwiseError` for an unknown card."""
    if card not in CARDS:
        raise HeadwiseError(f"unknown card {card!r}; use {', '.join(CARDS)}")


@cache
def digest(one: Experiment) -> str:
    """Names the version of what decides an experiment's verdicts (see `claim.DECIDING`).

    A result of another version was judged by other rules, or measured another thing. A sentence that is only worded better changes nothing.
    """
    text = json.dumps([[claim.to_json()[name] for name in DECIDING] for claim in one.claims])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cost(one: Experiment, kind: str, quick: bool = False) -> str:
    """Class of cost, a key of `COSTS`; empty: the experiment is not for this kind of model."""
    minutes = one.minutes.of(kind, quick)
    return "" if minutes is None else next(name for name, most in COSTS.items() if minutes <= most)


def _near(name: str, known: list[str]) -> str:
    import difflib

    return ", ".join(difflib.get_close_matches(name, known, 3, 0.4) or known[:5])
