"""The Cassandra (and ScyllaDB) store of the messages domain: a last-writer-wins map of one-cell records.

Layers, each in its module: ``cluster`` builds the driver's objects, ``session`` bridges them to asyncio, ``failures``
turns the driver's errors into the library's, ``cells`` knows the physical form, ``place`` holds the prepared
statements of one place, ``bulk``, ``scan`` and ``history`` are the three larger algorithms, ``messages`` is the store
and ``backend`` the configured cluster.
"""
