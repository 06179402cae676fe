"""Starts the page in the browser.

python -m dsd_lightning.ui                                     the shipped miniature, at http://127.0.0.1:7860
python -m dsd_lightning.ui --run outputs/2026-01-31/12-00-00   a model of your own
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dsd_lightning.cli.flags import Flags, whole
from dsd_lightning.generation import models
from dsd_lightning.generation.jobs import GenerationError

REFUSED = 2
"""Exit code beside 0."""

NO_GRADIO = (
    "the page needs Gradio, which is not installed: `make page` installs and starts it, in a layer of its own; in an "
    "environment of yours, pip install -c constraints.txt -e '.[ui]'"
)

LARGEST_FILE = "20mb"
"""Of an uploaded image."""

USER, PASSWORD = "dsd", "DSD_PAGE_PASSWORD"
"""Name to log in with, and the environment variable that holds the password; not a flag, which other users could see."""

LOCAL = ("127.0.0.1", "localhost", "::1")

VISITORS = 32
"""Visitors whose histories are kept; the one longest inactive is dropped first."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    flags = Flags(prog="python -m dsd_lightning.ui", description="A page in the browser for a trained model.")
    models.add_model_flags(flags)
    server = flags.add_argument_group("the server")
    server.add_argument(
        "--host",
        default="127.0.0.1",
        help=f"0.0.0.0 serves other machines: set {PASSWORD} for them to log in as {USER!r}; default: %(default)s",
    )
    server.add_argument("--port", type=whole(0, 65535), default=7860, help="default: %(default)s")
    models.add_agent_flag(server)
    models.add_machine_flags(flags)
    return flags


def main(given: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    chosen = parser().parse_args(given)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    from dsd_lightning.cli.errors import FULL_ERROR, message_for_user  # here, for --help to be quick

    try:
        with TemporaryDirectory(prefix="dsd-page-") as folder:
            _serve(chosen, Path(folder))
    except Exception as error:
        message = message_for_user(error)
        if message is None or os.environ.get(FULL_ERROR) == "1":
            raise
        print(f"error: {message}", file=sys.stderr)
        return REFUSED
    return 0


def _serve(chosen: argparse.Namespace, folder: Path) -> None:
    models.check_model(chosen)
    # Gradio names uploads by their content, in one folder for all pages of a machine, and empties it when a page closes.
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise GenerationError(NO_GRADIO) from error
    from dsd_lightning.ui.examples import write_examples
    from dsd_lightning.ui.page import CSS, THEME, build_page
    from dsd_lightning.ui.studio import Studio

    miniature = models.is_miniature(chosen)
    if miniature:
        print(models.MINIATURE, flush=True)
    studio = Studio(models.load_model(chosen), miniature, chosen.agents)
    page = build_page(studio, write_examples(folder) if miniature else ())
    password = os.environ.get(PASSWORD)
    if not password and chosen.host not in LOCAL:
        logging.getLogger(__name__).warning(
            "--host %s serves other machines without a password; set %s to ask for one", chosen.host, PASSWORD
        )
    print(f"The page: http://{chosen.host}:{chosen.port} (Ctrl-C stops it)", flush=True)
    try:
        page.launch(
            server_name=chosen.host,
            server_port=chosen.port,
            share=False,
            auth=(USER, password) if password else None,
            quiet=True,
            show_error=True,
            max_file_size=LARGEST_FILE,
            state_session_capacity=VISITORS,
            run_history=False,
            ssr_mode=False,
            footer_links=["api"],
            theme=THEME,
            css=CSS,
        )
    except OSError as error:
        raise GenerationError(f"--host {chosen.host} --port {chosen.port} cannot be served at: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
