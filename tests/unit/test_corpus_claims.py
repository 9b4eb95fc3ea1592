"""Claims: one owner at a time, the dead give way, the living do not."""

import json
import os
import subprocess
import sys
import threading
import time

from headwise.corpus.claims import Claims


def test_one_owner_at_a_time(tmp_path):
    with Claims(tmp_path, 60) as one, Claims(tmp_path, 60) as two:
        assert one.take("a/b")
        assert not two.take("a/b")
        assert two.take("a/c")
        one.release("a/b")
        assert two.take("a/b")
        one.release("a/b")  # not one's own any more
        assert not one.take("a/b")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def leave_behind(folder):
    code = "import os; from pathlib import Path; from headwise.corpus.claims import Claims\n"
    code += f"Claims(Path({str(folder)!r}), 60).__enter__().take('a'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (folder / "a.json").exists()


def test_a_dead_process_here_is_noticed_at_once(tmp_path):
    leave_behind(tmp_path)
    with Claims(tmp_path, 60) as claims:
        assert claims.take("a")


def test_a_process_elsewhere_is_dead_when_it_shows_no_sign_of_life(tmp_path):
    leave_behind(tmp_path)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "elsewhere"}))
    with Claims(tmp_path, 60) as claims:
        assert not claims.take("a")
        old = time.time() - 61
        os.utime(path, (old, old))
        assert claims.take("a")


def test_a_claim_cut_short_counts_by_its_age(tmp_path):
    (tmp_path / "a.json").write_text('{"mach')
    with Claims(tmp_path, 60) as claims:
        assert not claims.take("a")


def test_a_living_process_keeps_touching_its_claims(tmp_path):
    with Claims(tmp_path, 0.4) as claims:
        claims.take("a")
        first = (tmp_path / "a.json").stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while (tmp_path / "a.json").stat().st_mtime_ns == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / "a.json").stat().st_mtime_ns > first


def test_many_threads_and_stale_claims_give_one_owner(tmp_path):
    """All see the same stale claim; each may take it over, one does."""
    for round in range(20):
        folder = tmp_path / str(round)
        folder.mkdir()
        (folder / "a.json").write_text("{}")
        os.utime(folder / "a.json", (0, 0))
        won, barrier = [], threading.Barrier(8)

        def run(folder=folder, won=won, barrier=barrier):
            with Claims(folder, 60) as claims:
                barrier.wait()
                if claims.take("a"):
                    won.append(1)
                barrier.wait()

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Claims(tmp_path, 60) as first, Claims(tmp_path, 60) as second:
        assert first.take("a")
        assert not second.take("a")


def test_a_turn_left_behind_does_not_block_for_ever(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / ".a.json.turn").touch()
    for path in (tmp_path / "a.json", tmp_path / ".a.json.turn"):
        os.utime(path, (0, 0))
    with Claims(tmp_path, 60) as claims:
        assert not claims.take("a")  # this one clears the way
        assert claims.take("a")


def test_a_used_process_number_is_no_sign_of_life(tmp_path):
    with Claims(tmp_path, 60) as claims:
        claims.take("a")
        mine = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**mine, "started": "1"}))  # our number, but another process had it
    with Claims(tmp_path, 60) as claims:
        assert claims.take("a")
