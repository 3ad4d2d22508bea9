"""Running the service with uvicorn until it is stopped."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from vitrieve.errors import ConfigError
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app
from vitrieve.serve.connections import BoundedProtocol
from vitrieve.serve.gate import LOCAL_NAMES, is_local, normalize_address
from vitrieve.serve.limits import Limits
from vitrieve.serve.observe import write_logs_to_standard_error
from vitrieve.serve.place import Place

MAX_PORT = 65_535
KEEP_ALIVE_SECONDS = 20
STOP_SECONDS = 10
"""What requests in progress get to end when the service is stopped."""
SWITCH_SECONDS = 0.0005
"""After which a thread that holds Python's lock lets others have it. A search is a dozen calls that release the lock,
and each would wait for up to Python's 5 ms to get it back."""


def serve(
    searcher: Searcher,
    *,
    host: str,
    port: int,
    token: str | None = None,
    limits: Limits | None = None,
    place: Place | None = None,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); requests in progress are finished.

    Being stopped is the ordinary end, so nothing is raised then.

    Args:
        searcher: What is searched.
        host: Address to listen on.
        port: Port; 0: any that is free.
        token: What requests must bring; None: nothing. The caller checks that the address allows that.
        limits: What requests may take; None: as ``Limits`` says.
        place: Where a proxy shows it; None: there is none.
        announce: Called with the address once connections are accepted.

    Raises:
        ConfigError: The address cannot be listened on, or other machines can reach it and there is no token.
    """
    listener = listen(host, port)
    hosts = None
    if token is None:
        address = listener.getsockname()[0]  # a name may lead elsewhere than when the token was asked for
        if not is_local(address):
            listener.close()
            raise ConfigError(f"{host} is {address}, which can be reached from other machines, so it needs a token.")
        hosts = local_hosts(host, listener)
    app = create_app(searcher, limits=limits, token=token, hosts=hosts, place=place)
    sys.setswitchinterval(SWITCH_SECONDS)
    write_logs_to_standard_error()
    with listener:
        address = spell_address(listener, place or Place())
        _Server(configure(app), lambda: announce(address) if announce else None).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Announces itself once it accepts connections and stops on a signal, which is its ordinary end."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, and on a second Ctrl-C at once; uvicorn's own would send the signal again when all is done."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def configure(app: ASGIApp) -> uvicorn.Config:
    """Configure the server: with bounds of its connections, and without what it would write or believe by itself."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, so that a wrong address is known before anything is loaded, and clients can queue.

    Raises:
        ConfigError: No such address, or the port is taken.
    """
    if not 0 <= port <= MAX_PORT:  # the system's resolver would take it modulo 65,536
        raise ConfigError(f"cannot listen on port {port}; give one from 1 to {MAX_PORT}, or 0 for any that is free.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
            stack.pop_all()
            return listener
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}. Give another --port or --host."
        ) from None


def local_hosts(host: str, listener: socket.socket) -> tuple[str, ...]:
    """List the names by which a local service may be called: as it was asked for, and as it is."""
    names = (*LOCAL_NAMES, normalize_address(host.lower()), normalize_address(listener.getsockname()[0]))
    return tuple(dict.fromkeys(names))


def spell_address(listener: socket.socket, place: Place) -> str:
    """Spell where a browser on this network finds the service; what a proxy makes of it is the proxy's."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}{place.root_path}/"
