"""The datalayer command; every command is a thin call to a library function."""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process and exit with its code."""
    from datalayer.cli.app import app  # noqa: PLC0415 - importing the package stays free of click

    app.main(prog_name="datalayer")
