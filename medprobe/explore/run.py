"""``explore``: stores as a page in the browser of the same machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from medprobe.errors import UsageError
from medprobe.storage import AnyPlace

PORT = 8123


def explore(
    stores: Sequence[AnyPlace] = (),
    *,
    demo: bool = False,
    images: str | os.PathLike[str] | None = None,
    port: int = PORT,
    browser: bool = True,
    partial: bool = False,
    ready: Callable[[str], object] = lambda address: None,
) -> None:
    """Serve a page on 127.0.0.1 that answers questions to stores, until Ctrl-C.

    Args:
        stores: Stores, or their paths.
        demo: Open the stores of ``medprobe demo``, which is run where they are absent.
        images: What was embedded (folder, table, ``.npz``), to show images that the stores keep no thumbnails of.
        port: To listen on; 0 for any that is free.
        browser: Open a browser.
        partial: Use the finished blocks of stores that are not complete.
        ready: Called with the page's address once it is served.

    Raises:
        UsageError: No store is named, the port is taken, or a package of ``medprobe[explore]`` is missing.
        DataError: A store cannot be read.

    """
    try:
        import nicegui
    except ModuleNotFoundError as error:
        raise UsageError(f"explore needs the package {error.name}: pip install 'medprobe[explore]'") from error
    from medprobe.explore.images import Images
    from medprobe.explore.page import Page
    from medprobe.explore.pictures import Pictures
    from medprobe.explore.server import serve
    from medprobe.explore.session import Session
    from medprobe.explore.state import State
    from medprobe.report.style import altair

    altair()
    if demo:
        from medprobe.demo import demo_stores

        made, table = demo_stores()
        stores, images = [*stores, *made], images or table
    session = Session(stores, partial=partial)
    pictures = Pictures(session, Images(images))
    threading.Thread(target=session.warm, args=(State(),), daemon=True).start()

    def root() -> Any:
        request = nicegui.ui.context.client.request
        return Page(session, pictures, request.query_params.multi_items())

    serve(root, port, opened=browser, ready=ready)
