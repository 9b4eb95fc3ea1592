"""How many bytes a cache of keys and values takes: the formula that measured sizes are held against.

Every position that a KV head holds costs (key width + value width) x bytes per number, in every batch row. Positions themselves (4 bytes for
each place of a group) and spare room of growing buffers come on top.
"""

from __future__ import annotations

from collections.abc import Sequence

from headwise.heads.errors import HeadwiseError


def cache_bytes(counts: Sequence[Sequence[int]], *, key_width: int, value_width: int, item_size: int, batch: int = 1) -> int:
    """Bytes of keys and values of all layers.

    Args:
        counts: [layer][KV head], positions held.
        key_width: Numbers per key.
        value_width: Numbers per value.
        item_size: Bytes per number (4 for float32, 2 for bfloat16).
        batch: Rows.

    Raises:
        HeadwiseError: A width, size or batch below 1, or a negative count.
    """
    if min(key_width, value_width, item_size, batch) < 1:
        raise HeadwiseError(
            f"widths, item size and batch must be at least 1; got {key_width}, {value_width}, {item_size}, {batch}"
        )
    if any(count < 0 for row in counts for count in row):
        raise HeadwiseError("a KV head cannot hold fewer than 0 positions")
    return sum(map(sum, counts)) * (key_width + value_width) * item_size * batch


def full_counts(length: int, layers: int, kv_heads: int) -> list[list[int]]:
    """[layer][KV head] of a cache that holds a whole text of `length` tokens; what `cache_bytes` takes."""
    return [[length] * kv_heads for _ in range(layers)]


def streaming_counts(length: int, is_streaming: Sequence[Sequence[bool]], sinks: int, recent: int) -> list[list[int]]:
    """Positions held where streaming heads keep a window and all others the whole text; what `cache_bytes` takes.

    Args:
        length: Tokens of the text.
        is_streaming: [layer][KV head].
        sinks: First positions that streaming heads hold.
        recent: Last positions that they hold.

    Returns:
        [layer][KV head].
    """
    window = min(length, sinks + recent)
    return [[window if streams else length for streams in row] for row in is_streaming]
