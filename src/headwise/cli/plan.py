"""`headwise plan`: how much memory long requests take, and which layers must keep their keys and values on the host."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.notes import tell
from headwise.heads.errors import HeadwiseError
from headwise.heads.text import shorten

if TYPE_CHECKING:
    from headwise.models.model import Model
    from headwise.runtime.memory_plan import Sizes

MOST_REQUESTS = 100_000
LARGEST = 2**62  # bytes, and tokens
BYTES = {
    unit + end: base**power for base, end in ((1000, "B"), (1024, "iB")) for power, unit in enumerate(("K", "M", "G", "T"), 1)
}
TOKENS = {"": 1, "K": 2**10, "M": 2**20}
DTYPES = ("float32", "bfloat16", "float16")
UNUSED = ("gguf_file", "packed", "adapter")


def plan(
    context: typer.Context,
    model: o.ModelName = None,
    memory: Annotated[str, typer.Option(help="Memory of the device, e.g. 24GiB or 80GB.")] = ...,  # type: ignore[assignment]
    length: Annotated[
        str,
        typer.Option(
            help="Tokens per request, those to come included: 65536, 64k (k is 1,024), or one length for each request, 8k,64k."
        ),
    ] = ...,  # type: ignore[assignment]
    requests: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_REQUESTS, help="Requests at a time.", show_default="one for each length"),
    ] = None,
    budget: Annotated[
        int, typer.Option(min=1, help="Positions per request that a layer on the host keeps on the device.")
    ] = 2048,
    dtype: Annotated[str, typer.Option(help="Of weights, keys and values: float32, bfloat16 or float16.")] = "bfloat16",
    overlap: Annotated[float, typer.Option(min=0, max=1, help="Share of a step's positions that the step before had too.")] = 0.8,
    bandwidth: Annotated[str, typer.Option(help="From the host to the device, per second.")] = "25GB/s",
    buffers: Annotated[float, typer.Option(min=0, max=10, help="Run-time buffers as a share of the weights.")] = 0.3,
    draft: Annotated[
        float, typer.Option(min=0, max=10, help="Layers of keys and values that the chooser keeps; 0: it has no draft.")
    ] = 0.5,
    alpha: Annotated[
        float,
        typer.Option(min=0, max=1000, help="Layers of keys and values copied to all query heads; the paper has their ratio."),
    ] = 0.0,
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Plan the memory of sparse decoding: layers on the device, bytes moved per step, largest batch. Reads the configuration, never a weight."""
    o.refuse_unused(context, UNUSED, "changes nothing here: headwise plan reads the configuration of an unpacked model only")
    if dtype not in DTYPES:
        raise HeadwiseError(f"unknown dtype {dtype!r}; use {', '.join(DTYPES)}")
    room, lengths, speed = (
        bytes_of(memory, "memory"),
        _lengths(length, requests),
        bytes_of(bandwidth.removesuffix("/s"), "bandwidth"),
    )
    outlined = _outline(model, dtype, revision)
    if outlined.positions is not None and max(lengths) > outlined.positions:
        raise HeadwiseError(
            f"a request of {max(lengths)} tokens does not fit {outlined.name}, which has {outlined.positions} positions; choose a shorter --length"
        )
    facts = _facts(outlined, _sizes(outlined, budget, draft, alpha, buffers), room, lengths, overlap, speed)
    if json:
        o.print_json(facts)
    else:
        _print(facts)


def bytes_of(text: str, name: str) -> int:
    """Bytes from a number with a unit: B, kB, MB, GB, TB (powers of 1,000), KiB to TiB (of 1,024).

    Raises:
        HeadwiseError: It is something else, or not at least one byte.
    """
    return _number(text, name, {"": 1, "B": 1} | BYTES, "a size like 24GiB or 80GB")


def _number(text: str, name: str, units: dict[str, int], wanted: str) -> int:
    found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([A-Za-z]*)", text.strip())
    factor = None if found is None else {unit.upper(): value for unit, value in units.items()}.get(found[2].upper())
    value = 0 if found is None or factor is None else int(float(found[1]) * factor)
    if not 0 < value <= LARGEST:
        raise HeadwiseError(f"--{name} takes {wanted}; got {shorten(repr(text))}")
    return value


def _lengths(text: str, requests: int | None) -> list[int]:
    """Tokens of each request."""
    found = [_number(part, "length", TOKENS, "numbers of tokens like 65536, 64k or 8k,64k") for part in text.split(",")]
    if len(found) > 1 and requests not in (None, len(found)):
        raise HeadwiseError(
            f"--length names {len(found)} requests, --requests {requests}; give one length, or one for each request"
        )
    return found * (requests or 1) if len(found) == 1 else found


def _outline(model: str | None, dtype: str, revision: str | None) -> Model:
    import torch

    from headwise.models.model import says_quantized
    from headwise.models.names import DEFAULT
    from headwise.models.outline import outline

    found = outline(
        DEFAULT if model is None else model, getattr(torch, dtype), revision, **o.shared("trust_remote_code", "offline")
    )
    if says_quantized(found.hf.config):
        tell(f"the weights of {found.name} are quantized; they count as unpacked to {dtype}")
    return found


def _sizes(model: Model, budget: int, draft: float, alpha: float, buffers: float) -> Sizes:
    """What memory depends on. The chooser's own weights are its projections of queries and keys: its embedding is the model's."""
    from headwise.models.placement import weight_bytes
    from headwise.runtime.memory_plan import LayerShape, Sizes

    heads, dtype = model.heads, model.hf.dtype
    width = model.hf.config.get_text_config(decoder=True).hidden_size
    projections = width * (heads.shape[1] + heads.kv_heads) * heads.head_dim * dtype.itemsize
    layers = tuple(LayerShape(heads.kv_heads, heads.head_dim, heads.head_dim, window) for window in heads.windows.values())
    return Sizes(
        weight_bytes(model.hf, dtype),
        layers,
        dtype.itemsize,
        budget,
        projections if draft else 0,
        draft,
        alpha,
        buffers,
    )


def _facts(model: Model, sizes: Sizes, memory: int, lengths: list[int], overlap: float, bandwidth: int) -> dict[str, Any]:
    """Everything the command tells, as plain data."""
    from headwise.runtime import memory_plan as m

    every, on_host, longest = len(sizes.movable), m.layers_on_host(sizes, memory, lengths), max(lengths)
    layers = list(model.heads.windows)
    moved = m.moved_bytes(sizes, lengths, on_host, overlap)
    limits = m.thresholds(sizes, memory, len(lengths))
    return {
        "model": model.name,
        "parameters": sum(parameter.numel() for parameter in model.hf.parameters()),
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "memory": memory,
        "lengths": lengths,
        "budget": sizes.budget,
        "weights_bytes": sizes.weights,
        "draft_bytes": sizes.draft_weights,
        "buffer_bytes": m.fixed_bytes(sizes) - sizes.weights - sizes.draft_weights,
        "layers": len(layers),
        "sliding_layers": len(layers) - every,
        "layers_on_device": len(layers) - on_host,
        "layers_on_host": sorted(layers[i] for i in sizes.movable[:on_host]),
        "device_bytes": m.device_bytes(sizes, lengths, on_host),
        "device_bytes_all": m.device_bytes(sizes, lengths),
        "device_bytes_least": m.device_bytes(sizes, lengths, every),
        "host_bytes": m.host_bytes(sizes, lengths, on_host),
        "moved_bytes": moved,
        "moved_bytes_without_overlap": m.moved_bytes(sizes, lengths, on_host, 0.0),
        "overlap": overlap,
        "bandwidth": bandwidth,
        "moved_seconds": m.transfer_seconds(moved, bandwidth),
        "thresholds": list(limits),
        "read_break_even": m.read_break_even(sizes),
        "largest_batch_on_device": m.largest_batch(sizes, memory, longest, 0),
        "largest_batch": m.largest_batch(sizes, memory, longest, every),
        "positions": model.positions,
    }


def _print(facts: dict[str, Any]) -> None:
    from headwise.report.console import facts_table, print_all
    from headwise.runtime.memory_plan import size_text as size

    lengths, away, limits = facts["lengths"], facts["layers_on_host"], facts["thresholds"]
    count, longest = len(lengths), max(lengths)
    each = f"{longest:,} tokens" if min(lengths) == longest else f"{min(lengths):,} to {longest:,} tokens"
    even = facts["read_break_even"]
    limit = facts["positions"]
    rows = {
        "model": f"{facts['model']}, {facts['parameters']:,} parameters in {facts['dtype']}",
        "requests": f"{count:,} of {each}, {sum(lengths):,} in all; budget {facts['budget']:,}",
        "weights": f"{size(facts['weights_bytes'])}, chooser {size(facts['draft_bytes'])}, run-time buffers {size(facts['buffer_bytes'])}",
        "layers on the device": f"{facts['layers_on_device']} of {facts['layers']}{_sliding(facts['sliding_layers'])}",
        "layers on the host": f"{len(away)}: {away[0]} to {away[-1]}" if len(away) > 1 else f"1: {away[0]}" if away else "none",
        "memory on the device": f"{size(facts['device_bytes'])} of {size(facts['memory'])}; all keys and values there: "
        f"{size(facts['device_bytes_all'])}, none: {size(facts['device_bytes_least'])}",
        "memory on the host": size(facts["host_bytes"]),
        "moved per step": f"{size(facts['moved_bytes'])}, {1000 * facts['moved_seconds']:.3g} ms at {facts['bandwidth'] / 1e9:g} GB/s "
        f"(overlap {facts['overlap']:g}; the whole budget: {size(facts['moved_bytes_without_overlap'])})",
        "longest, all on the device": f"{_tokens(limits[0], limit)} per request, {count:,} of equal length",
        "longest, all on the host": f"{_tokens(limits[-1], limit)} per request, {count:,} of equal length",
        "the host saves memory": f"from {facts['budget'] + 1:,} tokens per request",
        "sparse reads less": "at no length: the draft reads as much as the layers" if even is None else f"from {even:,} tokens",
        f"largest batch, {longest:,} tokens": f"{facts['largest_batch_on_device']:,} on the device, {facts['largest_batch']:,} with the host",
    }
    print_all(facts_table("plan", "", rows))


def _tokens(limit: int | None, positions: int | None) -> str:
    """A threshold, and that the model's positions end before it where they do."""
    if limit is None:
        return "any number of tokens"
    told = f"{limit:,} tokens"
    return told if positions is None or limit <= positions else f"{told} (the model has {positions:,} positions)"


def _sliding(count: int) -> str:
    return f"; {count} have a sliding window and always stay" if count else ""
