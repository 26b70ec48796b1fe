"""The engine that moves a domain between stores; it knows source and target, and imports no store."""
