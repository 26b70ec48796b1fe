"""Objects of a bucket: written once (If-None-Match), large ones in parts, a part at a time in memory."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from datalayer.errors import DatalayerError, NotFound
from datalayer.stores.objects import NAME, ObjectInfo, Presigned, check_name, wrong_size
from datalayer.stores.s3.faults import BeyondEnd, Conflicting

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from datetime import datetime

    from datalayer.stores.s3.backend import S3Backend

PART: Final = 5 << 20
"""The smallest part that S3 takes; larger where the size asks for it."""
ONCE: Final = 8 << 20
"""An object of a known size up to this goes in one request, which costs less than two parts and three more requests."""
PARTS_MAX: Final = 9_000
SMALL: Final = 1 << 20
PIECE: Final = 1 << 20
"""Bytes that are read at once."""
UPLOADS_PAGE: Final = 1000
CONFLICTS_MAX: Final = 3
"""How often one request is sent while another write of its name is under way. An upload in parts is not sent again: its
parts are gone with it."""
CONFLICT_PAUSE_S: Final = 0.05


class S3Objects:
    """``Objects`` under one prefix of a bucket."""

    def __init__(self, backend: S3Backend, attempt: int) -> None:
        self._backend = backend
        self.place = "media" if attempt == 0 else f"media_{attempt}"
        self._prefix = f"{backend.prefix}{self.place}/"

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    async def create(self) -> None:
        """A prefix is there as soon as something lies under it."""

    async def drop(self) -> None:
        while page := await self.page("", 1000):
            await self.delete([info.name for info in page])
        await self.clear(1 << 62)

    # --- writing ---------------------------------------------------------------------------------------------------

    async def put(self, name: str, chunks: AsyncIterator[bytes], *, content_type: str, size: int | None = None) -> None:
        if size is not None and size <= SMALL:
            await self._put(name, chunks, content_type, PART)
            return
        # One byte more: what has just the size that was announced goes at once.
        part = PART if size is None else max(ONCE + 1 if size <= ONCE else PART, -(-size // PARTS_MAX))
        async with self._backend.large:
            await self._put(name, chunks, content_type, part)

    async def _put(self, name: str, chunks: AsyncIterator[bytes], content_type: str, part: int) -> None:
        key = self._key(name)
        held = bytearray()  # filled in place: pieces and what is joined of them would be twice the memory
        upload: _Parts | None = None
        try:
            async for chunk in chunks:
                held += chunk
                while len(held) >= part:
                    if upload is None:
                        upload = await _Parts.begin(self._backend, key, content_type)
                    piece = bytes(held[:part]) if len(held) > part else held
                    held = held[part:]
                    await upload.send(piece)
                    del piece
            if upload is None:
                await self._put_once(name, held, content_type)
                return
            if held:
                await upload.send(held)
            await upload.complete()
            upload = None
        finally:
            if upload is not None:
                await upload.abort()

    async def _put_once(self, name: str, body: bytes | bytearray, content_type: str) -> None:
        for attempt in range(1, CONFLICTS_MAX + 1):
            try:
                await self._backend.call(
                    "put_object",
                    f"object {name}",
                    Key=self._key(name),
                    Body=body,
                    ContentType=content_type,
                    IfNoneMatch="*",
                )
            except Conflicting:  # it is documented that the same request is sent again
                if attempt == CONFLICTS_MAX:
                    raise
                await asyncio.sleep(CONFLICT_PAUSE_S * attempt)
            else:
                return

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            await self._backend.call("delete_object", f"object {name}", Key=self._key(name))

    async def clear(self, before_us: int) -> int:
        done = 0
        markers: dict[str, str] = {}
        while True:
            page = await self._backend.call(
                "list_multipart_uploads",
                "a listing of uploads",
                Prefix=self._prefix,
                MaxUploads=UPLOADS_PAGE,
                **markers,
            )
            for upload in page.get("Uploads", ()):
                if _us(upload["Initiated"]) < before_us:
                    await _Parts(self._backend, upload["Key"], upload["UploadId"]).abort()
                    done += 1
            if not page.get("IsTruncated"):
                return done
            markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    # --- reading ---------------------------------------------------------------------------------------------------

    async def read(
        self, name: str, start: int = 0, stop: int | None = None, *, size: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        what = f"object {name}"
        if stop is not None and stop <= start:
            return
        part = {} if (start, stop) == (0, None) else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        try:
            found, chunk = await self._backend.run(what, self._begun, self._key(name), part)
        except BeyondEnd:
            if size is None:
                raise
            raise wrong_size(name) from None
        body, left = found["Body"], int(found["ContentLength"])
        try:
            if size is not None and _whole_size(found) != size:
                raise wrong_size(name)
            # To the byte: asking once more, to hear that there is nothing, is one more way to a thread and back.
            while chunk:
                left -= len(chunk)
                yield chunk
                chunk = await self._backend.run(what, body.read, min(PIECE, left)) if left else b""
        finally:
            body.close()

    def _begun(self, key: str, part: dict[str, str]) -> tuple[dict[str, Any], bytes]:
        """The answer to a read, and its first bytes: one call in a thread, and the only one for a small object."""
        found: dict[str, Any] = self._backend.client.get_object(Bucket=self._backend.bucket, Key=key, **part)
        try:
            return found, found["Body"].read(PIECE)
        except BaseException:  # whatever it was: the connection is given back, and it is raised again
            found["Body"].close()
            raise

    async def head(self, name: str) -> ObjectInfo | None:
        try:
            found = await self._backend.call("head_object", f"object {name}", Key=self._key(name))
        except NotFound:
            return None
        return ObjectInfo(name, found["ContentLength"], _us(found["LastModified"]))

    async def page(self, after: str, limit: int) -> Sequence[ObjectInfo]:
        found: list[ObjectInfo] = []
        start = self._prefix + after
        while len(found) < limit:
            page = await self._backend.call(
                "list_objects_v2", "a listing", Prefix=self._prefix, StartAfter=start, MaxKeys=min(1000, limit)
            )
            items = page.get("Contents", ())
            for item in items:
                name = item["Key"].removeprefix(self._prefix)
                if _is_name(name):
                    found.append(ObjectInfo(name, item["Size"], _us(item["LastModified"])))
            if not page.get("IsTruncated") or not items:
                break
            start = items[-1]["Key"]
        return found[:limit]

    # --- for others ------------------------------------------------------------------------------------------------

    async def presign_get(
        self, name: str, expires_s: int, *, content_type: str, filename: str | None, inline: bool
    ) -> str:
        shown = "inline" if inline else "attachment"
        named = "" if filename is None else f"; filename*=UTF-8''{quote(filename, safe='')}"
        parameters = {
            "Key": self._key(name),
            "ResponseContentType": content_type,
            "ResponseContentDisposition": shown + named,
        }
        return await self._presigned("get_object", parameters, expires_s)

    async def presign_put(self, name: str, expires_s: int, *, size: int, content_type: str, sha256: str) -> Presigned:
        parameters = {"Key": self._key(name), "ContentType": content_type, "ContentLength": size, "IfNoneMatch": "*"}
        headers = {"Content-Type": content_type, "Content-Length": str(size), "If-None-Match": "*"}
        if sha256:
            digest = base64.b64encode(bytes.fromhex(sha256)).decode()
            parameters["ChecksumSHA256"] = digest
            headers["x-amz-checksum-sha256"] = digest
        return Presigned(await self._presigned("put_object", parameters, expires_s), headers)

    async def _presigned(self, operation: str, parameters: dict[str, Any], expires_s: int) -> str:
        parameters["Bucket"] = self._backend.bucket
        sign = self._backend.client.generate_presigned_url
        url: str = await self._backend.run("a signature", sign, operation, parameters, expires_s)
        return url

    def public_url(self, name: str) -> str | None:
        cdn = self._backend.cdn_url
        return None if cdn is None else f"{cdn.rstrip('/')}/{self._key(name)}"


class _Parts:
    """One upload in parts. What is neither completed nor aborted is found by ``clear``."""

    def __init__(self, backend: S3Backend, key: str, upload: str) -> None:
        self._backend = backend
        self._about = {"Key": key, "UploadId": upload}
        self._what = f"an upload in parts of {key.rpartition('/')[2]}"
        self._parts: list[dict[str, Any]] = []

    @classmethod
    async def begin(cls, backend: S3Backend, key: str, content_type: str) -> _Parts:
        made = await backend.call("create_multipart_upload", "an upload in parts", Key=key, ContentType=content_type)
        return cls(backend, key, made["UploadId"])

    async def send(self, body: bytes | bytearray) -> None:
        number = len(self._parts) + 1
        sent = await self._backend.call("upload_part", self._what, PartNumber=number, Body=body, **self._about)
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})

    async def complete(self) -> None:
        parts = {"Parts": self._parts}
        await self._backend.call(
            "complete_multipart_upload", self._what, MultipartUpload=parts, IfNoneMatch="*", **self._about
        )

    async def abort(self) -> None:
        """Give the parts up; an upload that is gone, or a server that is, is left to ``clear``."""
        try:
            await self._backend.call("abort_multipart_upload", self._what, **self._about)
        except DatalayerError:
            return


def _whole_size(found: dict[str, Any]) -> int:
    """Of the object of which this is an answer, perhaps about a part of it ("bytes 5-9/100")."""
    return (
        int(str(found["ContentRange"]).rpartition("/")[2]) if "ContentRange" in found else int(found["ContentLength"])
    )


def _us(when: datetime) -> int:
    return round(when.timestamp() * 1_000_000)


def _is_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None
