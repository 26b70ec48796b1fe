"""The Redis stores: one server (``redis://``) or a cluster (``redis+cluster://``), last-writer-wins by Lua.

Layers, each in its module: ``target`` turns a URL into the driver's connections, ``node`` is one server's pool and its
pipelines, ``session`` finds the server of a key and follows redirections, ``faults`` turns the driver's errors into the
library's, ``scripts`` holds Lua texts, ``keys`` names keys, ``demands`` checks servers, ``backend`` is the configured
product. A store of a domain is a module of its own and one line in ``backend.STORES``.
"""
