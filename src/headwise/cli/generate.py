"""`headwise generate`: answer a prompt from a compressed cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwise.cli import options as o
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.models.model import Model


def generate(
    model: o.ModelName = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt.", show_default=False)] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A text file that holds it.", show_default=False)] = None,
    cache: Annotated[str, typer.Option(help="Method, e.g. snapkv:budget=256 or compresskv:heads=FILE,budget=0.1.")] = "full",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 64,
    prefill_chunk: Annotated[
        int | None, typer.Option(help="Read the prompt so many tokens at a time.", show_default="all at once")
    ] = None,
    save_cache: Annotated[
        Path | None, typer.Option(help="Also write the prompt's cache (safetensors).", show_default=False)
    ] = None,
    chat: o.Chat = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Answer a prompt greedily from a compressed cache, and tell how much of the full cache was held."""
    from headwise.cli.cache_methods import parse_cache, with_heads

    cache = with_heads(cache, model)
    text, compressor = _text(prompt, prompt_file), parse_cache(cache)
    if max_new_tokens < 1:
        raise HeadwiseError(f"--max-new-tokens must be at least 1; got {max_new_tokens}")
    if save_cache is not None and save_cache.exists():
        raise HeadwiseError(f"{save_cache} exists; give --save-cache another name (caches are never replaced)")
    loaded = o.load(model, device, dtype, revision)
    ids = _ids(loaded, text, chat)
    keeps = getattr(compressor, "positions_for", None)
    if keeps is not None and keeps(len(ids)) >= len(ids):
        raise HeadwiseError(f"the prompt has {len(ids)} tokens and {cache} keeps as many: nothing would be dropped")
    from headwise.caches.kept_cache import compress
    from headwise.caches.kept_file import save_cache as save
    from headwise.evaluation.compression import continuation, size_of
    from headwise.prompts.encoder import newline_ids
    from headwise.runtime.answer import stop_ids
    from headwise.runtime.runner import token_tensor

    limit = min(max_new_tokens, (loaded.positions or 2**62) - len(ids) + 1)
    with compress(loaded.hf, compressor) as kept:
        logits = kept.prefill(token_tensor(loaded.hf, ids), chunk=prefill_chunk)
        facts = {"cache": cache, "tokens": len(ids), **size_of(kept)._asdict(), "skipped_layers": kept.skipped}
        if save_cache is not None:
            save(kept, save_cache)
        said = continuation(loaded.hf, kept, logits, stop_ids(loaded) - newline_ids(loaded.tokenizer), limit)
    words = str(loaded.tokenizer.decode(said, skip_special_tokens=True))
    if json:
        o.print_json({"text": words, "new_tokens": len(said), **facts})
        return
    from headwise.report.compression import held_line
    from headwise.report.console import print_all

    print_all(words, held_line(facts))


def _text(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise HeadwiseError("give either --prompt or --prompt-file")
    try:
        text = file.read_text("utf-8") if file is not None else prompt or ""
    except (OSError, UnicodeDecodeError) as error:
        raise HeadwiseError(f"cannot read the prompt from {file}: {error}") from error
    if not text.strip():
        raise HeadwiseError("the prompt is empty")
    return text


def _ids(loaded: Model, text: str, chat: bool) -> tuple[int, ...]:
    """The prompt as the tokenizer has it, or as the user's turn of the chat template."""
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.frame import frame

    encoder = PieceEncoder(loaded.tokenizer)
    head, tail = frame(encoder, chat)
    ids = (*head, *encoder.encode(text), *tail) if chat else tuple(loaded.tokenizer.encode(text))
    most = loaded.positions
    if most is not None and len(ids) > most:
        raise HeadwiseError(f"the prompt has {len(ids)} tokens, but {loaded.name} has {most} positions; shorten it")
    return ids
