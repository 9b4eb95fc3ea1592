"""benchmarks/sparse_claims.py: verdicts on made-up results."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FULL = 1000.0


@pytest.fixture
def judge(monkeypatch):
    """judge(cells, *speeds) -> claim, without its family -> its row."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sparse_claims

    def run(cells, *speeds):
        rows = sparse_claims.rows_of(sparse_claims.Judge({"cells": cells}, speeds).all())
        return {row["key"].removeprefix("specontext."): row for row in rows}

    return run


def cells(task, chooser, budget, numbers, **constant):
    """One cell per context. numbers: name -> one value per context."""
    spent = {"bytes_read": FULL / 4, "bytes_chosen_by": 0.0, "bytes_full": FULL}
    about = {"task": task, "length": 2048, "chooser": chooser, "budget": budget}
    count = len(next(iter(numbers.values())))
    return [about | {"context": i} | spent | constant | {name: each[i] for name, each in numbers.items()} for i in range(count)]


def needles(count, found, full=1.0):
    return [
        *cells("needle", "full", None, {"score": [full] * count}),
        *cells("needle", "streaming", 128, {"score": [0.0] * count}),
        *cells("needle", "retrieval_heads", 128, {"score": found}),
    ]


def text(chooser, budget, mass, overlap=0.5, loss=2.0, agreement=1.0, **constant):
    numbers = {"mass": mass, "mass_heads": mass, "overlap": [overlap] * len(mass), "agreement": [agreement] * len(mass)}
    return cells("text", chooser, budget, numbers, loss=loss, full_loss=2.0, overlap_by_chance=0.25, **constant)


def test_one_held_one_not_held_one_not_testable(judge):
    found = judge(
        [
            *needles(8, [1.0] * 8),
            *cells("text", "full", None, {"loss": [2.0] * 3}),
            *text("streaming", 512, [0.5] * 3, overlap=1.0),
            *text("retrieval_heads", 512, [0.6] * 3, overlap=0.7),
            *cells("json_extraction", "full", None, {"score": [0.1, 0.2]}),
        ]
    )
    held, lost, untested = found["mean_misses_needles"], found["overlap"], found["extraction"]
    assert (held["verdict"], held["p"], held["difference"]) == ("held", 2 / 2**8, [1.0, 1.0, 1.0])
    assert "streaming 0.00" in held["control"]
    assert (lost["verdict"], lost["p"]) == ("not held", None)
    assert "retrieval_heads 0.700" in lost["found"]
    assert "streaming 1.00" in lost["control"]  # above the bound, but a control
    assert untested["verdict"] == "not testable on this model"
    assert "0.150" in untested["full"]
    assert found["speed_32k"]["verdict"] == found["retrieval_mass"]["verdict"] == "not measured"


def test_too_few_contexts_are_no_verdict_unless_the_mean_speaks_against_it(judge):
    few = judge(needles(4, [1.0] * 4))["mean_misses_needles"]
    assert (few["verdict"], few["p"]) == ("not measured", 0.125)
    assert "six or more" in few["why"]
    assert judge(needles(4, [0.0] * 4))["mean_misses_needles"]["verdict"] == "not held"
    assert judge(needles(4, [1.0] * 4, full=0.2))["mean_misses_needles"]["verdict"] == "not testable on this model"


def test_p_values_are_corrected_over_the_family(judge):
    """Six contexts reach 0.031, which two such tests keep and one bad neighbour pushes over the level."""
    whole = cells("text", "full", None, {"loss": [2.0] * 6})
    bad = judge(
        [*needles(6, [1.0] * 6), *whole, *text("retrieval_heads", 128, [0.1, 0.9] * 3), *text("refresh_every", 128, [0.5] * 6)]
    )
    assert (bad["mean_misses_needles"]["p_corrected"], bad["mean_misses_needles"]["verdict"]) == (0.0625, "not held")
    good = judge(
        [*needles(6, [1.0] * 6), *whole, *text("retrieval_heads", 128, [0.9] * 6), *text("refresh_every", 128, [0.5] * 6)]
    )
    assert (good["mean_misses_needles"]["verdict"], good["retrieval_mass"]["verdict"]) == ("held", "held")
    assert good["retrieval_mass"]["p_corrected"] == pytest.approx(2 / 2**6, abs=1e-5)


@pytest.mark.parametrize(("shared", "verdict"), [((0.5, 0.8), "held"), ((0.7, 0.72), "not held"), ((0.85, 0.8), "not held")])
def test_every_shared_chooser_must_keep_less_than_a_choice_per_layer(judge, shared, verdict):
    made = cells("text", "full", None, {"loss": [2.0] * 2})
    for name, masses in (
        ("oracle", (0.8, 0.9)),
        ("retrieval_heads", (0.3, 0.7)),
        ("refresh_every", shared),
        ("pages", (0.79, 0.95)),
    ):
        for budget, mass in zip((128, 512), masses, strict=True):
            made += text(name, budget, [mass, mass])
    assert judge(made)["per_layer_above_shared"]["verdict"] == verdict  # pages choose per layer, and do not count


@pytest.mark.parametrize(
    ("loss", "agreement", "chosen_by", "verdict"),
    [
        (2.005, 0.96, 0.0, "held"),
        (2.02, 0.96, 0.0, "not held"),
        (2.005, 0.94, 0.0, "not held"),
        (2.005, 0.96, 0.8 * FULL, "not measured"),
    ],
)
def test_text_as_full_asks_for_both_bounds_of_a_chooser_that_saves(judge, loss, agreement, chosen_by, verdict):
    made = cells("text", "full", None, {"loss": [2.0] * 2})
    made += text("previous_query", 512, [0.9] * 2, loss=loss, agreement=agreement, bytes_chosen_by=chosen_by)
    made += text("oracle", 512, [0.9] * 2)
    assert judge(made)["text_as_full"]["verdict"] == verdict


def speed(**found):
    return {
        "model": "random",
        "length": 32768,
        "short": 8192,
        "budget": 2048,
        "best": "pages",
        "bound_vs_full": 9.0,
        "bound_vs_static": 4.0,
    } | found


def test_speed_is_read_off(judge):
    fast = speed(vs_full_per_token=3.2, vs_static_per_token=2.0)
    flat = speed(flat={"static": 3.0, "pages": 1.2, "retrieval_heads": 1.0})
    own = speed(
        model="smollm2", length=7900, budget=512, choosers={"pages": {"share_of_bound": 0.7}, "random": {"share_of_bound": 1.0}}
    )
    moved = speed(
        model="smollm2", length=2048, budget=512, moved={"pages": {"moved_share": 0.2}, "streaming": {"moved_share": 0.01}}
    )
    found = judge([], fast, flat, own, moved)
    said = [found[name]["verdict"] for name in ("speed_32k", "speed_flat", "speed_smollm2", "bytes_moved")]
    assert said == ["held", "not held", "not held", "held"]
    assert judge([], speed(vs_full_per_token=5.0, length=8192))["speed_32k"]["verdict"] == "not measured"


def test_the_command_prints_a_table(judge, tmp_path, monkeypatch, capsys):
    import sparse_claims

    path = tmp_path / "r.json"
    path.write_text(json.dumps({"model": "m", "steps": 64, "contexts": 8, "cells": needles(8, [1.0] * 8)}))
    monkeypatch.setattr("sys.argv", ["sparse_claims.py", str(path)])
    sparse_claims.main()
    said = capsys.readouterr().out
    assert "contexts 8, registered 4" in said
    assert "0.0078 (0.0078) | **held** |" in said
    path.write_text(json.dumps({"model": "m", "rows": []}))
    with pytest.raises(SystemExit):
        sparse_claims.main()
    assert "has no cells" in capsys.readouterr().err
