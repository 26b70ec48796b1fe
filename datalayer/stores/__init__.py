"""The ports (base) and one package per product; a driver is imported only in its own package."""
