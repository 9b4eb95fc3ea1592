"""`headwise generate`: answer a prompt from a compressed cache, or by contrastive decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from torch import Tensor

    from headwise.caches.kept_cache import KeptCache
    from headwise.models.model import Model

    Encode = Callable[[Model, str], tuple[int, ...]]
    Head = Callable[[Model], tuple[int, ...]]
    Line = Callable[[Mapping[str, Any]], str]


def generate(
    model: o.ModelName = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt.", show_default=False)] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A text file that holds the prompt.", show_default=False)] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Method, e.g. snapkv:budget=256 or compresskv:heads=FILE,budget=0.1.", show_default="full"),
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            help="Contrastive decoding in place of a cache: heads:FILE,top=8 or prompt:FILE,alpha=0.2,plausibility=0.1 or model:NAME, or "
            "control:alpha=0.2 for a model of headwise train rhio. The answer follows its prompt more closely, be that right or wrong.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 64,
    prefill_chunk: Annotated[
        int | None, typer.Option(help="Read the prompt in chunks of this many tokens.", show_default="all at once")
    ] = None,
    save_cache: Annotated[
        Path | None, typer.Option(help="Also write the prompt's cache (safetensors).", show_default=False)
    ] = None,
    load_cache: Annotated[
        Path | None, typer.Option(help="Continue from a cache that --save-cache wrote; the prompt follows its text.", show_default=False)
    ] = None,
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Answer a prompt greedily from a compressed cache, and report how much of the full cache was held; or by contrastive decoding."""
    text = prompt_text(prompt, prompt_file)
    _check(max_new_tokens, save_cache)
    encode = partial(prompt_ids, chat=chat, chat_template_args=chat_template_args)
    if contrast is not None:
        _check_alone(cache, prefill_chunk, save_cache, load_cache)
        head = partial(_head, chat=chat, chat_template_args=chat_template_args)
        facts, line = _contrasted(contrast, text, encode, head, partial(o.load, model, device, dtype, revision), device, dtype, max_new_tokens)
    else:
        if load_cache is not None:
            _check_loading(load_cache, cache, chat, prefill_chunk)
        from headwise.cli.cache_methods import parse_cache, with_heads

        cache = with_heads(cache or "full", model)
        compressor = parse_cache(cache)
        loaded = o.load(model, device, dtype, revision, heads=getattr(compressor, "heads", None))
        facts, line = _compressed(loaded, compressor, cache, text, encode, prefill_chunk, save_cache, load_cache, max_new_tokens)
    if json:
        o.print_json(facts)
        return
    from headwise.report.console import print_all

    print_all(facts["text"], line(facts))


def _compressed(
    loaded: Model,
    compressor: Any,
    cache: str,
    text: str,
    encode: Encode,
    chunk: int | None,
    save_cache: Path | None,
    load_cache: Path | None,
    most: int,
) -> tuple[dict[str, Any], Line]:
    """What a compressed cache leads to, and what makes a line of it."""
    from headwise.attention.plan import attached
    from headwise.caches.kept_file import save_cache as save
    from headwise.evaluation.reading import continuation, size_of
    from headwise.report.compression import held_line

    with attached(loaded):
        if load_cache is None:
            kept, logits = _read(loaded, compressor, cache, encode(loaded, text), chunk)
        else:
            kept, logits = _behind(loaded, load_cache, text)
        read = kept.get_seq_length()
        method = cache if load_cache is None else f"from {load_cache.name}"
        facts = {"cache": method, "tokens": read, **size_of(kept)._asdict(), "skipped_layers": kept.skipped}
        if save_cache is not None:
            save(kept, save_cache)
        limit = min(most, (loaded.positions or 2**62) - read + 1)
        said = continuation(loaded.hf, kept, logits, loaded.stop_ids, limit)
    words = str(loaded.tokenizer.decode(said, skip_special_tokens=True))
    return {"text": words, "new_tokens": len(said), **facts}, held_line


def _contrasted(
    contrast: str, text: str, encode: Encode, head: Head, load: Callable[..., Model], device: str, dtype: str, most: int
) -> tuple[dict[str, Any], Line]:
    """What contrastive decoding leads to, and what makes a line of it."""
    from headwise.cli.contrasts import answered, fact_line, facts_of, parse_contrast

    words = parse_contrast(contrast)
    loaded = load(heads=words.scores)
    ids = encode(loaded, text)
    made = answered(loaded, words, ids, partial(encode, loaded), partial(head, loaded), device, dtype, most)
    return facts_of(words, made, len(ids)), fact_line


def _check_alone(cache: str | None, chunk: int | None, save_cache: Path | None, load_cache: Path | None) -> None:
    given = {"--cache": cache, "--prefill-chunk": chunk, "--save-cache": save_cache, "--load-cache": load_cache}
    if found := [name for name, value in given.items() if value is not None]:
        raise HeadwiseError(f"--contrast reads its prompts into full caches of its own; leave {found[0]} out")


def _check(max_new_tokens: int, save_cache: Path | None) -> None:
    if max_new_tokens < 1:
        raise HeadwiseError(f"--max-new-tokens must be at least 1; got {max_new_tokens}")
    if save_cache is None:
        return
    if save_cache.is_file():
        raise HeadwiseError(f"{save_cache} exists; give --save-cache another name (caches are never replaced)")
    o.check_file(save_cache, "--save-cache")


def _check_loading(file: Path, cache: str | None, chat: bool, chunk: int | None) -> None:
    if cache is not None:
        raise HeadwiseError("--load-cache brings its own cache; leave --cache out")
    if chat or chunk is not None:
        raise HeadwiseError("--load-cache continues a text that was already read; leave --chat and --prefill-chunk out")
    if not file.is_file():
        raise HeadwiseError(f"no such cache file: {file}")


def _read(loaded: Model, compressor: Any, method: str, ids: Sequence[int], chunk: int | None) -> tuple[KeptCache, Tensor]:
    """A cache of the prompt, and the logits [1, vocabulary] of its last token."""
    from headwise.caches.kept_cache import KeptCache
    from headwise.models.forward import token_tensor

    keeps = getattr(compressor, "positions_for", None)
    if keeps is not None and keeps(len(ids)) >= len(ids):
        raise HeadwiseError(f"the prompt has {len(ids)} tokens and {method} keeps as many: nothing would be dropped")
    kept = KeptCache(loaded, compressor)
    return kept, kept.prefill(token_tensor(loaded.hf, ids), chunk=chunk)


def _behind(loaded: Model, file: Path, text: str) -> tuple[KeptCache, Tensor]:
    """A saved cache with the prompt read behind what it holds, and the logits [1, vocabulary] of the last token."""
    import torch

    from headwise.caches.kept_file import load_cache
    from headwise.models.forward import forward, token_tensor
    from headwise.prompts.encoder import PieceEncoder

    kept = load_cache(file, loaded)
    ids, before = PieceEncoder(loaded.tokenizer).encode(text), kept.get_seq_length()
    if loaded.positions is not None and before + len(ids) > loaded.positions:
        raise HeadwiseError(
            f"the cache holds {before} tokens and the prompt has {len(ids)}, but {loaded.name} has {loaded.positions} positions; shorten it"
        )
    rows = next(iter(kept.kept_layers.values())).batch_size
    if rows != 1:
        raise HeadwiseError(f"the cache holds {rows} texts; --load-cache can continue only one")
    with torch.no_grad():
        return kept, forward(loaded.hf, token_tensor(loaded.hf, ids), kept, logits_to_keep=1).logits[:, -1]


def prompt_text(prompt: str | None, file: Path | None, name: str = "the prompt") -> str:
    """The prompt, given as it is or in a file. Raises `HeadwiseError` for both, neither, or an empty one. name: What messages call it."""
    if (prompt is None) == (file is None):
        raise HeadwiseError("give either --prompt or --prompt-file")
    from headwise.heads.files import read_text

    text = read_text(file, name) if file is not None else prompt or ""
    if not text.strip():
        raise HeadwiseError(f"{name} is empty")
    return text


def prompt_ids(loaded: Model, text: str, chat: bool, chat_template_args: str | None) -> tuple[int, ...]:
    """The user's turn of the chat template; without `chat` the prompt as it is, behind what the tokenizer puts in front of a text."""
    from headwise.prompts.encoder import PieceEncoder

    encoder = PieceEncoder(loaded.tokenizer)
    # A raw prompt may spell control tokens on purpose.
    ids = raw = (*encoder.bos, *loaded.tokenizer.encode(text, add_special_tokens=False))
    if chat or chat_template_args is not None:
        from headwise.prompts.prompt import Piece, PromptBuilder, Turn, chat_arguments

        builder = PromptBuilder(encoder, chat, chat_arguments(chat_template_args))
        ids = builder.build([Turn("user", (Piece(text),))]).ids if chat else raw
    most = loaded.positions
    if most is not None and len(ids) > most:
        raise HeadwiseError(f"the prompt has {len(ids)} tokens, but {loaded.name} has {most} positions; shorten it")
    return ids


def _head(loaded: Model, chat: bool, chat_template_args: str | None) -> tuple[int, ...]:
    """Ids in front of what the user says, where a control token stands; a chat template that strips such tokens is refused."""
    from headwise.prompts.control import check_control
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.prompt import PromptBuilder, chat_arguments

    builder = PromptBuilder(PieceEncoder(loaded.tokenizer), chat, chat_arguments(chat_template_args) if chat else None)
    check_control(builder)
    return builder.head
