"""The ledger: declarations, the rule of verdicts, running and reading."""

import csv
import io
import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import headwise as hw
from headwise.claims import ledger
from headwise.claims.claim import CARDS, HELD, NOT_HELD, NOT_TESTABLE, Bound, Claim, Finding, judge
from headwise.claims.experiment import Bench, Measured
from headwise.claims.export import to_csv, to_json
from headwise.claims.results import read_result, read_results, rows
from headwise.claims.run import SHARE, plan, run, size_of
from headwise.heads.errors import HeadwiseError
from headwise.models.registry import SMOLLM2
from headwise.prompts.needles import bundled_needles
from headwise.stats.paired import benjamini_hochberg
from tests.claims import made_up
from tests.claims.made_up import ABOVE, EXPERIMENTS, TESTED


@pytest.fixture
def small(monkeypatch):
    made_up.install(monkeypatch)


def finished(folder, **options):
    planned = plan(["lab-6m"], EXPERIMENTS, folder, **options)
    return run(planned, folder, load=hw.load)


@pytest.mark.parametrize(
    ("text", "numbers", "met"),
    [
        ("share >= 0.5", {"share": 0.5}, True),
        ("share > 0.5", {"share": 0.5}, False),
        ("share.low > 0", {"share": (0.5, -0.1, 0.9)}, False),
        ("share.high < 1", {"share": (0.5, -0.1, 0.9)}, True),
        ("share.low <= 0.5", {"share": 0.5}, True),
        ("error <= 1e-5", {"error": 9e-6}, True),
        ("same == 1", {"same": 1.0}, True),
        ("share >= -1", {"share": math.nan}, False),
        ("share < 1", {"share": math.nan}, False),
    ],
)
def test_a_bound_compares_one_end_of_a_number(text, numbers, met):
    assert Bound.read(text).met(numbers) is met


@pytest.mark.parametrize("text", ["share", "share > ", "share => 1", "share.middle > 1", "Share > 1", "0.5 < share", "share > x"])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(HeadwiseError, match="is no bound"):
        Claim("a.b", "qrhead", "1", "s", "m", rule=(text,))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"key": "nofamily"}, "family.name"), ({"card": "unknown"}, "unknown card"), ({"rule": ()}, "has no rule")],
)
def test_wrong_declarations_are_refused(wrong, message):
    with pytest.raises(HeadwiseError, match=message):
        Claim(**({"key": "a.b", "card": "qrhead", "place": "1", "sentence": "s", "metric": "m", "rule": ("x > 0",)} | wrong))


def test_the_three_verdicts():
    good = {"share": (0.7, 0.6, 0.8), "gain": (0.2, 0.1, 0.3), "recall": 0.9, "random": 0.4}
    claims = {"made.above": ABOVE}

    def told(**change):
        return judge(claims, {"made.above": Finding(good | change)})["made.above"]

    assert told().verdict == HELD
    assert told(gain=(0.2, 0.0, 0.3)).verdict == NOT_HELD
    assert told(gain=(0.2, 0.0, 0.3)).missed == ("gain.low > 0",)
    assert told(recall=0.79).verdict == NOT_TESTABLE
    assert "recall >= 0.8 (0.79)" in told(recall=0.79).why
    assert judge(claims, {"made.above": Finding.none("no data")})["made.above"].why == "no data"


def test_p_values_are_corrected_over_what_can_be_tested_in_a_family():
    def claim(key, gate=()):
        return Claim(key, "qrhead", "1", "s", "m", rule=("x > 0",), gate=gate, tested=True)

    claims = {c.key: c for c in (claim("a.one"), claim("a.two"), claim("a.three", ("g > 0",)), claim("b.one"))}
    findings = {
        "a.one": Finding({"x": 1.0}, p=0.03), "a.two": Finding({"x": 1.0}, p=0.9), "a.three": Finding({"x": 1.0, "g": 0.0}, p=0.001),
        "b.one": Finding({"x": 1.0}, p=0.03),
    }  # fmt: skip
    found = judge(claims, findings)
    assert found["a.one"].p_corrected == pytest.approx(benjamini_hochberg(np.array([0.03, 0.9]))[0])
    assert [found[key].verdict for key in claims] == [NOT_HELD, NOT_HELD, NOT_TESTABLE, HELD]
    assert found["a.three"].p_corrected is None


@given(st.dictionaries(st.sampled_from(["share", "gain", "recall", "random"]), st.floats(allow_nan=False, allow_infinity=False), min_size=4))
def test_a_verdict_follows_from_the_bounds_alone(numbers):
    found = judge({"made.above": ABOVE}, {"made.above": Finding(numbers)})["made.above"].verdict
    if numbers["recall"] < 0.8:
        assert found == NOT_TESTABLE
    else:
        assert found == (HELD if numbers["share"] >= 0.5 and numbers["gain"] > 0 else NOT_HELD)


def test_a_measurement_must_give_what_its_claims_need():
    with pytest.raises(HeadwiseError, match=r"gave no gain, random"):
        Finding({"share": 1.0, "recall": 1.0}).check(ABOVE)
    with pytest.raises(HeadwiseError, match="no p-value"):
        Finding({"difference": 1.0}).check(TESTED)
    Finding.none("no data").check(ABOVE)


def test_an_experiment_answers_exactly_its_claims(tmp_path, monkeypatch):
    one = EXPERIMENTS[1]
    bench = Bench("lab-6m", "lab", lambda: hw.load("lab-6m"), tmp_path)
    monkeypatch.setattr(made_up, "measured_heads", lambda bench: Measured({}))
    with pytest.raises(HeadwiseError, match=r"missing: other\.heads"):
        one.run(bench)


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_the_model_cannot_be_tested(small, tmp_path, monkeypatch):
    def long(bench):
        return hw.find(bench.model, hw.Copy(lengths=[100_000], depths=1))

    monkeypatch.setattr(made_up, "measured_heads", long)
    found = EXPERIMENTS[1].run(Bench("lab-6m", "lab", lambda: hw.load("lab-6m"), tmp_path)).findings["other.heads"]
    assert "the model has 1280 positions" in found.missing


def test_results_are_written_read_and_judged(small, tmp_path):
    written = finished(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == ["lab-6m/heads.json", "lab-6m/made.json"]
    results = read_results([tmp_path])
    shown = rows(results)
    assert [(row.claim.key, row.told) for row in shown] == [
        ("made.above", HELD), ("made.tested", NOT_HELD), ("made.below", HELD), ("other.heads", HELD),
    ]  # fmt: skip
    assert Counter(row.told for row in shown) == {HELD: 3, NOT_HELD: 1}
    assert read_result(written[1]).to_json() == json.loads(written[1].read_text())
    assert [row.claim.key for row in rows(results, cards=["cafe"])] == ["other.heads"]  # the other one is not for lab models
    assert not (tmp_path / "lab-6m" / "unfinished").exists()


def test_what_is_done_is_not_run_again(small, tmp_path):
    finished(tmp_path)
    planned = plan(["lab-6m"], EXPERIMENTS, tmp_path)
    assert (planned.steps, len(planned.done)) == ((), 2)
    assert planned.without == {}
    assert plan(["smollm2"], EXPERIMENTS, tmp_path).without == {"gpu": "big-set"}
    for change in ({"quick": True}, {"seed": 1}):
        with pytest.raises(HeadwiseError, match="another --quick or --seed"):
            plan(["lab-6m"], EXPERIMENTS, tmp_path, **change)
        assert len(plan(["lab-6m"], EXPERIMENTS, tmp_path, overwrite=True, **change).steps) == 2


def test_an_interrupted_run_goes_on_with_the_same_bytes(small, tmp_path, monkeypatch):
    whole = finished(tmp_path / "whole")
    monkeypatch.setattr(made_up.measured_above, "stop", True, raising=False)
    with pytest.raises(KeyboardInterrupt):
        finished(tmp_path / "killed")
    assert (tmp_path / "killed/lab-6m/unfinished/made/part").is_dir()
    finished(tmp_path / "killed")  # the cell is there, so it does not stop
    for path in whole:
        assert (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("options", [{"quick": True}, {"seed": 1}])
def test_a_killed_run_of_other_options_is_not_in_the_way(small, tmp_path, monkeypatch, options):
    whole = finished(tmp_path / "whole")
    monkeypatch.setattr(made_up.measured_above, "stop", True, raising=False)
    planned = plan(["lab-6m"], EXPERIMENTS[:1], tmp_path / "killed", **options)
    with pytest.raises(KeyboardInterrupt):
        run(planned, tmp_path / "killed", load=hw.load, seed=options.get("seed", 0))
    monkeypatch.undo()
    made_up.install(monkeypatch)
    finished(tmp_path / "killed")
    for path in whole:
        assert (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_shared_parts_of_other_options_are_apart(tmp_path):
    model = hw.load("lab-6m")
    for seed in (0, 1):
        bench = Bench("lab-6m", "lab", lambda: model, tmp_path / "work", seed=seed, shared=tmp_path / "shared")
        bench.shared_cells("part", {"a": 1}).save("one", {"value": np.zeros(1)}, [])
    assert len(list((tmp_path / "shared").iterdir())) == 2


def other_weights(name):
    model = hw.load(name)
    with torch.no_grad():
        next(model.hf.parameters()).add_(1e-3)
    return model


def test_parts_of_another_model_of_the_same_name_are_not_taken(small, tmp_path, monkeypatch):
    monkeypatch.setattr(made_up.measured_above, "stop", True, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run(plan(["lab-6m"], EXPERIMENTS[:1], tmp_path), tmp_path, load=hw.load)
    with pytest.raises(HeadwiseError, match=r"made: .*belongs to a run with other options"):
        run(plan(["lab-6m"], EXPERIMENTS[:1], tmp_path), tmp_path, load=other_weights)


def test_results_of_two_models_of_one_name_are_not_mixed(small, tmp_path):
    run(plan(["lab-6m"], EXPERIMENTS[:1], tmp_path), tmp_path, load=hw.load)
    with pytest.raises(HeadwiseError, match=r"made\.json was measured with other weights"):
        run(plan(["lab-6m"], EXPERIMENTS, tmp_path), tmp_path, load=other_weights)
    assert not (tmp_path / "lab-6m/heads.json").exists()
    run(plan(["lab-6m"], EXPERIMENTS, tmp_path, overwrite=True), tmp_path, load=other_weights)
    assert len({one.model["weights"] for one in read_results([tmp_path])}) == 1


def test_one_failure_does_not_stop_the_other_experiments(small, tmp_path, monkeypatch):
    def broken(bench):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(made_up, "measured_heads", broken)
    with pytest.raises(HeadwiseError, match=r"1 of 2 experiments failed.*lab-6m heads: ZeroDivisionError: by nothing \(see .*traceback.txt"):
        finished(tmp_path)
    assert "measured_heads" not in (tmp_path / "lab-6m/made.json").read_text()  # the other one is there
    assert "in broken" in (tmp_path / "lab-6m/unfinished/heads/traceback.txt").read_text()
    monkeypatch.undo()
    made_up.install(monkeypatch)
    assert [path.name for path in finished(tmp_path)] == ["heads.json"]
    assert not (tmp_path / "lab-6m/unfinished").exists()


def test_a_limit_of_hours_leaves_out_the_longest(small, tmp_path):
    planned = plan(["lab-6m", "smollm2"], EXPERIMENTS, tmp_path)
    assert planned.minutes() == pytest.approx(0.1 + 1 + 0.2 + 10)
    short = planned.within(1.3 / 60)
    assert [(model, one.name) for model, _, one in short.steps] == [("lab-6m", "heads"), ("lab-6m", "made"), ("smollm2", "heads")]
    assert [(model, one.name) for model, _, one in short.beyond] == [("smollm2", "made")]
    assert planned.within(1).beyond == ()


def test_rough_minutes_follow_the_size_of_the_model_and_the_jobs(small, tmp_path):
    planned = plan(["lab-6m", "smollm2"], EXPERIMENTS, tmp_path, sizes={"smollm2": 3.0})
    assert planned.minutes() == pytest.approx(0.1 + 1 + 3 * (0.2 + 10))
    assert planned.minutes(2) == pytest.approx(SHARE * planned.minutes())
    alone = replace(planned, steps=tuple((model, kind, replace(one, alone=True)) for model, kind, one in planned.steps))
    assert alone.minutes(2) == planned.minutes()
    both = planned.minutes() / 60 * 0.9
    assert planned.within(both).beyond
    assert not planned.within(both, 2).beyond


def test_the_size_of_a_model_is_known_before_it_is_loaded(tmp_path):
    assert size_of("smollm2") == size_of("lab-6m") == 1
    folder = tmp_path / "model"
    folder.mkdir()
    half = SMOLLM2.parameters // 2
    save_file({"a": torch.zeros(half - 6, dtype=torch.uint8), "b": torch.zeros(2, 3)}, folder / "model.safetensors")
    assert size_of(str(folder)) == 0.5
    save_file({"a": torch.zeros(7)}, folder / "model.safetensors")
    assert size_of(str(folder)) == 0.25
    (folder / "model.safetensors").write_bytes(b"cut")
    assert size_of(str(folder)) is None is size_of("owner/name")


@pytest.mark.parametrize("wrong", [{"heads": "many"}, {"heads": (1.0, 2.0)}, {"heads": torch.ones(())}, {"heads": np.ones(3)}])
def test_what_is_no_number_fails_alone(small, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(made_up, "measured_heads", lambda bench: Measured({"other.heads": Finding(wrong)}))
    with pytest.raises(HeadwiseError, match=r"1 of 2 experiments failed.*other\.heads gave a heads that is no number"):
        finished(tmp_path)
    assert [path.name for path in tmp_path.glob("*/*.json")] == ["made.json"]


@pytest.mark.parametrize("p", [math.nan, 2.0, "0.1"])
def test_what_is_no_p_value_fails_alone(small, tmp_path, monkeypatch, p):
    monkeypatch.setattr(made_up, "measured_heads", lambda bench: Measured({"other.heads": Finding({"heads": 1.0}, p=p)}))
    with pytest.raises(HeadwiseError, match=r"other\.heads gave a p-value that is none"):
        finished(tmp_path)
    assert len(read_results([tmp_path])) == 1


def test_details_that_cannot_be_written_fail_alone(small, tmp_path, monkeypatch):
    monkeypatch.setattr(made_up, "measured_heads", lambda bench: Measured({"other.heads": Finding({"heads": 1.0})}, {"a": object()}))
    with pytest.raises(HeadwiseError, match=r"1 of 2 experiments failed.*JSON cannot hold"):
        finished(tmp_path)


def test_an_infinite_number_is_judged_as_it_is_read(small, tmp_path, monkeypatch):
    monkeypatch.setattr(made_up, "measured_heads", lambda bench: Measured({"other.heads": Finding({"heads": math.inf})}))
    told = []
    run(plan(["lab-6m"], EXPERIMENTS[1:2], tmp_path), tmp_path, load=hw.load, tell=lambda name, key, result: told.append(rows([result])[3].told))
    assert told == [rows(read_results([tmp_path]))[3].told] == [NOT_HELD]


def test_a_model_that_cannot_be_loaded_stops_the_run(small, tmp_path):
    planned = plan(["lab-6m"], EXPERIMENTS, tmp_path)

    def missing(name):
        raise HeadwiseError("no such model")

    with pytest.raises(HeadwiseError, match=r"^no such model"):
        run(planned, tmp_path, load=missing)


@pytest.mark.slow
def test_experiments_share_the_heads_that_they_ask_for(tmp_path, monkeypatch):
    model = hw.load("lab-6m")
    needles = bundled_needles("detect")[:2]
    first, second = (Bench("lab-6m", "lab", lambda: model, tmp_path / name, shared=tmp_path / "shared") for name in ("first", "second"))
    options = hw.Copy(lengths=[128], depths=1, needles=needles)
    found = first.find(options)
    other = Bench("other", "lab", lambda: replace(model, name="other"), tmp_path / "third", shared=tmp_path / "shared")
    assert other.find(options).values.tobytes() == found.values.tobytes()  # of several models that one experiment measures

    def again_run(*_, **__):
        pytest.fail("a finished part was run again")

    monkeypatch.setattr("headwise.methods.copy.run._run_group", again_run)
    again = second.find(hw.Copy(lengths=[128], depths=1, needles=needles))
    assert again.values.tobytes() == found.values.tobytes()
    assert len(list((tmp_path / "shared").iterdir())) == 2
    assert not (tmp_path / "second").exists()
    alone = Bench("lab-6m", "lab", lambda: model, tmp_path / "alone")
    assert alone.shared_cells("part", {"a": 1}).load("none") is None


def test_results_of_another_ledger_are_marked_old_and_never_mixed(small, tmp_path, monkeypatch):
    path = finished(tmp_path)[1]
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"ledger": "0" * 16}))
    shown = rows(read_results([tmp_path]))
    assert [row.told for row in shown] == ["old", "old", "old", HELD]
    with pytest.raises(HeadwiseError, match="another version of the ledger"):
        plan(["lab-6m"], EXPERIMENTS, tmp_path)


@pytest.mark.parametrize(
    ("change", "same"),
    [({"sentence": "better words"}, True), ({"paper": "0.8"}, True), ({"rule": ("share >= 0.4", "gain.low > 0")}, False), ({"data": "more"}, False)],
)
def test_a_result_stays_when_only_its_words_change(change, same):
    one = EXPERIMENTS[0]
    other = replace(one, claims=(replace(ABOVE, **change), *one.claims[1:]))
    assert (ledger.digest(other) == ledger.digest(one)) is same


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "no result of headwise claims"), ('{"headwise_claims": 1}', "is broken"), ("[", "JSON"),
        ('{"headwise_claims": 2}', "by another version of headwise: its format is 2"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(HeadwiseError, match=message):
        read_results([tmp_path])


@pytest.mark.parametrize(
    "change",
    [
        {"findings": {}}, {"findings": {"other.heads": {"numbers": {}}}}, {"findings": {"other.heads": {"numbers": {"heads": 10**400}}}},
        {"findings": {"other.heads": {"numbers": {"heads": "1"}}}}, {"findings": {"other.heads": {"numbers": {"heads": 1}, "p": 3}}},
        {"findings": {"other.heads": {"numbers": {"heads": 1}, "p": "x"}}}, {"findings": {"no.such": {"numbers": {}}}},
        {"findings": {"other.heads": {"numbers": {"heads": 1}}, "no.such": {"numbers": {}}}}, {"model": {}}, {"model": {"name": None}},
        {"seed": 1e999},
    ],
)  # fmt: skip
def test_a_broken_result_is_named(small, tmp_path, change):
    path = finished(tmp_path)[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(HeadwiseError, match=r"heads\.json is broken"):
        read_results([tmp_path])


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1e999", "null"])
def test_what_is_not_finite_is_read_as_not_measured(small, tmp_path, value):
    path = finished(tmp_path)[0]
    path.write_text(path.read_text().replace('"heads":8.0', f'"heads":{value}'))
    row = rows(read_results([tmp_path]))[3]
    assert row.told == NOT_HELD
    assert json.dumps(row.to_json(), allow_nan=False)


def test_two_results_of_one_model_and_experiment_are_refused(small, tmp_path):
    finished(tmp_path / "one")
    finished(tmp_path / "two")
    with pytest.raises(HeadwiseError, match="both about"):
        read_results([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(HeadwiseError, match="there is no folder"):
        read_results([tmp_path / "three"])


def test_tables_for_other_programs(small, tmp_path):
    finished(tmp_path)
    shown = rows(read_results([tmp_path]))
    told = json.loads(to_json(shown))["claims"]
    lines = list(csv.DictReader(io.StringIO(to_csv(shown))))
    assert [row["claim"] for row in told] == [row["claim"] for row in lines]
    assert (lines[0]["effect"], lines[0]["low"], lines[0]["control"]) == ("0.7", "0.6", "0.4")
    unmeasured = list(csv.DictReader(io.StringIO(to_csv(rows([])))))
    assert [line["effect"] for line in unmeasured] == [""] * 5


# ---- the real ledger


def test_every_declaration_is_complete():
    every = ledger.claims()
    assert {claim.card for claim in every.values()} <= set(CARDS)
    for one in ledger.experiments():
        module, _, name = one.measure.partition(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name)), one.name
        assert one.claims, one.name
        assert one.title, one.name
    for claim in every.values():
        assert claim.sentence, claim.key
        assert claim.metric, claim.key
        assert claim.data, claim.key


def test_the_ledger_is_read_without_torch():
    code = "import sys; from headwise.claims import ledger; ledger.experiments(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
