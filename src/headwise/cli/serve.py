"""`headwise serve`: rank passages for other programs, over HTTP."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.notes import tell_held
from headwise.heads.errors import HeadwiseError, MissingExtraError
from headwise.heads.text import printable

if TYPE_CHECKING:
    from headwise.heads import HeadScores, HeadSet
    from headwise.methods.query.ranker import Ranker
    from headwise.models.model import Model
    from headwise.serve.run import Server


def serve(
    context: typer.Context,
    model: o.ModelName = None,
    heads: Annotated[
        Path | None, typer.Option(help="Head file; best one from `headwise detect query`.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the strongest heads to rank with.")] = 8,
    all_heads: Annotated[bool, typer.Option("--all-heads", help="Rank with all heads instead of those of --heads.")] = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other machines can be served only with a key or --no-auth.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one and prints it.")] = 8080,
    wording: Annotated[
        str | None, typer.Option(help="Wording around passages: plain or instructed.", show_default="plain")
    ] = None,
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    official: Annotated[
        bool, typer.Option("--official", help="The released QRHead procedure; refuses what does not fit.")
    ] = False,
    max_body: Annotated[int, typer.Option(help="Largest request in bytes.")] = 4 * 2**20,
    max_passages: Annotated[int, typer.Option(help="Most passages per request.")] = 1000,
    queue: Annotated[int, typer.Option(help="Most requests that wait; further ones are refused (429).")] = 128,
    cache_tokens: Annotated[int, typer.Option(help="Tokens of computed passages to keep for later queries.")] = 32_768,
    max_connections: Annotated[int, typer.Option(help="Most open connections; beyond them the idlest is closed.")] = 512,
    timeout: Annotated[float, typer.Option(help="Longest wait for an answer, in seconds.")] = 60.0,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Serve other machines without a key.")] = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
) -> None:
    """Rank passages over HTTP: /rerank for clients of Cohere, Jina and text-embeddings-inference; the key is read from HEADWISE_API_KEY."""
    try:
        from headwise.serve import limits, run
    except ImportError as error:
        raise MissingExtraError(error.name or "FastAPI", "serve") from error
    if official and wording is not None:
        raise HeadwiseError("--official has its own wording; leave --wording out")
    if all_heads:
        o.refuse_unused(context, ("top",), "chooses among the heads of --heads FILE; leave it out with --all-heads")
    given = _chat_arguments(chat_template_args)
    key = limits.key_from(os.environ, no_auth)
    limits.check_exposure(host, key, no_auth)
    bounds = {"max_body": max_body, "max_passages": max_passages, "queue": queue, "cache_tokens": cache_tokens}
    settings = limits.Settings(api_key=key, timeout=timeout, max_connections=max_connections, **bounds)
    scores = _scores(heads, all_heads)  # before the model, so that a wrong file is told at once
    chosen = None if scores is None else scores.top(top)

    def make() -> Ranker:
        loaded = o.load(model, device, dtype, revision, heads=scores)
        ranker = _ranker(loaded, chosen, official, wording or "plain", chat, given)
        tell_held()
        typer.echo(printable(f"ready      {ranker.model.name}, {len(ranker.heads)} heads ({ranker.heads.chosen_by})"))
        return ranker

    listening = run.bind(host, port)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"listening  http://{shown}:{listening.getsockname()[1]}/rerank, {'with' if key else 'without'} a key")
    server = run.make_server(make, settings)
    run.serve(server, listening)
    _end(server)


def _scores(file: Path | None, every: bool) -> HeadScores | None:
    """None: all heads."""
    if (file is None) != every:
        raise HeadwiseError("say which heads to rank with: either --heads FILE (and --top K) or --all-heads")
    return None if file is None else o.read_scores(file)


def _chat_arguments(given: str | None) -> dict[str, Any]:
    from headwise.prompts.prompt import chat_arguments

    return chat_arguments(given)


def _ranker(loaded: Model, heads: HeadSet | None, official: bool, wording: str, chat: bool, given: Mapping[str, Any]) -> Ranker:
    from headwise.methods.query.ranker import Ranker

    if official:
        return Ranker.official(loaded, heads, chat, given)
    return Ranker(loaded, heads, wording=wording, chat=chat, chat_args=given)


def _end(server: Server) -> None:
    """Leave at once where a load or a pass is not waited for; Python must not be torn down under it."""
    if server.work.thread.is_alive():
        sys.stdout.flush()
        os._exit(130 if server.force_exit else 0)
