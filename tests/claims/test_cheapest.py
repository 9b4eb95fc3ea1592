"""The cheapest claims of every card, measured on the bundled lab model: their verdicts are those that were stored.

After a change that is meant to move a verdict: `python -m tests.claims.test_cheapest` measures anew and stores.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

import headwise as hw
from headwise.claims import ledger
from headwise.claims.claim import CARDS, HELD, NOT_HELD
from headwise.claims.results import read_results, rows
from headwise.claims.run import plan, run

MODEL, LEAST, LIMIT = "lab-6m", 3, 0.3  # claims per card; minutes of an experiment
STORED = Path(__file__).parent / "cheapest.json"
PAPERS = [card for card in CARDS if card != "transfer"]


def fitting(card):
    """Experiments that answer claims of a card on a lab model in seconds and without data, the cheapest first."""
    found = [one for one in ledger.chosen([card]) if not one.data and (one.minutes.of("lab", True) or 9) <= LIMIT]
    return sorted(found, key=lambda one: (one.minutes.of("lab", True), one.name))


def cheapest(card, stored):
    """The cheapest experiments with at least three claims of a card that could be tested."""
    found, count = [], 0
    for one in fitting(card):
        testable = sum(claim.card == card and stored.get(claim.key) in (HELD, NOT_HELD) for claim in one.claims)
        if count < LEAST and testable:
            found.append(one)
            count += testable
    return found, count


def measured(experiments, folder):
    """Claim -> verdict."""
    run(plan([MODEL], experiments, folder, quick=True), folder, load=hw.load)
    return {row.claim.key: row.told for row in rows(read_results([folder])) if row.told}


@pytest.mark.slow
@pytest.mark.parametrize("card", PAPERS)
def test_the_cheapest_claims_have_the_stored_verdicts(card, tmp_path):
    stored = json.loads(STORED.read_text())
    chosen, count = cheapest(card, stored)
    assert count >= LEAST, f"{card} has {count} testable claims that cost at most {LIMIT} minutes on a lab model and need no data"
    found = measured(chosen, tmp_path)
    assert found == {key: stored[key] for key in found}


def store():
    """Measure all of them and write the verdicts."""
    chosen = {one.name: one for card in PAPERS for one in fitting(card)}
    with tempfile.TemporaryDirectory() as folder:
        found = measured(list(chosen.values()), Path(folder))
    STORED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(store())
