"""Alembic's environment: the revisions of the SQL schema's base tables."""
