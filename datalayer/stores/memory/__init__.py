"""The in-memory product: an embedded default for tests, and the fake that the simulation and the crash matrix drive.

``MemoryServer`` holds the data and survives its clients; ``MemoryBackend`` is a client, and every call it makes can be
delayed, lost, refused or cut short by an ``Injector``.
"""

from datalayer.stores.memory.backend import MemoryBackend, create_backend
from datalayer.stores.memory.faults import Call, Fault, Injection, Injector, ProcessCrash, no_faults
from datalayer.stores.memory.server import SERVERS, MemoryServer

__all__ = [
    "SERVERS",
    "Call",
    "Fault",
    "Injection",
    "Injector",
    "MemoryBackend",
    "MemoryServer",
    "ProcessCrash",
    "create_backend",
    "no_faults",
]
