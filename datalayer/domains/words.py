"""Words: what of a text is searched, alike for every store.

A text is cut into words here, not by a search engine: each of them cuts in its own way, and a move between two would
change what is found. Stores index words joined by single spaces, and compare them byte for byte.

- Of HTML the text counts: tags of known names and comments are taken out (those of inline elements without a gap,
  ``<b>he</b>llo`` is one word), entities are resolved. ``a < b`` and ``vector<int>`` stay text.
- NFKC, case folded: ``Straße`` is ``strasse``, ``ﬁ`` is ``fi``.
- A word is a run of letters, digits, marks and ``_``. Of scripts that are written without spaces (Chinese, Japanese,
  Thai, Lao, Khmer, Burmese) each character is one, so that any run of them is found as a phrase.
- The first 64 characters of a word count, and the first 100,000 characters of words of a text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORD_MAX: Final = 64
TEXT_MAX: Final = 100_000
"""Characters of words and the spaces between them: 400 kB at most, which every store can index."""
MARKS_MAX: Final = 30
"""Marks on one character, as in Unicode's stream-safe form: ordering them costs the square of their number."""
_INLINE_NAMES: Final = (
    "a abbr b bdi bdo cite code del dfn em font i ins kbd mark q s samp small span strike strong sub sup tt u var wbr"
)
_BLOCK_NAMES: Final = (
    "address area article aside audio blockquote body br button canvas caption center col colgroup data datalist dd "
    "details dialog div dl dt embed fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html iframe "
    "img input label legend li link main map math menu meta meter nav noscript object ol optgroup option output p param "
    "picture pre progress rp rt ruby script section select slot source style summary svg table tbody td template "
    "textarea tfoot th thead time title tr track ul video"
)
_GAPS: Final = dict.fromkeys(_INLINE_NAMES.split(), "") | dict.fromkeys(_BLOCK_NAMES.split(), " ")
# The first '>' ends a tag, whatever is quoted: so no text makes this slower than its length.
_TAG: Final = re.compile(r"<(?:![^<>]*|/?([A-Za-z][A-Za-z0-9]*)(?:[\s/][^<>]*)?)>")
_SPACELESS: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uaa60-\uaa7f"
    "\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
_ASCII_WORD: Final = re.compile(r"[a-z0-9_]+")
_WORD: Final = re.compile(r"\w+")
_IGNORED: Final = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")
_WITHOUT_IGNORED: Final = dict.fromkeys(map(ord, _IGNORED))
_SCANNED: Final = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
"""Where marks are."""


class Place(NamedTuple):
    """A word, and from where to where it stands in the text."""

    word: str
    start: int
    end: int


def text_of(body: str) -> str:
    """The text of a message's body, which may be HTML or plain text."""
    if "<" in body:
        body = _TAG.sub(_without_tag, body)
    return html.unescape(body) if "&" in body else body


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    if text.isascii():
        return [word[:WORD_MAX] for word in _ASCII_WORD.findall(text.lower())]
    spaced = _SPACELESS.sub(_apart, _folded(text))
    # the pattern that knows marks looks at each character ten times as long
    pattern = _WORD if _unicode().marked.isdisjoint(spaced) else _unicode().word
    return [word[:WORD_MAX] for word in pattern.findall(spaced)]


def indexed(text: str) -> str:
    """The words of a text as stores keep them: joined by spaces, cut where there are too many."""
    joined = " ".join(words_of(text))
    return joined if len(joined) <= TEXT_MAX else joined[:TEXT_MAX].rpartition(" ")[0]


def places_of(text: str) -> Iterator[Place]:
    """The words of a text with their places in it. A character that becomes a word only by NFKC is left out."""
    patterns = _unicode()
    for run in patterns.run.finditer(text):
        whole, start = run[0], run.start()
        pieces: list[tuple[int, int]] = []
        at = 0
        for apart, chars in groupby(whole, key=_is_spaceless):
            size = len(list(chars))
            pieces += [(one, one + 1) for one in range(at, at + size)] if apart else [(at, at + size)]
            at += size
        for low, high in pieces:
            for word in words_of(whole[low:high]):
                yield Place(word, start + low, start + high)


def _without_tag(found: re.Match[str]) -> str:
    name = found[1]
    if name is None:
        return " "  # a comment
    gap = _GAPS.get(name)
    if gap is None:
        gap = _GAPS.get(name.lower(), found[0])
    return gap


def _folded(text: str) -> str:
    if not _IGNORED.isdisjoint(text):
        text = text.translate(_WITHOUT_IGNORED)
    if not _unicode().marked.isdisjoint(text):
        text = _unicode().marks.sub(_fewer_marks, text)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _fewer_marks(found: re.Match[str]) -> str:
    return found[0][:MARKS_MAX]


def _apart(found: re.Match[str]) -> str:
    return f" {found[0]} "


def _is_spaceless(char: str) -> bool:
    return _SPACELESS.match(char) is not None


class _Unicode(NamedTuple):
    """The patterns that need to know all marks, which ``re`` does not."""

    marked: frozenset[str]
    """Every mark."""
    word: re.Pattern[str]
    run: re.Pattern[str]
    """As ``word``, with what is ignored within one."""
    marks: re.Pattern[str]


@cache
def _unicode() -> _Unicode:
    """Made at the first use, in 15 ms."""
    category: Callable[[str], str] = unicodedata.category
    marks = [code for code in _SCANNED if category(chr(code))[0] == "M"]
    spans = []
    for _, group in groupby(enumerate(marks), key=lambda pair: pair[1] - pair[0]):
        run = [code for _, code in group]
        spans.append(f"{chr(run[0])}-{chr(run[-1])}")
    of_marks = "".join(spans)
    ignored = "".join(sorted(_IGNORED))
    return _Unicode(
        frozenset(map(chr, marks)),
        re.compile(f"[\\w{of_marks}]+"),
        re.compile(f"[\\w{of_marks}{ignored}]+"),
        re.compile(f"[{of_marks}]{{{MARKS_MAX + 1},}}"),
    )
