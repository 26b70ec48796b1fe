"""What can go wrong with a real server; none of it is ever a skip."""


class ServerError(Exception):
    """A real server could not be installed, started or steered."""


class InstallFailed(ServerError):
    """A server's binaries are absent and could not be fetched."""


class StartFailed(ServerError):
    """A server ended, or did not answer in time, while it was being started."""


class PortBusy(ServerError):
    """Another process listens where a server has to listen."""


class NotControllable(ServerError):
    """The server was given by URL, so it cannot be killed, stopped or paused from here."""
