"""``bcos-fx serve``: a local page that explains a network's decisions about photographs."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from bcos_fx.cli.console import echo
from bcos_fx.cli.options import Classifier
from bcos_fx.errors import MissingExtraError, UsageError

NAME = "serve"
EPILOG = """Examples:

bcos-fx serve model.safetensors

bcos-fx serve model.safetensors --port 8000 --no-browser

Ctrl-C ends it.
"""


def serve_page(
    model: Classifier,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0: any that is free.")] = 7860,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class names, as for explain. (default: those in MODEL)", show_default=False),
    ] = None,
) -> None:
    """Show a network's decisions on a local page: drop a photograph, click classes and regions, read the sums.

    The page is served to this machine alone (127.0.0.1), asks nothing of any other, and sends nothing anywhere.
    Photographs are kept until the command ends. Needs the extra app.
    """
    from bcos_fx.cli.check import converted_file
    from bcos_fx.data.classes import read_classes

    names = None if classes is None else read_classes(classes)
    file = converted_file(model)
    with _listening(port) as listener, tempfile.TemporaryDirectory(prefix="bcos-fx-serve-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/uploads"  # gradio keeps what it is given, and removes nothing
        try:
            import uvicorn

            from bcos_fx.app.page import HOST, application
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "gradio", "app", "the local page") from error
        from bcos_fx.app.explorer import Explorer

        uploads = Path(folder) / "photographs"
        uploads.mkdir()
        app = application(Explorer(file, uploads, names))
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        echo(f"{model.name} is shown at {address} to this machine alone; Ctrl-C ends it.")
        if browser:
            # After a second the server answers; a daemon, so that Ctrl-C does not wait for it.
            opening = threading.Timer(1, webbrowser.open, [address])
            opening.daemon = True
            opening.start()
        uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2)).run(sockets=[listener])


def _listening(port: int) -> socket.socket:
    """Open the port, before a network is read in vain."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise UsageError(
            f"the port {port} cannot be opened: {error.strerror}", hint="name another with --port, or 0 for any"
        ) from error
