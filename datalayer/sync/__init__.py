"""The data layer for code that is not asynchronous: the same methods without await."""

from datalayer.sync.facade import DataLayer

__all__ = ["DataLayer"]
