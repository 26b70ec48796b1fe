"""Exported records as Parquet rows: one column for each member of the JSON form, `attributes` as JSON text."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any, Final

from datalayer.exporting.shapes import RECORD, column_of, shapes_of
from datalayer.exporting.sink import MARK
from datalayer.parquet.arrow import pa, pq

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.domains.record import Record
    from datalayer.exporting.shapes import Shape

_TYPES: Final = {
    "uuid": pa.string(),
    "uuids": pa.list_(pa.string()),
    "text": pa.string(),
    "int": pa.int64(),
    "json": pa.string(),
}
GROUP_ROWS: Final = 1 << 15
GROUP_BYTES: Final = 16 << 20
"""A row group is written when it has so many rows, or about so many bytes: what is held in memory."""


class ParquetSink:
    """Rows in groups; number and digest of the records are in the file's metadata, which is written last."""

    def __init__(self, file: IO[bytes], domain: str, header: dict[str, Any]) -> None:
        self._shapes = shapes_of(domain)
        self._header = header
        self._json = {spec.name for shape in self._shapes.values() for spec in shape.fields if spec.type == "json"}
        self._schema = _schema(list(self._shapes.values()))
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, records: Sequence[Record]) -> None:
        for record in records:
            row = self._shapes[record.kind].to_object(record)
            if len(self._shapes) > 1:
                row[RECORD] = record.kind
            for name in self._json & row.keys():
                row[name] = json.dumps(row[name], ensure_ascii=False, separators=(",", ":"))
            self._rows.append(row)
            self._bytes += sum(len(value) for value in record.fields if isinstance(value, str | bytes))
            if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
                self._flush()

    def finish(self, count: int, digest: str) -> None:
        self._flush()
        told = {**self._header, "end": True, "records": count, "digest": digest}
        self._writer.add_key_value_metadata({MARK: json.dumps(told)})
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0


def _schema(shapes: Sequence[Shape]) -> pa.Schema:
    fields: dict[str, pa.DataType] = {RECORD: pa.string()} if len(shapes) > 1 else {}
    for shape in shapes:
        fields |= dict.fromkeys(shape.key, pa.string())
        fields |= {"created_at": pa.string()} if shape.dated else {}
        fields |= {column_of(spec): _TYPES[spec.type] for spec in shape.fields}
    return pa.schema([*fields.items(), ("deleted", pa.bool_()), ("version", pa.int64())])
