"""The real engine on simulated machines: virtual time, a network that loses and delays, crashes, pauses, operators.

``World`` is the small cloud (stores, control store, processes, coordinators), ``History`` judges what callers saw,
``life`` plays whole life cycles by seed. The same seed gives the same run, call for call.
"""

from datalayer.testing.simulation.history import History, Violation
from datalayer.testing.simulation.loop import Machine, Stuck, VirtualLoop
from datalayer.testing.simulation.wire import Profile, Wire
from datalayer.testing.simulation.world import Pair, World

__all__ = ["History", "Machine", "Pair", "Profile", "Stuck", "Violation", "VirtualLoop", "Wire", "World"]
