"""Keep users, messages, presence, media and search in stores of any size, and move them online."""

__all__: list[str] = []
