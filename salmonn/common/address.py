"""Where a command serves: its --host and --port."""

import socket
from argparse import ArgumentParser

from salmonn.common.errors import UserError


def add_address(parser: ArgumentParser, port: int) -> None:
    """The two options; this machine alone, and `port`, are the defaults."""
    add = parser.add_argument
    help_host = "IPv4; 0.0.0.0 lets other machines in (default: 127.0.0.1)"
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=help_host)
    add("--port", type=int, default=port, metavar="NUMBER", help=f"default: {port}")


def require_address(host: str, port: int) -> None:
    """Raises UserError if nothing can be served there."""
    if not 0 < port < 65536:
        raise UserError(f"--port {port}: a number from 1 to 65535")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(
            f"http://{host}:{port} cannot be served ({error.strerror or error}): choose another --port or --host"
        ) from error
