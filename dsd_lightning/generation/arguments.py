"""Defines the flags of `generate.py`: the authors' own, with their meaning, and ours."""

from __future__ import annotations

import argparse
import math
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

DEFAULT_SHEET = "1,1.5,2/1,1.5,2"

_EPILOG = """examples:
  python generate.py --image_path a.png --text "this character, large, on a red background"      the shipped miniature
  python generate.py --run outputs/2026-01-31/12-00-00 --image_path a.png --text "..."           a model of your own
  python generate.py --model_path primecai/dsd_model --image_path a.png --text "..."             the authors' weights, 48 GB
  python generate.py --model_path primecai/dsd_model --model_offload --quantize fp8 \\
      --image_path a.png --text "..." --output_path out.png                                      the same, 24 GB

a comic of 8 to 10 panels: python generate.py story --help

exit codes: 0 all images were written; 2 an input was refused; 3 out of memory; 130 stopped by Ctrl-C
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of `generate.py`."""
    description = "Generates an image of a reference's subject from a text."
    flags = command_parser("python generate.py", description, _EPILOG)
    add_model_flags(flags)

    what = flags.add_argument_group("what to generate")
    what.add_argument("--image_path", type=Path, help="reference image; its middle is cropped to the frame")
    what.add_argument("--text", help="the prompt; line breaks are removed")
    what.add_argument(
        "--output_path", type=Path, default=Path("output.png"), help="a .png, .jpg or .webp; default: %(default)s"
    )
    add_sampling_flags(what)
    what.add_argument(
        "--seed", type=int, default=-1, help="of the noise; -1, the default, takes a random one and prints it"
    )
    what.add_argument("--num_images", type=int, default=1, help="images, with seeds counted up from --seed")
    what.add_argument(
        "--disable_gemini_prompt", action="store_true", help="use the prompt unchanged, without enhancing it"
    )
    add_agent_flag(what)
    what.add_argument("--no_metadata", action="store_true", help="do not write model, seed and prompt into the image")

    several = flags.add_argument_group("several images at once")
    several.add_argument(
        "--jobs",
        type=Path,
        help="a .csv, .tsv, .json, .jsonl or .parquet with columns image_path, text, output_path (relative to the file) and, "
        "optionally, seed, num_images, size, guidance, i_guidance, t_guidance, steps; existing images are not generated again",
    )
    several.add_argument(
        "--sheet",
        nargs="?",
        const=DEFAULT_SHEET,
        help=f"a contact sheet over I,I,.../T,T,... image and text guidances, all from one noise; "
        f"default {DEFAULT_SHEET}",
    )

    add_machine_flags(flags)
    return flags


def check(chosen: argparse.Namespace) -> None:
    """Refuse flags that exclude each other.

    Raises:
        GenerationError: naming them.
    """
    check_model(chosen)
    if chosen.jobs is not None and (chosen.image_path or chosen.text or chosen.sheet):
        raise GenerationError("--jobs brings its own images and texts: leave out --image_path, --text and --sheet")
    if chosen.jobs is None and (chosen.image_path is None or chosen.text is None):
        raise GenerationError("give --image_path and --text (or a table of both: --jobs)")


def sheet_of(text: str) -> tuple[list[float], list[float]]:
    """Return image and text guidances of a sheet such as "1,1.5/1,2".

    Raises:
        GenerationError: if they cannot be read.
    """
    try:
        image, words = ([float(value) for value in part.split(",")] for part in text.split("/"))
    except ValueError as error:
        raise GenerationError(
            f"--sheet {text}: give image guidances, a slash, text guidances: {DEFAULT_SHEET}"
        ) from error
    if not all(math.isfinite(value) and value >= 0 for value in image + words):
        raise GenerationError(f"--sheet {text}: guidances must be finite and >= 0; 1 is none")
    return image, words
