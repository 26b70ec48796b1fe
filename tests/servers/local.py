"""What every server that runs as our own child has in common, alone or as one of a group."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from tests.servers.ports import LOOPBACK
from tests.servers.process import ServerProcess


class LocalServer:
    """A server of our own; whoever inherits makes its process."""

    controllable = True
    process: ServerProcess

    def __init__(self, name: str, port: int, *, host: str = LOOPBACK) -> None:
        self.name = name
        self.host = host
        self.port = port

    @property
    def pid(self) -> int:
        """The id of the main process."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the main process is alive."""
        return self.process.running

    def start(self) -> None:
        """Starts over the same data and waits until it serves."""
        self.process.start()

    def stop(self) -> None:
        """An orderly stop."""
        self.process.stop()

    def kill9(self) -> None:
        """A crash of all its processes."""
        self.process.kill9()

    def pause(self) -> None:
        """Stops all its processes in their tracks; connections hang."""
        self.process.pause()

    def resume(self) -> None:
        """Lets all its processes go on."""
        self.process.resume()


_N = TypeVar("_N", bound=LocalServer)


class LocalGroup(Generic[_N]):
    """Servers that are steered as one; each may be killed, stopped and paused alone, too."""

    controllable = True

    def __init__(self, nodes: Sequence[_N]) -> None:
        self.nodes = list(nodes)

    def start(self) -> None:
        """Starts all nodes at one time and waits until the group is whole."""
        self._start_nodes()
        self.await_whole()

    def stop(self) -> None:
        """An orderly stop of all nodes."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(lambda node: node.stop(), self.nodes))

    def kill9(self) -> None:
        """A crash of all nodes."""
        for node in self.nodes:
            node.kill9()

    def pause(self) -> None:
        """Stops all nodes in their tracks."""
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        """Lets all nodes go on."""
        for node in self.nodes:
            node.resume()

    def await_whole(self) -> None:
        """Waits until every node serves and knows the others."""
        raise NotImplementedError

    def _start_nodes(self) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(lambda node: node.start(), self.nodes))
