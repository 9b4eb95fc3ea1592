"""The head of a GGUF file: what it says of the model, which tensors it holds, and how long it must be. No tensor is read."""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from headwise.heads.errors import HeadwiseError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
FIXED = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # number of a type -> struct's letter
LARGE = 1 << 62  # sizes beyond it are no sizes; struct and mmap refuse them in ways of their own
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. shape: as the file has it, fastest dimension first. kind: ggml's number of its type. offset: in the data part."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What stands in front of the tensors.

    Attributes:
        facts: Key -> value; for an array its number of elements.
        tensors: Name -> tensor.
        data: Where the data part begins, in bytes.
        size: Bytes of the file.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    data: int
    size: int

    @property
    def architecture(self) -> str:
        """Such as `llama`; "" if the file names none."""
        return str(self.facts.get("general.architecture", ""))

    def about(self, key: str) -> Any:
        """The value of `ARCHITECTURE.key`; None if it is not stated."""
        return self.facts.get(f"{self.architecture}.{key}")


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF files do, whatever it is called."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """The head of a GGUF file.

    Raises:
        HeadwiseError: It is no GGUF file, one of another version or byte order, or cut off within its head.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if file.read(4) != MAGIC:
                raise HeadwiseError(f"{path.name} is no GGUF file (it does not begin with 'GGUF')")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _header(_Reader(data, path.name), size)
    except OSError as error:
        raise HeadwiseError(f"{path.name} cannot be read: {error.strerror or error}") from error


def quantization_of(header: Header) -> str:
    """Name of how the weights are stored, such as `Q4_1` or `F16`: as the file states it, else the type of most weights.

    Needs the package gguf.
    """
    from gguf.constants import GGMLQuantizationType, LlamaFileType

    stated = header.facts.get("general.file_type")
    names = {int(kind): str(kind.name) for kind in LlamaFileType if kind is not LlamaFileType.GUESSED}
    if stated in names:
        return names[stated].removeprefix("MOSTLY_").removeprefix("ALL_")
    weights: Counter[int] = Counter()
    for tensor in header.tensors.values():
        if len(tensor.shape) > 1:
            weights[tensor.kind] += prod(tensor.shape)
    return str(GGMLQuantizationType(weights.most_common(1)[0][0]).name) if weights else "F32"


def check_length(header: Header, name: str) -> None:
    """Raise unless the file is as long as its head says, and every tensor is of a known type. Needs the package gguf.

    Args:
        header: The file's head.
        name: The file, for the message.
    """
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    end = header.data
    for key, tensor in header.tensors.items():
        if tensor.kind not in sizes:
            raise HeadwiseError(
                f"{name} stores {key} as type {tensor.kind}, which the installed package gguf does not know; update it"
            )
        block, width = sizes[tensor.kind]
        if tensor.shape and tensor.shape[0] % block:
            raise HeadwiseError(f"{name} is damaged: rows of {key} have {tensor.shape[0]} values, no multiple of {block}")
        end = max(end, header.data + tensor.offset + prod(tensor.shape) // block * width)
    if header.size < end:
        raise HeadwiseError(f"{name} is cut off: {header.size} bytes, its head names {end}; download it anew")


class _Reader:
    """Reads forward and never beyond the end."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data, self.name, self.at = data, name, 4

    def skip(self, width: int) -> int:
        """Where the next `width` bytes begin."""
        start = self.at
        if width > LARGE or start + width > len(self.data):
            raise HeadwiseError(f"{self.name} is cut off or damaged: its head does not end within its {len(self.data)} bytes")
        self.at = start + width
        return start

    def number(self, letter: str) -> Any:
        width = struct.calcsize("<" + letter)
        return struct.unpack_from("<" + letter, self.data, self.skip(width))[0]

    def text(self) -> str:
        width = self.number("Q")
        start = self.skip(width)
        return str(self.data[start : start + width], "utf-8", "replace")

    def value(self) -> Any:
        kind = self.number("I")
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(self.letter(kind))
        of, count = self.number("I"), self.number("Q")
        if of != STRING:
            self.skip(count * struct.calcsize("<" + self.letter(of)))
            return count
        for _ in range(count):
            self.skip(self.number("Q"))
        return count

    def letter(self, kind: int) -> str:
        if kind not in FIXED:
            raise HeadwiseError(f"{self.name} is damaged: its head holds a value of the unknown type {kind}")
        return FIXED[kind]


def _header(reader: _Reader, size: int) -> Header:
    version = reader.number("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        kind = "a big-endian GGUF file" if swapped else f"a GGUF file of version {version}"
        raise HeadwiseError(f"{reader.name} is {kind}; little-endian files of versions 2 and 3 are read: convert the model anew")
    count, stated = reader.number("Q"), reader.number("Q")
    facts: dict[str, Any] = {}
    for _ in range(stated):
        key = reader.text()
        facts[key] = reader.value()
    tensors: dict[str, Tensor] = {}
    for _ in range(count):
        name, dimensions = reader.text(), reader.number("I")
        if dimensions > MOST_DIMENSIONS:
            raise HeadwiseError(f"{reader.name} is damaged: {name[:40]!r} has {dimensions} dimensions")
        shape = tuple(reader.number("Q") for _ in range(dimensions))
        tensors[name] = Tensor(shape, reader.number("I"), reader.number("Q"))
    alignment = facts.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise HeadwiseError(f"{reader.name} is damaged: its tensors are aligned to {alignment!r} bytes")
    return Header(facts, tensors, -(-reader.at // alignment) * alignment, size)
