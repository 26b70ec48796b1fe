"""Which store serves a key right now: routers, gates, slots and shards."""
