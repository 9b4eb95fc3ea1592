"""The re-ranking service behind a real server, asked by a real client over a loopback port."""

import asyncio
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from headwise.heads import HeadwiseError
from headwise.methods.query.ranker import Ranker
from headwise.models.model import Model
from headwise.prompts.passages import Passage
from headwise.serve.cache import IndexCache, passage_key
from headwise.serve.limits import KEY_VARIABLE, MOST, Settings, check_exposure, is_loopback, key_from
from headwise.serve.run import bind, make_server
from headwise.serve.work import READY
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

WORDS = ["stone", "river", "bird", "door", "snow", "wind", "mill", "key", "oak", "hail", "sun", "lamp"]
DOCUMENTS = ["red door", {"text": "the key is blue", "title": "Key"}, "wind over the mill"]
READ = ["red door", Passage("the key is blue", "Key"), "wind over the mill"]
QUERY = "where is the key"
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used over HTTP, but each client would load all certificates


@pytest.fixture(scope="module")
def ranker():
    model = tiny_model("llama", max_position_embeddings=512)
    return Ranker(Model(model, character_tokenizer()))


class Gated(Ranker):
    """Computes no passages before the gate opens."""

    def __init__(self, ranker):
        self.__dict__.update(ranker.__dict__)
        self.gate, self.asked = threading.Event(), threading.Event()

    def index(self, passages):
        self.asked.set()
        if not self.gate.wait(20):
            raise TimeoutError("the test forgot the gate")
        return super().index(passages)


@contextmanager
def served(make, **settings):
    """A server in a thread, with what a test needs of it; stopped at the end."""
    server = make_server(make if callable(make) else lambda: make, Settings(**settings))
    listening = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    until(lambda: server.started and (not isinstance(make, Ranker) or server.work.state == READY))
    with httpx.Client(base_url=url, timeout=20) as client:
        yield SimpleNamespace(server=server, work=server.work, url=url, client=client, thread=thread)
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def service(ranker):
    with served(ranker, max_body=20_000, max_passages=60, max_passage_chars=3000, max_query_chars=200) as found:
        yield found


def until(true, seconds=15.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def wanted(ranker, query, passages):
    """Scores in the order given, from the ranker itself."""
    return {row["corpus_id"]: row["score"] for row in ranker.rank(query, passages)}


def given(answer, name="relevance_score"):
    rows = answer["results"] if isinstance(answer, dict) else answer
    return {row["index"]: row[name] for row in rows}


def metrics_of(service):
    families = text_string_to_metric_families(service.client.get("/metrics").text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def ask_all(url, bodies):
    """Answers of as many clients as there are bodies, all at the same time."""

    async def one(body):
        async with httpx.AsyncClient(base_url=url, timeout=30, verify=PLAIN) as client:
            return await client.post("/rerank", json=body)

    async def every():
        return await asyncio.gather(*map(one, bodies))

    return asyncio.run(every())


# ---- nothing lost, nothing mixed up


@pytest.mark.slow
def test_fifty_clients_each_get_the_scores_of_their_own_passages(service, ranker):
    rng = np.random.default_rng(0)
    bodies = [
        {"query": f"{rng.choice(WORDS)} {i}", "documents": [" ".join(rng.choice(WORDS, 3)) for _ in range(rng.integers(2, 6))]}
        for i in range(50)
    ]
    expected = [wanted(ranker, body["query"], body["documents"]) for body in bodies]
    answers = ask_all(service.url, bodies)
    assert [answer.status_code for answer in answers] == [200] * 50
    assert [given(answer.json()) for answer in answers] == expected
    assert len({answer.json()["id"] for answer in answers}) == 50


@pytest.mark.slow
def test_the_same_passages_are_computed_once_and_queries_over_them_run_together(ranker):
    gated = Gated(ranker)
    queries = [f"{word} {i}" for i, word in enumerate(WORDS * 2)]
    with served(gated, batch=8) as service, ThreadPoolExecutor(1) as pool:
        answers = pool.submit(ask_all, service.url, [{"query": query, "documents": DOCUMENTS} for query in queries])
        until(lambda: gated.asked.is_set() and len(service.work._waiting) + 8 >= len(queries))
        gated.gate.set()
        for query, answer in zip(queries, answers.result(), strict=True):
            found, expected = given(answer.json()), wanted(ranker, query, READ)
            assert set(found) == set(expected)
            assert all(found[i] == pytest.approx(expected[i], abs=1e-5) for i in expected)
        counted = metrics_of(service)
        assert counted["headwise_cache_misses_total",] == 1
        assert counted["headwise_cache_hits_total",] == len(queries) - 1
        assert counted["headwise_batch_requests_count",] < len(queries)
        assert counted["headwise_cache_tokens",] == ranker.index(READ).tokens
        # Another order is another prompt, so it is another set.
        service.client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS[::-1]})
        assert metrics_of(service)["headwise_cache_misses_total",] == 2


@pytest.mark.slow
def test_more_passages_than_fit_are_ranked_in_windows_and_never_cut(service, ranker):
    many = [f"{word} {i} of the old mill" for i, word in enumerate(WORDS * 4)]
    before = metrics_of(service)["headwise_windowed_total",]
    answer = service.client.post("/rerank", json={"query": "river 13", "texts": many, "truncate": True})
    assert given(answer.json(), "score") == wanted(ranker, "river 13", many)
    assert metrics_of(service)["headwise_windowed_total",] == before + 1


def test_one_bad_query_does_not_spoil_those_it_waited_with(ranker):
    gated = Gated(ranker)
    good, bad = {"query": "red", "documents": DOCUMENTS}, {"query": "word " * 120, "documents": DOCUMENTS}
    with served(gated) as service, ThreadPoolExecutor(2) as pool:
        before = pool.submit(ask_all, service.url, [{"query": "red", "documents": ["door"]}])
        until(gated.asked.is_set)  # the model is busy, so the others wait together
        answers = pool.submit(ask_all, service.url, [good, bad, good])
        until(lambda: len(service.work._waiting) == 3)
        gated.gate.set()
        assert before.result()[0].status_code == 200
        codes = [answer.status_code for answer in answers.result()]
        assert codes == [200, 422, 200]
        assert "tokens" in answers.result()[1].json()["error"]["message"]


# ---- shapes


@pytest.mark.parametrize(("path", "version"), [("/v1/rerank", "1"), ("/v2/rerank", "2"), ("/rerank", "1")])
def test_cohere_and_jina(service, ranker, path, version):
    body = {
        "model": "rerank-v3.5",
        "query": QUERY,
        "documents": DOCUMENTS,
        "top_n": 2,
        "return_documents": True,
        "max_tokens_per_doc": 9,
    }
    answer = service.client.post(path, json=body).json()
    expected = wanted(ranker, QUERY, READ)
    assert set(answer) == {"id", "model", "results", "meta", "usage"}
    assert [row["index"] for row in answer["results"]] == sorted(expected, key=expected.get, reverse=True)[:2]
    for row in answer["results"]:
        document = DOCUMENTS[row["index"]]
        assert row == {
            "index": row["index"],
            "relevance_score": expected[row["index"]],
            "document": {"text": document} if isinstance(document, str) else document,
        }
    assert answer["model"] == ranker.model.name  # what did the work, whatever was asked for
    tokens = ranker.index(READ).tokens + len(ranker.composer.query(QUERY).ids)
    assert answer["meta"] == {"api_version": {"version": version}, "tokens": {"input_tokens": tokens, "output_tokens": 0}}
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_fields_of_documents(service, ranker):
    def scores(**more):
        return given(service.client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **more}).json())

    plain = ["red door", "the key is blue", "wind over the mill"]
    assert scores(rank_fields=["text"]) == wanted(ranker, QUERY, plain)
    assert scores(rank_fields=["title", "text"], top_n=99, return_documents=None) == wanted(ranker, QUERY, READ)


def test_text_embeddings_inference(service, ranker):
    texts = ["red door", "the key is blue", "wind"]
    plain = service.client.post("/rerank", json={"query": QUERY, "texts": texts}).json()
    raw = service.client.post(
        "/rerank", json={"query": QUERY, "texts": texts, "raw_scores": True, "return_text": True, "truncation_direction": "Right"}
    ).json()
    expected = pytest.approx(wanted(ranker, QUERY, texts), abs=1e-6)
    assert given(plain, "score") == expected
    assert given(raw, "score") == expected  # no sigmoid: these are no chances
    assert [row["score"] for row in plain] == sorted((row["score"] for row in plain), reverse=True)
    assert all(set(row) == {"index", "score"} for row in plain)
    assert all(row["text"] == texts[row["index"]] for row in raw)


def test_models_and_the_description_of_the_interface(service, ranker):
    (model,) = service.client.get("/v1/models").json()["data"]
    assert model["id"] == ranker.model.name
    assert model["heads"] == len(ranker.heads)
    described = service.client.get("/openapi.json").json()
    assert "no probability" in described["info"]["description"]
    body, other = described["paths"]["/rerank"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert {"query", "documents"} <= set(body["properties"])
    assert {"query", "texts"} <= set(other["properties"])
    assert "$defs" not in str(described)
    assert service.client.get("/docs").status_code == 404  # would load scripts from elsewhere


# ---- what is refused


def check_problem(answer, status, kind, *parts):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"type", "message"}
    assert answer.json()["error"]["type"] == kind
    message = answer.json()["error"]["message"]
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("body", "status", "kind", "parts"),
    [
        ([], 422, "invalid_request", ["documents", "texts"]),
        ({"query": "a"}, 422, "invalid_request", ["documents", "texts"]),
        ({"query": "a", "documents": ["b"], "texts": ["b"]}, 422, "invalid_request", ["either"]),
        ({"documents": ["b"]}, 422, "invalid_request", ["query", "required"]),
        ({"query": "a", "documents": "b"}, 422, "invalid_request", ["documents", "list"]),
        ({"query": "a", "documents": []}, 422, "invalid_request", ["documents", "at least 1"]),
        ({"query": "a", "texts": []}, 422, "invalid_request", ["texts", "at least 1"]),
        ({"query": "a", "documents": ["b", 7]}, 422, "invalid_request", ["documents.1", "a text or an object"]),
        ({"query": "a", "documents": [{"image": "x"}]}, 422, "invalid_request", ["documents.0"]),
        ({"query": "a", "documents": [7] * 9}, 422, "invalid_request", ["documents.2", "and 6 more"]),
        ({"query": "a", "texts": [{"text": "b"}]}, 422, "invalid_request", ["texts.0", "string"]),
        ({"query": 7, "documents": ["b"]}, 422, "invalid_request", ["query", "string"]),
        ({"query": " ", "documents": ["b"]}, 422, "invalid_request", ["query: empty"]),
        ({"query": "a", "documents": ["b", " \n"]}, 422, "invalid_request", ["documents.1: empty"]),
        ({"query": "a", "documents": ["b"], "top_n": 0}, 422, "invalid_request", ["top_n"]),
        ({"query": "a", "documents": ["b"], "top_n": "2"}, 422, "invalid_request", ["top_n"]),
        ({"query": "a", "documents": ["b"], "rank_fields": ["body"]}, 422, "invalid_request", ["rank_fields"]),
        ({"query": "a", "documents": ["b"] * 61}, 413, "too_many_passages", ["61", "60"]),
        ({"query": "a", "documents": ["b", "c" * 3001]}, 413, "text_too_long", ["documents.1", "3001", "3000"]),
        ({"query": "a", "documents": [{"title": "t" * 2000, "text": "c" * 1001}]}, 413, "text_too_long", ["3001"]),
        ({"query": "a" * 201, "texts": ["b"]}, 413, "text_too_long", ["query", "201", "200"]),
        ({"query": "a", "texts": ["b" * 600], "truncate": True}, 422, "cannot_rank", ["passage 1", "tokens"]),
    ],
)
def test_wrong_requests_get_a_reason(service, body, status, kind, parts):
    check_problem(service.client.post("/rerank", json=body), status, kind, *parts)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff\xfe", b'{"query": "a" "documents": []}', b"[" * 5000, b'{"top_n": ' + b"9" * 6000 + b"}"],
)
def test_what_is_no_json_is_said_so(service, raw):
    answer = service.client.post("/rerank", content=raw, headers={"Content-Type": "application/json"})
    check_problem(answer, 400, "malformed_json")


def test_half_a_character_is_refused_and_not_an_error_of_ours(service):
    for place, raw in (
        ("documents.1", b'{"query": "a", "documents": ["b", "\\ud800"], "return_documents": true}'),
        ("documents.0", b'{"query": "a", "documents": [{"title": "\\ud800", "text": "b"}]}'),
        ("query", b'{"query": "\\ud800", "texts": ["b"]}'),
    ):
        answer = service.client.post("/rerank", content=raw, headers={"Content-Type": "application/json"})
        check_problem(answer, 422, "invalid_request", place, "surrogate")


def test_other_content_types_paths_and_methods(service):
    check_problem(service.client.post("/rerank", content=b"{}"), 415, "wrong_content_type", "application/json")
    check_problem(service.client.post("/rerank", data={"query": "a"}), 415, "wrong_content_type")
    check_problem(service.client.get("/nothing"), 404, "not_found", "/rerank")
    check_problem(service.client.get("/rerank"), 405, "method_not_allowed", "/rerank")


def test_a_body_over_the_limit_is_refused_while_it_is_read(service):
    def pieces():
        for _ in range(300):
            yield b" " * 1000

    head = {"Content-Type": "application/json"}
    check_problem(service.client.post("/rerank", content=b" " * 300_000, headers=head), 413, "too_large", "20000 bytes")
    check_problem(
        service.client.post("/rerank", content=pieces(), headers=head), 413, "too_large", "20000 bytes"
    )  # no length given
    assert service.client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS}).status_code == 200


@pytest.mark.slow
def test_a_body_that_does_not_come_is_not_waited_for(ranker):
    def slow():
        yield b"{"
        time.sleep(1.0)
        yield b"}"

    with served(ranker, timeout=0.3) as service:
        answer = service.client.post("/rerank", content=slow(), headers={"Content-Type": "application/json"})
        check_problem(answer, 408, "body_too_slow", "0.3 s")


# ---- keys and addresses


@pytest.mark.slow
def test_the_key_opens_everything_but_health(ranker):
    body = {"query": QUERY, "documents": DOCUMENTS}
    with served(ranker, api_key="s3cret") as service:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}, {"Authorization": b"Bearer \xe9"}):
            answer = service.client.post("/rerank", json=body, headers=header)
            check_problem(answer, 401, "unauthorized", "Bearer KEY")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "s3cret" not in answer.text
        for path in ("/metrics", "/v1/models"):
            check_problem(service.client.get(path), 401, "unauthorized")
        assert service.client.get("/health").status_code == 200
        right = {"Authorization": "bearer s3cret"}
        assert service.client.post("/rerank", json=body, headers=right).status_code == 200
        assert b"headwise_requests_total" in service.client.get("/metrics", headers=right).content
    assert "s3cret" not in repr(Settings(api_key="s3cret"))


def test_keys_from_the_environment():
    assert key_from({}) is None
    assert key_from({KEY_VARIABLE: "k"}) == "k"
    for bad in ("", "a b", "key\n", "schlüssel"):
        with pytest.raises(HeadwiseError, match=KEY_VARIABLE):
            key_from({KEY_VARIABLE: bad})
    with pytest.raises(HeadwiseError, match="--no-auth"):
        key_from({KEY_VARIABLE: "k"}, no_auth=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_no_service_without_a_key_beyond_this_machine(host):
    with pytest.raises(HeadwiseError, match=f"{KEY_VARIABLE}.*--no-auth"):
        check_exposure(host, None, no_auth=False)
    check_exposure(host, "key", no_auth=False)
    check_exposure(host, None, no_auth=True)


def test_loopback_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("localhost.example.org", "10.0.0.1", "")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: wrong}, f"{name.replace('_', '-')} must be at least 1 and at most {most}; got")
          for name, most in MOST.items() for wrong in (0, -1, most + 1, 1.5, True, "7", None)),
        *(({"timeout": wrong}, "timeout must be a number of seconds above 0 and at most 86400; got")
          for wrong in (0, -1.5, float("inf"), float("nan"), 1e9, True, "7")),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(HeadwiseError, match=message):
        Settings(**options)


@pytest.mark.parametrize("port", [-1, 65_536, 70_000, 10**30])
def test_ports_out_of_range_are_one_line(port):
    with pytest.raises(HeadwiseError, match=r"cannot listen on 127\.0\.0\.1:.* give another --host or --port"):
        bind("127.0.0.1", port)


def test_an_address_in_use_is_refused_in_one_line():
    with bind("127.0.0.1", 0) as taken, pytest.raises(HeadwiseError, match="cannot listen on"):
        bind("127.0.0.1", taken.getsockname()[1])


# ---- load, loss, end


@pytest.mark.slow
def test_a_full_queue_says_so_at_once_and_loses_nothing(ranker):
    gated = Gated(ranker)
    bodies = [{"query": QUERY, "documents": [word]} for word in WORDS[:4]]
    with served(gated, queue=3) as service, ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask_all, service.url, bodies[:1])
        until(gated.asked.is_set)
        waiting = pool.submit(ask_all, service.url, bodies[1:])
        until(lambda: len(service.work._waiting) == 3)
        assert metrics_of(service)["headwise_queue_length",] == 3
        answer = service.client.post("/rerank", json=bodies[0])
        check_problem(answer, 429, "queue_full", "3 requests are waiting")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        gated.gate.set()
        assert [found.status_code for found in running.result() + waiting.result()] == [200] * 4
        assert metrics_of(service)["headwise_requests_total", "/rerank", "429"] == 1


@pytest.mark.slow
def test_who_leaves_frees_the_place_in_the_queue(ranker):
    gated = Gated(ranker)
    with served(gated, queue=1) as service:
        for word in WORDS[:2]:  # one at work, one waiting
            with suppress(httpx.ReadTimeout):
                httpx.post(service.url + "/rerank", json={"query": QUERY, "documents": [word]}, timeout=0.3)
        until(lambda: metrics_of(service)["headwise_dropped_total", "gone"] == 2)
        assert not service.work._waiting
        gated.gate.set()
        assert service.client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS}).status_code == 200
        assert metrics_of(service)["headwise_requests_total", "/rerank", "499"] == 2


@pytest.mark.slow
def test_no_answer_in_time(ranker):
    gated = Gated(ranker)
    with served(gated, timeout=0.3) as service:
        answers = ask_all(service.url, [{"query": QUERY, "documents": [word]} for word in WORDS[:2]])
        for answer in answers:
            check_problem(answer, 504, "timeout", "0.3 s")
        gated.gate.set()
        assert service.client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS}).status_code == 200


class Broken(Ranker):
    """Raises what it is told to, once each."""

    def __init__(self, ranker, *errors):
        self.__dict__.update(ranker.__dict__)
        self.errors = list(errors)

    def index(self, passages):
        if self.errors:
            raise self.errors.pop(0)
        return super().index(passages)


def test_one_request_that_fails_is_not_the_end(ranker, caplog):
    body = {"query": QUERY, "documents": DOCUMENTS}
    full = [torch.OutOfMemoryError("no room") for _ in range(3)]
    with served(Broken(ranker, RuntimeError("secret path"), *full)) as service:
        check_problem(service.client.post("/rerank", json=body), 500, "internal_error", "log")
        assert "secret path" in caplog.text
        check_problem(service.client.post("/rerank", json=body), 503, "out_of_memory", "fewer")
        assert service.client.post("/rerank", json=body).status_code == 200  # room was made at the second try


def test_scores_that_are_no_numbers_are_not_sent(ranker):
    class Unsure(Ranker):
        def __init__(self):
            self.__dict__.update(ranker.__dict__)

        def index(self, passages):
            return SimpleNamespace(tokens=1, scores=lambda queries: np.full((len(queries), len(passages)), np.nan))

    with served(Unsure()) as service:
        check_problem(service.client.post("/rerank", json={"query": QUERY, "texts": ["a"]}), 500, "not_finite", "--dtype")


def test_health_while_a_model_loads_and_when_it_cannot_be_loaded(ranker):
    gate = threading.Event()

    def load():
        gate.wait(20)
        raise HeadwiseError("no such model")

    with served(load) as service:
        answer = service.client.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
        check_problem(service.client.post("/rerank", json={}), 503, "loading")
        check_problem(service.client.get("/v1/models"), 503, "loading")
        gate.set()
        service.thread.join(20)  # it ends by itself
        assert not service.thread.is_alive()
        assert str(service.work.failure) == "no such model"


@pytest.mark.slow
def test_what_was_accepted_is_answered_before_the_end(ranker):
    gated = Gated(ranker)
    bodies = [{"query": QUERY, "documents": [word]} for word in WORDS[:6]]
    with served(gated) as service, ThreadPoolExecutor(1) as pool:
        service.client.get("/health")
        first = pool.submit(ask_all, service.url, bodies)
        until(lambda: gated.asked.is_set() and len(service.work._waiting) == 5)
        service.work.refuse()  # what a signal does first
        answer = service.client.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "stopping"})
        check_problem(service.client.post("/rerank", json=bodies[0]), 503, "stopping", "stopping")
        service.server.should_exit = True
        time.sleep(0.3)
        gated.gate.set()
        assert [answer.status_code for answer in first.result()] == [200] * 6
        service.thread.join(20)
        assert not service.work.thread.is_alive()


def test_metrics_can_be_read_by_prometheus(service):
    service.client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS})
    service.client.get("/no/such/path/of/a/stranger")
    found = metrics_of(service)
    assert found["headwise_requests_total", "/rerank", "200"] >= 1
    assert found["headwise_requests_total", "other", "404"] >= 1
    assert found["headwise_request_seconds_count", "/rerank"] >= 1
    assert found["headwise_tokens_total", "passages"] > 0
    assert found["headwise_tokens_total", "query"] > 0
    assert found["headwise_running",] == 0
    assert not any("stranger" in str(key) for key in found)


# ---- kept passages


def test_kept_passages_are_bounded_by_their_tokens():
    cache = IndexCache(10)
    index = {name: SimpleNamespace(tokens=tokens) for name, tokens in ((b"a", 4), (b"b", 4), (b"c", 4), (b"big", 11))}
    cache.put(b"a", index[b"a"])
    cache.put(b"b", index[b"b"])
    assert cache.get(b"a") is index[b"a"]
    cache.put(b"c", index[b"c"])  # b was used least recently
    assert (cache.get(b"b"), cache.tokens, len(cache)) == (None, 8, 2)
    cache.put(b"big", index[b"big"])
    assert (cache.get(b"big"), cache.tokens) == (None, 8)
    cache.clear()
    assert (cache.tokens, len(cache)) == (0, 0)


def test_keys_of_passages_differ_wherever_passages_do():
    sets = [["ab"], ["a", "b"], ["b", "a"], [Passage("b", "a")], [Passage("", "ab")], ["a", "", "b"], ["ab", ""]]
    assert len({passage_key(passages) for passages in sets}) == len(sets)
    assert passage_key(["x"]) == passage_key([Passage("x")])
