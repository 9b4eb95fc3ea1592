"""Experiments side by side: the same bytes, faults that stay alone, and no process that is left behind."""

import multiprocessing
import os
from dataclasses import replace

import pytest

import headwise as hw
from headwise.claims.run import plan, run
from headwise.heads.errors import HeadwiseError
from tests.claims import made_up
from tests.claims.made_up import EXPERIMENTS

pytestmark = pytest.mark.slow  # every process imports torch anew


@pytest.fixture
def small(monkeypatch):
    made_up.install(monkeypatch)


def test_experiments_side_by_side_end_with_the_same_bytes(small, tmp_path):
    whole = run(plan(["lab-6m"], EXPERIMENTS, tmp_path / "whole"), tmp_path / "whole", load=hw.load)
    told, seen = [], []
    planned = plan(["lab-6m"], EXPERIMENTS, tmp_path / "beside")
    written = run(
        planned, tmp_path / "beside", load=hw.load, jobs=2, report=lambda *parts: seen.append(parts), tell=lambda *parts: told.append(parts[:2])
    )
    assert sorted(path.name for path in written) == sorted(path.name for path in whole) == ["heads.json", "made.json"]
    for path in whole:
        assert (tmp_path / "beside" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert sorted(told) == [("lab-6m", "heads"), ("lab-6m", "made")]
    assert not (tmp_path / "beside/lab-6m/unfinished").exists()
    assert seen[-1][0] == seen[-1][1] == pytest.approx(planned.minutes())
    assert all(0 <= done <= total for done, total, _ in seen)


def test_a_failure_beside_others_is_told_and_stops_none(small, tmp_path):
    broken = replace(EXPERIMENTS[0], name="broken", measure="tests.claims.made_up:no_such_function")
    planned = plan(["lab-6m"], [broken, EXPERIMENTS[1]], tmp_path)
    with pytest.raises(HeadwiseError, match=r"1 of 2 experiments failed.*lab-6m broken: AttributeError.*traceback.txt"):
        run(planned, tmp_path, load=hw.load, jobs=2)
    assert (tmp_path / "lab-6m/heads.json").exists()


def no_model(name):
    raise HeadwiseError(f"no model {name}")


def no_memory(name):
    os._exit(9)


@pytest.mark.parametrize(("load", "why"), [(no_model, r"^no model lab-6m$"), (no_memory, r"^a process ended unexpectedly, .*fewer --jobs")])
def test_a_model_that_no_process_can_load_stops_all(small, tmp_path, load, why):
    planned = plan(["lab-6m"], EXPERIMENTS[:2], tmp_path)
    with pytest.raises(HeadwiseError, match=why):
        run(planned, tmp_path, load=load, jobs=2)
    assert not multiprocessing.active_children()


def test_what_compares_times_runs_alone_in_this_process(small, tmp_path):
    alone = replace(EXPERIMENTS[0], alone=True)

    def load(name):  # a function inside of another cannot be given to a process
        return hw.load(name)

    assert len(run(plan(["lab-6m"], [alone], tmp_path), tmp_path, load=load, jobs=2)) == 1
