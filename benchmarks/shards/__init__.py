"""Users on shards: look-ups, calls, moves of slot groups, and what an application feels of them."""
