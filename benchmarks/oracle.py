"""Measures how often the miniature's oracle is wrong on blurred images, and how often it is undecided.

python -m benchmarks.oracle --grids 60

Rendered grids are blurred, each panel by a Gaussian of its own, and passed through the tiny VAE. Blurred by 2 pixels
(`--blur 2 2`) they come out nearly as far from the nearest rendering as what the tiny base generates. The table says, by how
much nearer the nearest identity must be than the next one (`oracle.CLEARLY_NEARER`), which share of the images is identified
and how many of these wrongly; then what is said of pairs, those of different characters mostly differing in one or two
attributes. About 1.5 seconds an image.
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import combinations

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from dsd_lightning.cli.flags import Flags, whole
from dsd_lightning.miniature.oracle import CLEARLY_NEARER, FARTHEST, same_identity, see
from dsd_lightning.offline.pixel_judge.calibrate import panels_of, through_vae
from dsd_lightning.randomness import numpy_generator

BLUR = (0.5, 2.0)
"""Least and greatest standard deviation, pixels."""

MARGINS = (1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.15, 1.2)


def main() -> None:
    """Print the table."""
    parser = Flags(prog="python -m benchmarks.oracle", description=__doc__)
    parser.add_argument("--grids", type=whole(1), default=60, help="of four images each")
    parser.add_argument(
        "--blur", type=float, nargs=2, default=BLUR, help="least and greatest standard deviation, pixels"
    )
    chosen = parser.parse_args()
    count, (least, greatest) = chosen.grids, chosen.blur
    if not 0 <= least <= greatest:
        parser.error(f"argument --blur: {least:g} {greatest:g} must be two numbers from 0, the greater one last")
    grids = [panels_of(index) for index in range(count)]
    blurred = []
    for index, (panels, _) in enumerate(grids):
        rng = numpy_generator("oracle benchmark", index)
        blurred.append(
            [panel.filter(ImageFilter.GaussianBlur(float(rng.uniform(least, greatest)))) for panel in panels]
        )
    seen, shown = [], []
    for grid, (_, who) in tqdm(list(zip(through_vae(blurred), grids, strict=True)), unit="grid", disable=None):
        seen += [see(_values(panel)) for panel in grid]
        shown += who
    wrong = np.array([each.scene.identity != who for each, who in zip(seen, shown, strict=True)])
    distance = np.array([each.distance for each in seen])
    margin = np.array([each.rival for each in seen]) / distance
    lines = [f"{len(seen)} images, distance {np.median(distance):.3f} in the median; CLEARLY_NEARER = {CLEARLY_NEARER}"]
    for ratio in MARGINS:
        identified = (margin >= ratio) & (distance <= FARTHEST)
        lines.append(
            f"{ratio:5.2f}  identified {identified.mean():.3f}  "
            f"of these wrong {wrong[identified].mean():.4f} ({wrong[identified].sum()})"
        )
    pairs = [(4 * grid + i, 4 * grid + j) for grid in range(count) for i, j in combinations(range(4), 2)]
    said = [(same_identity(seen[i], seen[j]), shown[i] == shown[j]) for i, j in pairs]
    for same in (True, False):
        words = Counter(word for word, truth in said if truth == same)
        lines.append(f"{sum(words.values())} pairs that are {'' if same else 'not '}the same: {dict(words)}")
    sys.stdout.write("\n".join(lines) + "\n")


def _values(panel: Image.Image) -> np.ndarray:
    return np.asarray(panel.convert("RGB"), dtype=np.float32) / 255


if __name__ == "__main__":
    main()
