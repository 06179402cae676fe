"""Labels a run's pairs by the miniature's oracle, for the report's precision and recall.

python -m dsd_lightning.offline.audit RUN --grids 40

looks at all pairs of a random sample of grids, and writes RUN/labels/oracle.csv. Only for the miniature world.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dsd_lightning.distillation.judge_quality import LABELS, judged, write_labels
from dsd_lightning.distillation.records import SIDES, DistillationError, Record
from dsd_lightning.distillation.store import Store
from dsd_lightning.miniature.oracle import Sighting, same_identity, see
from dsd_lightning.miniature.renderer import RESOLUTION
from dsd_lightning.randomness import uniform


def audit(root: Path, grids: int, seed: int) -> Path:
    """Label all pairs of `grids` random grids; return the file of labels.

    Raises:
        DistillationError: no pair was judged yet, or the panels are none of the miniature's.
    """
    of_grid: dict[str, list[Record]] = defaultdict(list)
    for pair in judged(Store(root), SIDES):
        of_grid[pair.id.rpartition("-")[0]].append(pair)
    if not of_grid:
        raise DistillationError(f"{root} has no judged pairs yet: python distill.py out={root} until=verify")
    chosen = sorted(of_grid, key=lambda grid: uniform(seed, "audit", grid))[:grids]
    labels: dict[str, str] = {}
    for grid in tqdm(chosen, desc="oracle", unit="grid", disable=not sys.stderr.isatty()):
        seen: dict[str, Sighting] = {}
        for pair in of_grid[grid]:
            for side in SIDES:
                if pair.stored[side] not in seen:
                    seen[pair.stored[side]] = see(_values(pair.images[side]))
            labels[pair.id] = same_identity(*(seen[pair.stored[side]] for side in SIDES))
    target = root / LABELS / "oracle.csv"
    write_labels(target, labels)
    return target


def _values(encoded: bytes) -> NDArray[np.float32]:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    if image.size != (RESOLUTION, RESOLUTION):
        raise DistillationError(
            f"a panel has {image.width} x {image.height} pixels: the oracle knows the miniature's {RESOLUTION} x "
            f"{RESOLUTION} alone"
        )
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def main() -> None:
    """Audit what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m dsd_lightning.offline.audit", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run (out=... of distill.py)")
    parser.add_argument("--grids", type=int, default=40, help="grids to look at; about 6 seconds each")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    given = parser.parse_args()
    try:
        sys.stdout.write(f"{audit(given.run, given.grids, given.seed)}\n")
    except DistillationError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
