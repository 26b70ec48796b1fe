"""One process that uses presence, typing, sessions, media, conversations and search, and judges what it sees.

    python -m tests.acceptance.side_traffic --config FILE --ledger FOLDER --name NAME

What it was told when a call ended is held against every later answer; what it knows at its end goes into FOLDER/NAME.json,
for `tests.acceptance.side_judge` to hold against what a fresh process reads.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from datalayer.layer import DataLayer, LayerOptions
from datalayer.testing.workload import say, stop_at_end_of_input
from tests.acceptance.side_kinds import MediaTraffic, PresenceTraffic, SessionTraffic, Traffic, TypingTraffic
from tests.acceptance.side_rooms import ConversationTraffic, SearchTraffic

KINDS: tuple[type[Traffic], ...] = (
    PresenceTraffic,
    TypingTraffic,
    SessionTraffic,
    MediaTraffic,
    ConversationTraffic,
    SearchTraffic,
)


def kinds_in(layer: DataLayer) -> list[type[Traffic]]:
    """The traffic of domains that this version serves and this deployment has a place for."""
    return [kind for kind in KINDS if hasattr(layer, kind.domain) and layer.router(kind.domain).serves]


def write_facts(folder: Path, name: str, kinds: Sequence[Traffic]) -> None:
    """What was found and what is known, into a file."""
    told = {kind.domain: {"found": asdict(kind.found), "facts": kind.facts()} for kind in kinds}
    (folder / f"{name}.json").write_text(json.dumps(told))


async def run(options: argparse.Namespace, layer: DataLayer) -> None:
    """Work until standard input ends."""
    kinds = [kind(layer, f"{options.seed}/{options.name}/{kind.domain}") for kind in kinds_in(layer)]
    say({"ready": options.name, "domains": [kind.domain for kind in kinds]})
    stop = stop_at_end_of_input(float("inf"))

    async def work(kind: Traffic) -> None:
        while not stop.is_set():
            await kind.step()
            await asyncio.sleep(1 / options.rate)

    await asyncio.gather(*(work(kind) for kind in kinds))
    write_facts(options.ledger, options.name, kinds)


def main() -> None:
    """One process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=5.0, help="steps a second of each domain")
    options = parser.parse_args()

    async def work() -> None:
        async with DataLayer.open(options.config, options=LayerOptions(name=options.name)) as layer:
            await run(options, layer)

    asyncio.run(work())


if __name__ == "__main__":
    main()
