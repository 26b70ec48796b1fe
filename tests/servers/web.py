"""Just enough of HTTP to ask a server whether it serves."""

import http.client

_TIMEOUT_S = 5.0


def status_of(host: str, port: int, path: str) -> int | None:
    """The status with which the server answers GET, or None when nobody answers."""
    link = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        link.request("GET", path)
        return link.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        link.close()
