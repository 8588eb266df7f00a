"""The explorer's web server: on this machine alone, for pages of its own alone."""

from __future__ import annotations

import contextlib
import socket
import threading
import webbrowser
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI, Response
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request

from medprobe.errors import UsageError
from medprobe.explore.figure import VEGA, vega

HOST = "127.0.0.1"
# Whatever a store's columns hold: a browser loads nothing from elsewhere for it, and sends nothing there.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self' ws://127.0.0.1:*; frame-ancestors 'none'; form-action 'none'"
)


def serve(root: Callable[[], object], port: int, *, opened: bool, ready: Callable[[str], object]) -> None:
    """Serve a page until Ctrl-C.

    Args:
        root: Builds the page of one visitor.
        port: To listen on; 0 for any that is free.
        opened: Open a browser.
        ready: Called with the page's address once it is served.

    Raises:
        UsageError: The port is taken.

    """
    from nicegui import ui

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"--port {port}: cannot be listened on ({error.strerror}); name another, or 0 for any"
        ) from error
    address = f"http://{HOST}:{listener.getsockname()[1]}/"

    app = FastAPI(openapi_url=None)
    app.add_api_route(VEGA, lambda: Response(vega(), media_type="text/javascript"), include_in_schema=False)
    app.add_middleware(BaseHTTPMiddleware, dispatch=_guarded)
    # A page from elsewhere that makes its own name point here is not let in.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    ui.run_with(app, root=root, title="medprobe", tailwind=False, show_welcome_message=False, language="en-US")
    threading.Thread(target=vega, daemon=True).start()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(address)
            if opened:
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    config = uvicorn.Config(app, log_level="critical", ws_max_size=16 * 2**20, timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has shut down
        Server(config).run(sockets=[listener])


async def _guarded(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
