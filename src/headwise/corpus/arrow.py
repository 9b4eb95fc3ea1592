"""pyarrow, needed by every file of this room that reads or writes tables; without it the import says which extra to install."""

from __future__ import annotations

from headwise.heads.errors import MissingExtraError

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.fs as fs
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingExtraError("pyarrow", "scale") from error

__all__ = ["fs", "pa", "pc", "pq"]
