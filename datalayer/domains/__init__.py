"""Pure definitions of the domains: record kinds, mutations as data, and decide(), the reference of what they do.

No I/O here; stores and repositories both build on it.
"""
