"""What strangers without a key can do to the service: real sockets on a loopback port, bounded in number."""

import logging
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from headwise.methods.query.ranker import Ranker
from headwise.prompts.passages import Passage
from headwise.serve import connections
from headwise.serve.connections import Sparse, most_connections
from tests.unit.test_serve import DOCUMENTS, PLAIN, QUERY, Gated, ask_all, ranker, served, until

__all__ = ["ranker"]  # the fixture
ASKED = {"query": QUERY, "documents": DOCUMENTS}


def room_of(service):
    return service.server.config.http.room


@contextmanager
def strangers(service, count):
    """So many connections that send nothing."""
    place = service.server.servers[0].sockets[0].getsockname()
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(place, timeout=5)) for _ in range(count)]


def closed(connection, seconds=5.0):
    """True if the other side has closed the connection by then."""
    try:
        while select.select([connection], [], [], seconds)[0]:
            if not connection.recv(4096):
                return True
    except ConnectionResetError:
        return True
    return False


@pytest.mark.slow
def test_idle_strangers_do_not_keep_others_out(ranker, monkeypatch, caplog):
    monkeypatch.setattr(connections, "LOG_SECONDS", 1.0)
    with served(ranker, max_connections=32, api_key="k") as service, strangers(service, 260) as idle:
        until(lambda: sum(closed(one, 0) for one in idle) >= 228)
        assert len(room_of(service).open) <= 32
        started = time.monotonic()
        for _ in range(3):
            answer = httpx.post(service.url + "/rerank", json=ASKED, headers={"Authorization": "Bearer k"}, verify=PLAIN)
            assert answer.status_code == 200
        assert time.monotonic() - started < 5
        assert len(room_of(service).open) <= 32
        assert not closed(idle[-1], 0)  # the newest are still there
        until(lambda: "sent no request" in caplog.text)
        time.sleep(1.2)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(lines) <= 3, lines  # a line per stretch of time, not one per connection
    assert sum(int(line.split()[3]) for line in lines) >= 228
    assert all("0 were refused" in line for line in lines)


@pytest.mark.slow
def test_a_head_that_does_not_come_is_not_waited_for(ranker, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)
    with served(ranker) as service, strangers(service, 3) as (idle, slow, kept):
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        kept.sendall(b"GET")  # and then nothing: after an answer, too
        started = time.monotonic()
        for byte in b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100:
            try:
                slow.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
        assert time.monotonic() - started < 1.5
        assert closed(slow)
        assert closed(idle)
        assert closed(kept)
        assert service.client.get("/health").status_code == 200
        until(lambda: len(room_of(service).open) <= 1)


def test_connections_that_are_at_work_are_not_closed_for_others(ranker):
    gated = Gated(ranker)
    with served(gated, max_connections=2) as service, ThreadPoolExecutor(1) as pool:
        service.client.close()
        until(lambda: not room_of(service).open)
        answers = pool.submit(ask_all, service.url, [ASKED, ASKED])
        until(lambda: gated.asked.is_set() and not room_of(service).waiting and len(room_of(service).open) == 2)
        refused = httpx.get(service.url + "/health", verify=PLAIN)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "too_many_connections")
        assert refused.headers["retry-after"] == "1"
        gated.gate.set()
        assert [answer.status_code for answer in answers.result()] == [200, 200]


class Same(Ranker):
    """Gives all passages the same score, however long they are."""

    def __init__(self, ranker):
        self.__dict__.update(ranker.__dict__)

    def index(self, passages):
        return SimpleNamespace(tokens=1, scores=lambda queries: np.zeros((len(queries), len(passages))))


@pytest.mark.slow
def test_a_client_that_reads_a_large_answer_slowly_is_waited_for(ranker, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)
    texts = ["a" * 200_000] * 80
    with served(Same(ranker), max_body=2**25) as service:
        started = time.monotonic()
        asked = {"query": QUERY, "texts": texts, "return_text": True}
        with service.client.stream("POST", "/rerank", json=asked) as answer:
            size = 0
            for piece in answer.iter_raw(2**20):
                size += len(piece)
                time.sleep(0.1)
        assert size > 16_000_000
        assert time.monotonic() - started > 0.8  # longer than a client has that reads nothing
    with served(Same(ranker), max_body=2**25) as service, strangers(service, 1) as (lazy,):
        body = httpx.Request("POST", service.url, json=asked).content
        lazy.sendall(b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        lazy.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: len(room_of(service).open) == 1 and not room_of(service).waiting)  # at work
        until(lambda: not room_of(service).open)  # and closed, because it reads nothing


def test_what_is_no_request_is_logged_once(ranker, capsys):
    with served(ranker) as service, strangers(service, 40) as noisy:
        for one in noisy:
            one.sendall(b"\x00\x01 nonsense\r\n\r\n")
        assert all(one.recv(4096).startswith(b"HTTP/1.1 400") for one in noisy)
        assert service.client.post("/rerank", json=ASKED).status_code == 200
    assert capsys.readouterr().err.count("Invalid HTTP request") == 1
    assert not logging.getLogger("uvicorn.error").filters


def test_repeated_messages_are_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    sparse = Sparse()

    def logged(message):
        record = logging.LogRecord("a", logging.WARNING, "", 0, message, (), None)
        return record.getMessage() if sparse.filter(record) else None

    assert [logged("a"), logged("b"), logged("a"), logged("a")] == ["a", "b", None, None]
    now[0] = 61.0
    assert [logged("a"), logged("b"), logged("a")] == ["a (and 2 more since)", "b", None]


@pytest.mark.parametrize(("files", "most"), [(1024, 512), (256, 64), (16, 8), (-1, 512)])
def test_there_are_fewer_connections_than_open_files(monkeypatch, files, most):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, -1))
    assert most_connections(512) == most
    assert most_connections(2) == 2


SPELLED = ["</s>", "<s>", "<unk>", "the</s>key", "a <s> b </s> c"]


@pytest.mark.parametrize("spelled", SPELLED)
def test_control_tokens_that_are_spelled_out_are_text(ranker, spelled):
    special = set(ranker.model.tokenizer.all_special_ids)

    def controls(ids):
        return sum(token in special for token in ids)

    plain = "the key is blue"
    composer = ranker.composer
    assert controls(composer.query(f"{plain} {spelled}").ids) == controls(composer.query(plain).ids)
    for passage in (Passage(f"{plain} {spelled}"), Passage(plain, spelled)):
        assert controls(composer.passage(passage, 1)) == controls(composer.passage(Passage(plain), 1))
