"""What a long command shows while it works: a bar on a terminal, events under --json, a line for each step."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, Final

from datalayer.cli.console import Console
from datalayer.migrators.plan import IN_HOLD

DRAW_EVERY_S: Final = 0.1
EVENT_EVERY_S: Final = 0.5
TRYING_AGAIN: Final = "trying again"
"""How the engine's note of a stage that failed and begins anew ends."""
_CLEAR: Final = "\r\x1b[K"
_BAR_MAX: Final = 30
_WIDTH_MIN: Final = 70


class ProgressBar:
    """One line on stderr, drawn again in place; nothing at all where stderr is no terminal."""

    def __init__(self, console: Console, unit: str = "rows") -> None:
        self._on = console.terminal
        self._unit = unit
        self._drawn_at = 0.0
        self._shown = False
        self._told_at = 0.0

    def event_due(self) -> bool:
        """Whether it is time for another event under --json: twice a second."""
        now = time.monotonic()
        if now - self._told_at < EVENT_EVERY_S:
            return False
        self._told_at = now
        return True

    def draw(self, what: str, done: int, total: int, per_s: float) -> None:
        """Show how far it is; at most ten times a second."""
        now = time.monotonic()
        if not self._on or now - self._drawn_at < DRAW_EVERY_S:
            return
        self._drawn_at = now
        self._shown = True
        columns = shutil.get_terminal_size().columns
        sys.stderr.write(_CLEAR + line(what, done, total, per_s, unit=self._unit, columns=columns))
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the bar away, so that a line of text can follow."""
        if self._shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
            self._shown = False


def line(what: str, done: int, total: int, per_s: float, *, unit: str, columns: int) -> str:
    """The text of a bar: name, share, bar, count, rate and the time that is left."""
    share = min(done / total, 1.0) if total > 0 else 0.0
    left = max(total - done, 0) / per_s if per_s > 0 else None
    tail = f" {done:,} of {total:,} {unit}  {per_s:,.0f}/s  {duration(left)} left"
    head = f"{what} {share:4.0%} "
    room = min(columns - len(head) - len(tail) - 3, _BAR_MAX)
    if columns < _WIDTH_MIN or room < 5:
        return (head + tail)[: max(columns - 1, 10)]
    full = round(room * share)
    return f"{head}[{'#' * full}{'.' * (room - full)}]{tail}"


def duration(seconds: float | None) -> str:
    """A time span for people."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


class Watcher:
    """The engine's reporter on the command line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = ProgressBar(console)
        self._event_at: dict[str, float] = {}
        self._in_hold = False
        self._later: list[tuple[dict[str, Any], str]] = []
        self._said: set[str] = set()
        self._repeated: set[str] = set()

    def stage(self, stage: str, phase: str) -> None:
        self._tell({"event": "stage", "stage": str(stage), "phase": phase}, f"{stage} (phase {phase})")

    def step(self, action: str, state: str, detail: str) -> None:
        if action in IN_HOLD:
            self._in_hold = not (state == "failed" or (state == "done" and action == IN_HOLD[-1]))
        texts = {"done": f"  {action}: {detail}", "failed": f"  {action} failed: {detail}"}
        event = {"event": "step", "action": str(action), "state": state, "detail": detail}
        self._tell(event, texts.get(state, ""))

    def progress(self, run: str, done: int, total: int, rows_per_s: float) -> None:
        self._bar.draw(run, done, total, rows_per_s)
        now = time.monotonic()
        if now - self._event_at.get(run, 0.0) < EVENT_EVERY_S:
            return
        self._event_at[run] = now
        left_s = round(max(total - done, 0) / rows_per_s, 1) if rows_per_s > 0 else None
        rate = round(rows_per_s, 1)
        told = {"run": run, "rows": done, "rows_estimated": total, "rows_per_s": rate, "eta_s": left_s}
        self._console.event({"event": "progress", **told})

    def note(self, text: str) -> None:
        self._tell({"event": "note", "text": text}, text)

    def close(self) -> None:
        """Leave the terminal clean, nothing unsaid."""
        self._in_hold = False
        self._flush()
        self._bar.clear()

    def _tell(self, event: dict[str, Any], text: str) -> None:
        self._later.append((event, text))
        # Nothing is written while applications wait for the end of a hold: a terminal or a pipe may block its writer.
        if not self._in_hold:
            self._flush()

    def _flush(self) -> None:
        told, self._later = self._later, []
        for event, text in told:
            self._console.event(event)
            if text and not self._repeats(text):
                self._bar.clear()
                self._console.say(text)

    def _repeats(self, text: str) -> bool:
        """Whether an attempt says what the attempt before it said: an outage is told once, not once a second."""
        repeats = text in self._repeated
        if not repeats:
            self._repeated = set()
            self._said.add(text)
            if text.endswith(TRYING_AGAIN):
                self._repeated, self._said = self._said, set()
        return repeats
