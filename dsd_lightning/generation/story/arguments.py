"""Defines the flags of `generate.py story`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsd_lightning.generation.jobs import GenerationError
from dsd_lightning.generation.models import (
    add_agent_flag,
    add_machine_flags,
    add_model_flags,
    add_sampling_flags,
    check_model,
    command_parser,
)

STEPS = ("character", "story", "prompts", "panels", "page")
"""Steps of a story in order; the texts of the first three are kept in story.json."""

FEWEST, MOST, USUAL = 2, 12, 9
"""Panels of a comic, the given image included. The paper's have 8 to 10."""

FILE, PAGE, PANELS, REFERENCE = "story.json", "page.png", "panels", "reference.png"
"""Names in a story's folder."""

_EPILOG = """Between the steps, FOLDER/story.json holds every text, for you to change. The same command resumes:
panels with changed prompts or seeds are generated again, emptied texts are written again, everything else is kept.

examples:
  python generate.py story --image panel1.png --panels 9 --stop_after prompts      then edit story/story.json, and
  python generate.py story --image panel1.png                                      resume
  python generate.py story --image panel1.png --run RUN_DIR --agents local agents.vlm.provider.model=NAME

exit codes: 0 the page was written; 2 an input was refused; 3 out of memory; 130 stopped by Ctrl-C
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of `generate.py story`."""
    description = (
        "Writes a story with the character of an image, and generates it as a comic page (paper, section C.3)."
    )
    flags = command_parser("python generate.py story", description, _EPILOG)
    what = flags.add_argument_group("the story")
    what.add_argument("--image", "--image_path", type=Path, help="the first panel; its middle is cropped to the frame")
    what.add_argument(
        "--idea", default="", help="what the story is about; the miniature world's own story uses it only as title"
    )
    what.add_argument("--panels", type=int, help=f"{FEWEST} to {MOST}, the first included; default {USUAL}")
    what.add_argument("--output_path", type=Path, default=Path("story"), help="folder; default: %(default)s")
    what.add_argument("--stop_after", choices=STEPS, default=STEPS[-1], help="default: %(default)s, the last step")
    add_agent_flag(what)
    what.add_argument(
        "--offline",
        action="store_true",
        help="call no language model: the miniature world's own story (default for the shipped miniature)",
    )
    add_sampling_flags(what)
    what.add_argument(
        "--seed",
        type=int,
        default=-1,
        help="of panel 1, counted up; -1, the default, takes a random one; kept in story.json",
    )
    add_model_flags(flags)
    add_machine_flags(flags)
    return flags


def check(chosen: argparse.Namespace) -> None:
    """Refuse flags that exclude each other.

    Raises:
        GenerationError: naming them.
    """
    check_model(chosen)
    if chosen.panels is not None and not FEWEST <= chosen.panels <= MOST:
        raise GenerationError(f"--panels {chosen.panels}: a page has {FEWEST} to {MOST}")
    if chosen.offline and chosen.agents:
        raise GenerationError("choose one of --offline and --agents")
    if chosen.output_path.exists() and not chosen.output_path.is_dir():
        raise GenerationError(f"--output_path {chosen.output_path} is a file; give the name of a folder")
