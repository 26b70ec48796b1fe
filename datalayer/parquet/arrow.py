"""pyarrow, or the sentence that says how to get it."""

from __future__ import annotations

from datalayer.errors import MissingDependencyError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingDependencyError(
        f"Parquet files need {error.name!r}, which is not installed", hint="pip install 'datalayer-online[parquet]'"
    ) from error

__all__ = ["pa", "pq"]
