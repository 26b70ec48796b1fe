"""A process that does nothing but keep search in step: what the scenario kills.

python -m tests.acceptance.search_worker datalayer.toml
"""

import asyncio
import sys

from datalayer.layer import DataLayer, LayerOptions


async def main(config: str) -> None:
    """Until it is killed."""
    async with DataLayer.open(config, options=LayerOptions(name="indexer")):
        print("open", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
