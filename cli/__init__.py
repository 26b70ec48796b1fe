"""The datalayer command; every command is a thin call to a library function."""
