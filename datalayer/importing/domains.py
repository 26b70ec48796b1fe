"""The import of a file into any domain: an export by its first line, or lines of an application's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from datalayer.errors import InvalidArgument
from datalayer.exporting.shapes import shapes_of
from datalayer.importing.exported import check_header, header_in
from datalayer.importing.media import import_media
from datalayer.importing.messages import import_messages
from datalayer.importing.reading import ImportReport, Progress, silent
from datalayer.importing.records import LINE_MAX, import_records
from datalayer.importing.users import import_users

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from datalayer.layer import DataLayer


async def import_domain(
    layer: DataLayer,
    domain: str,
    path: Path,
    *,
    lease: Callable[[], AbstractAsyncContextManager[int]],
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[Progress], None] = silent,
) -> ImportReport:
    """Import a file into a domain: an export as ``import_records`` or ``import_media``, any other as ``import_messages``
    or ``import_users``.

    InvalidArgument for a domain that only an export can be imported into, and for an export of another domain.
    """
    shapes_of(domain)
    header = await asyncio.to_thread(header_in, path, LINE_MAX)
    if header is not None:
        check_header(header, domain)
        if domain == "media":
            return await import_media(layer, path, on_error=on_error, progress=progress)
        return await import_records(layer, domain, path, lease=lease, on_error=on_error, progress=progress)
    if domain == "messages":
        return await import_messages(layer, path, on_error=on_error, progress=progress)
    if domain == "users":
        return await import_users(layer, path, on_error=on_error, progress=progress, lease=lease)
    raise InvalidArgument(f"{path} is no export, and {domain} are imported from one only")
