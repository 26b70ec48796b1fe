"""What the indexes of a search place look like in OpenSearch.

Words are cut by the library (``domains.words``); the server parts them at the spaces between and does nothing else. An
index is never altered: a new shape is a new attempt, filled anew, so ``SHAPE`` rises and an index of another shape is
refused. Every index is reached by an alias of its own: a write that names an alias makes no index by itself.
"""

from __future__ import annotations

from typing import Any, Final

SHAPE: Final = 1
REFRESH_S: Final = 0.25
_WORDS: Final[dict[str, Any]] = {"type": "text", "analyzer": "datalayer_words", "norms": False}
_KEYWORD: Final[dict[str, Any]] = {"type": "keyword"}
_ANALYSIS: Final[dict[str, Any]] = {"analyzer": {"datalayer_words": {"type": "custom", "tokenizer": "whitespace"}}}
_PROPERTIES: Final[dict[str, dict[str, Any]]] = {
    "messages": {
        "conversation": _KEYWORD,
        "id": _KEYWORD,
        "sender": _KEYWORD,
        "body": _WORDS,
        "deleted": {"type": "boolean"},
        "version": {"type": "long", "index": False},
    },
    "users": {
        "id": _KEYWORD,
        "username": _KEYWORD,
        "names": _WORDS,
        "deleted": {"type": "boolean"},
        "version": {"type": "long", "index": False},
    },
    # what the backend says of itself: two documents, read by id, searched by nobody
    "state": {"content": {"type": "object", "enabled": False}},
}


def alias_of(prefix: str, base: str, attempt: int = 0) -> str:
    """The name by which an index is used: ``base`` is messages, users or state."""
    if base == "state":
        return f"{prefix}-state"
    return f"{prefix}-search-{base}" + (f"-{attempt}" if attempt else "")


def index_of(alias: str) -> str:
    """The index behind an alias."""
    return f"{alias}.index"


def creation(base: str, alias: str) -> dict[str, Any]:
    """The body that makes an index. Shards and replicas are the cluster's affair (index templates)."""
    settings: dict[str, Any] = {"index": {"refresh_interval": f"{round(REFRESH_S * 1000)}ms"}, "analysis": _ANALYSIS}
    if base == "state":
        settings = {"index": {"number_of_shards": 1}}
    return {"settings": settings, "mappings": mapping(base), "aliases": {alias: {"is_write_index": True}}}


def mapping(base: str) -> dict[str, Any]:
    """The mapping of an index. An unknown field is refused."""
    return {"dynamic": "strict", "_meta": {"datalayer_shape": SHAPE}, "properties": _PROPERTIES[base]}


def difference(base: str, found: Any) -> str | None:
    """How a mapping differs from ours, in a few words; None where it does not."""
    shape = (found.get("_meta") or {}).get("datalayer_shape")
    if shape is None:
        return "is not one of datalayer's"
    if shape != SHAPE:
        return f"has the shape {shape}, not {SHAPE}"
    if str(found.get("dynamic")) != "strict":
        return "takes unknown fields"
    theirs, ours = found.get("properties") or {}, _PROPERTIES[base]
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            return f"has another field {name}"
    return None
