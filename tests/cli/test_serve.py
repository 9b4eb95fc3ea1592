"""`headwise serve` as a process of its own: started, asked, stopped by signals; and what it refuses to start with."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headwise.heads import HeadScores, save_heads
from headwise.serve.limits import KEY_VARIABLE
from headwise.serve.run import bind


@pytest.fixture
def heads(tmp_path):
    """A head file for the planted model."""
    save_heads(HeadScores(np.arange(8.0).reshape(2, 4), "copy"), tmp_path / "heads.json")
    return tmp_path / "heads.json"


def prepare(files):
    """In the new process, before it becomes the service."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs in the background of a script ignore it
    if files is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


@contextmanager
def started(*arguments, key=None, files=None):
    """(process, url) of a service on a free port. files: most open files it may have."""
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE} | (
        {KEY_VARIABLE: key} if key else {}
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "headwise", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=partial(prepare, files),
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("listening"), line + process.stderr.read()
        yield process, line.split()[1].removesuffix(",").removesuffix("/rerank")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until_ready(url):
    for _ in range(600):
        if httpx.get(url + "/health").status_code == 200:
            return
        time.sleep(0.1)
    pytest.fail("the model did not load")


async def accepted(client):
    """Requests that the service has taken on: answered, at work or waiting."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    found = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    done = found.get(("headwise_requests_total", "/rerank", "200"), 0)
    return done, done + found["headwise_queue_length",] + found["headwise_running",]


async def stop_in_the_middle(url, process, count=24):
    """Send requests, stop the process once all are taken on and few answered; their answers."""
    limits = httpx.Limits(max_connections=2 * count)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, headers={"Authorization": "Bearer k"}) as client:
        bodies = [{"query": "river", "documents": [f"the river was slow {i} {j}" for j in range(60)]} for i in range(count)]
        asked = [asyncio.ensure_future(client.post("/rerank", json=body)) for body in bodies]
        while (await accepted(client))[1] < count:
            await asyncio.sleep(0.02)
        done, _ = await accepted(client)
        assert done < count, "the service was too fast for this test"
        process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*asked)


@pytest.mark.slow
def test_a_stopped_service_answers_what_it_has_taken_on(planted, heads):
    with started(planted.model, "--heads", heads, "--top", "1", "--dtype", "float32", key="k") as (process, url):
        assert httpx.get(url + "/v1/models").status_code == 401
        wait_until_ready(url)
        answers = asyncio.run(stop_in_the_middle(url, process))
        assert [answer.status_code for answer in answers] == [200] * 24
        assert all(len(answer.json()["results"]) == 60 for answer in answers)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        assert "1 heads (top 1 by copy score)" in out
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/health")


@pytest.mark.slow
def test_idle_strangers_use_up_no_descriptors(planted, heads):
    with ExitStack() as stack:
        process, url = stack.enter_context(started(planted.model, "--heads", heads, "--top", "1", key="k", files=256))
        wait_until_ready(url)
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(400):
            stack.enter_context(socket.create_connection(place, timeout=5))
        for _ in range(5):
            body = {"query": "river", "documents": ["the river was slow", "a door"]}
            answer = httpx.post(url + "/rerank", json=body, headers={"Authorization": "Bearer k"}, timeout=20)
            assert answer.status_code == 200
        time.sleep(6)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert 1 <= len(err.splitlines()) <= 3, err
        assert "connections were closed because they sent no request" in err


@pytest.mark.slow
def test_a_service_can_be_stopped_while_it_loads():
    with started("--all-heads") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)  # 130: it had not yet begun to serve


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--heads FILE", "--all-heads"]),
        (["--heads", "HEADS", "--all-heads"], ["--heads FILE", "--all-heads"]),
        (["--heads", "/no/file.json"], ["no such head file"]),
        (["--heads", "HEADS", "--top", "99"], ["top 99", "8 heads"]),
        (["--all-heads", "--host", "0.0.0.0"], ["0.0.0.0", KEY_VARIABLE, "--no-auth"]),
        (["--all-heads", "--queue", "0"], ["queue must be at least 1"]),
        (["--all-heads", "--timeout", "0"], ["timeout"]),
        (["--all-heads", "--timeout", "nan"], ["timeout must be a number of seconds above 0 and at most 86400; got nan"]),
        (["--all-heads", "--max-connections", "0"], ["max-connections must be at least 1 and at most 100000; got 0"]),
        (["--all-heads", "--cache-tokens", "9999999999"], ["cache-tokens must be at least 1 and at most 1000000000"]),
        (["--all-heads", "--port", "-1"], ["cannot listen on 127.0.0.1:-1"]),
        (["--all-heads", "--top", "3"], ["--top chooses among the heads of --heads FILE"]),
        (["--all-heads", "--official", "--wording", "plain"], ["--official", "--wording"]),
        (["--all-heads", "--chat-template-args", "[1]"], ["--chat-template-args takes a JSON object"]),
        (["--all-heads", "--port", "BUSY"], ["cannot listen on 127.0.0.1", "--port"]),
        (["/no/such/model", "--all-heads", "--port", "0"], ["no such model folder"]),
        (["MODEL", "--all-heads", "--wording", "fancy", "--port", "0"], ["unknown passage layout 'fancy'"]),
    ],
)
def test_what_is_wrong_is_one_line(headwise, planted, heads, arguments, parts):
    with bind("127.0.0.1", 0) as busy:
        names = {"HEADS": heads, "MODEL": planted.model, "BUSY": busy.getsockname()[1]}
        done = headwise("serve", *(names.get(argument, argument) for argument in arguments))
    assert done.code == 2, done.err
    assert len(done.err.strip().splitlines()) == 1
    assert all(part in done.err for part in ("headwise: error:", *parts)), done.err


def test_an_empty_key_is_refused(headwise, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "")
    done = headwise("serve", "--all-heads")
    assert (done.code, KEY_VARIABLE in done.err) == (2, True)


@pytest.mark.parametrize("package", ["uvicorn", "fastapi", "prometheus_client"])
def test_without_the_extra_one_line_says_what_to_install(headwise, monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith("headwise.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    done = headwise("serve", "--all-heads")
    assert done.code == 2
    assert f"{package} is not installed; install it with: pip install 'headwise[serve]'" in done.err


def test_the_command_needs_no_extra_to_be_listed():
    code = "import json, sys; import headwise.cli.main; print(json.dumps([n for n in ('fastapi', 'uvicorn', 'torch') if n in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []
