"""The Postgres stores: the only package that imports psycopg."""
