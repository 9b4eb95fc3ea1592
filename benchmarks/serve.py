"""50 clients at once against a served lab model: lost and mixed-up answers, latencies against a single request, throughput.

The server is `headwise serve` in a process of its own, over loopback. One request is a query over eight passages of the micro-world.
`uncached`: every request has passages of its own. `cached`: all ask other queries about the same passages. Answers are compared with
`Ranker.rank` in this process: lost = no answer with status 200, mixed up = scores that are not those of its own passages.
The baseline is the same request with nobody else asking (`single`), and the ranker without HTTP (`rank_alone`). One thread
owns the model, so 50 requests that share nothing wait for one another: `p95_vs_single_...` is then of the order of 50 where the machine is
otherwise idle, and `speedup_vs_one_by_one_...` (1 = as fast as one client sending them all in turn) says what being many gains or costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
from common import hardware, options, show

from headwise.methods.query.ranker import Ranker
from headwise.models.load import load
from headwise.models.names import bundled_model
from headwise_lab.ranking import microworld_examples

MODEL, CLIENTS, SINGLES = "world-6m", 50, 20
TOLERANCE = 1e-5  # queries that run as rows of one batch differ in the last digits
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused over HTTP, but every client would load all certificates
Body = dict[str, Any]


@contextlib.contextmanager
def served() -> Iterator[str]:
    """URL of a ready service; SIGTERM at the end, which must end it cleanly."""
    command = [sys.executable, "-m", "headwise", "serve", str(bundled_model(MODEL)), "--all-heads", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = str(process.stdout and process.stdout.readline()).split()[1].removesuffix("/rerank,")
            while httpx.get(url + "/health").status_code != 200:
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
        if process.wait(60):
            raise SystemExit(f"the service ended with status {process.returncode}")


def bodies_of(count: int, seed: int) -> list[Body]:
    return [{"query": e.query, "documents": [p.text for p in e.passages]} for e in microworld_examples(count, "test", seed)]


async def ask(client: httpx.AsyncClient, body: Body) -> tuple[float, dict[int, float] | None]:
    """Seconds and scores, None if there is no good answer."""
    started = time.perf_counter()
    try:
        answer = await client.post("/rerank", json=body)
        rows = answer.json()["results"] if answer.status_code == 200 else None
    except httpx.HTTPError:
        rows = None
    found = None if rows is None else {row["index"]: row["relevance_score"] for row in rows}
    return time.perf_counter() - started, found


async def ask_all(url: str, bodies: list[Body], clients: int) -> tuple[float, list[tuple[float, dict[int, float] | None]]]:
    """Wall seconds, and each request's seconds and scores; client i sends bodies i, i + clients, ... one after the other."""
    found: dict[int, tuple[float, dict[int, float] | None]] = {}

    async def client_of(start: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120, verify=PLAIN) as client:
            await client.get("/health")  # the connection stands before the clock runs
            await ready.wait()
            for i in range(start, len(bodies), clients):
                found[i] = await ask(client, bodies[i])

    ready = asyncio.Event()
    tasks = [asyncio.create_task(client_of(i)) for i in range(clients)]
    await asyncio.sleep(1.0)
    started = time.perf_counter()
    ready.set()
    await asyncio.gather(*tasks)
    return time.perf_counter() - started, [found[i] for i in range(len(bodies))]


def judged(expected: list[dict[int, float]], answers: list[tuple[float, dict[int, float] | None]]) -> tuple[int, int]:
    """(lost, mixed up)."""
    lost = sum(scores is None for _, scores in answers)
    wrong = 0
    for wanted, (_, scores) in zip(expected, answers, strict=True):
        same = scores is None or (
            set(scores) == set(wanted) and all(abs(scores[i] - wanted[i]) <= TOLERANCE * max(1.0, abs(wanted[i])) for i in wanted)
        )
        wrong += not same
    return lost, wrong


def part(url: str, name: str, ranker: Ranker, singles: list[Body], many: list[Body]) -> dict[str, object]:
    expected = [{r["corpus_id"]: r["score"] for r in ranker.rank(b["query"], b["documents"])} for b in (*singles, *many)]
    _, alone = asyncio.run(ask_all(url, singles, 1))
    wall, together = asyncio.run(ask_all(url, many, CLIENTS))
    lost, wrong = judged(expected, [*alone, *together])
    single = statistics.median(seconds for seconds, _ in alone)
    p50, p95 = (float(np.percentile([seconds for seconds, _ in together], q)) for q in (50, 95))
    return {
        f"requests_{name}": len(alone) + len(together),
        f"lost_{name}": lost,
        f"mixed_up_{name}": wrong,
        f"single_ms_{name}": 1000 * single,
        f"p50_ms_{name}": 1000 * p50,
        f"p95_ms_{name}": 1000 * p95,
        f"p95_vs_single_{name}": p95 / single,
        f"requests_per_second_{name}": len(many) / wall,
        f"speedup_vs_one_by_one_{name}": len(many) * single / wall,
    }


def counted(url: str) -> dict[str, object]:
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(httpx.get(url + "/metrics").text)
    found = {s.name: s.value for f in families for s in f.samples}
    return {f"cache_{kind}": int(found[f"headwise_cache_{kind}_total"]) for kind in ("hits", "misses")}


def main() -> None:
    chosen = options(__doc__)
    ranker = Ranker(load(str(bundled_model(MODEL))))
    alone, many = bodies_of(SINGLES, 1), bodies_of(CLIENTS * chosen.repeats, 2)  # repeats: requests per client
    times = []
    for body in alone:
        started = time.perf_counter()
        ranker.rank(body["query"], body["documents"])
        times.append(time.perf_counter() - started)
    result: dict[str, object] = {
        "hardware": hardware(), "model": MODEL, "clients": CLIENTS, "passages": len(alone[0]["documents"]),
        "tokens": ranker.index(alone[0]["documents"]).tokens, "rank_alone_ms": 1000 * statistics.median(times),
    }  # fmt: skip
    same = alone[0]["documents"]
    with served() as url:
        asyncio.run(ask_all(url, bodies_of(3, 3), 1))  # the first passes of a process are slow
        result |= part(url, "uncached", ranker, alone, many)
        result |= part(url, "cached", ranker, *([{**b, "documents": same} for b in group] for group in (alone, many)))
        result |= counted(url)
    result["lost"] = sum(int(str(result[f"lost_{name}"])) for name in ("uncached", "cached"))
    result["mixed_up"] = sum(int(str(result[f"mixed_up_{name}"])) for name in ("uncached", "cached"))
    show(result, chosen.json)


if __name__ == "__main__":
    main()
