"""Which flags does `generate.py story` have?"""

from __future__ import annotations

import argparse
from pathlib import Path

from dsd_lightning.generation.jobs import GenerationError, Job, parse_size
from dsd_lightning.generation.models import (
    add_agent_flag,
    add_drawing_flags,
    add_machine_flags,
    add_model_flags,
    check_model,
)

STEPS = ("character", "story", "prompts", "panels", "page")
"""What happens in turn; the first three are kept in story.json."""

FEWEST, MOST, USUAL = 2, 12, 9
"""Panels of a comic, the given image included. The paper's have 8 to 10."""

FILE, PAGE, PANELS, REFERENCE = "story.json", "page.png", "panels", "reference.png"
"""What lies in a story's folder."""

_EPILOG = """Between the steps, FOLDER/story.json holds every text, for you to change. The same command goes on from there:
changed prompts and seeds are drawn anew, emptied texts are written anew, everything else stays.

examples:
  python generate.py story --image panel1.png --panels 9 --stop_after prompts      then look at story/story.json, and
  python generate.py story --image panel1.png                                      go on
  python generate.py story --image panel1.png --run RUN_DIR --agents local agents.vlm.provider.model=NAME

exit codes: 0 the page is there; 2 an input was refused; 3 out of memory; 130 stopped by Ctrl-C
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of `generate.py story`."""
    made = argparse.ArgumentParser(
        prog="python generate.py story",
        description="Tells a story with the character of an image: a comic page (paper, section C.3).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = made.add_argument_group("the story")
    what.add_argument("--image", "--image_path", type=Path, help="the first panel; its middle is cropped to the frame")
    what.add_argument(
        "--idea", default="", help="what the story is about; the miniature world's own story has it as title"
    )
    what.add_argument("--panels", type=int, help=f"{FEWEST} to {MOST}, the first included; default {USUAL}")
    what.add_argument("--output_path", type=Path, default=Path("story"), help="folder; default: %(default)s")
    what.add_argument("--stop_after", choices=STEPS, default=STEPS[-1], help="default: %(default)s, the last step")
    add_agent_flag(what)
    what.add_argument(
        "--offline",
        action="store_true",
        help="ask no language model: the miniature world's own story (default for the shipped miniature)",
    )
    add_drawing_flags(what)
    what.add_argument(
        "--seed", type=int, default=-1, help="of panel 1, counted up; -1, the default, draws one; kept in story.json"
    )
    what.add_argument("--size", help="of a panel: SIDE or HEIGHTxWIDTH, pixels; default: that of the model's training")
    add_model_flags(made)
    add_machine_flags(made)
    return made


def check(chosen: argparse.Namespace) -> None:
    """Refuse flags that do not go together.

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


def job_of(chosen: argparse.Namespace) -> Job:
    """Return the settings that all panels are drawn with; text and output are filled in panel by panel.

    Raises:
        GenerationError: a value that makes no sense.
    """
    return Job(
        image=Path(REFERENCE),
        text="this character",
        output=chosen.output_path / "page.png",
        seed=chosen.seed,
        size=parse_size(chosen.size),
        guidance=chosen.guidance,
        i_guidance=chosen.i_guidance,
        t_guidance=chosen.t_guidance,
        steps=chosen.steps,
    )
