"""Labels a run's pairs by the miniature's oracle, for the report's precision and recall.

python -m dsd_lightning.offline.audit RUN --grids 40

judges all pairs of a random sample of grids, and writes RUN/labels/oracle.csv and the shares that follow from it,
RUN/labels/oracle.json. Only for the miniature world.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dsd_lightning.cli.flags import Flags, whole
from dsd_lightning.distillation.judge_quality import LABELS, judged, scores, write_labels
from dsd_lightning.distillation.records import SIDES, DistillationError, Record
from dsd_lightning.distillation.store import Store
from dsd_lightning.evaluation.scores.intervals import NONE, SHARE, jackknifed, of_share, student
from dsd_lightning.files.atomic import write_json
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.miniature.oracle import Sighting, same_identity, see
from dsd_lightning.miniature.renderer import RESOLUTION
from dsd_lightning.miniature.world import Identity
from dsd_lightning.randomness import uniform

_DIFFERENCE = (-1.0, 1.0)
"""Scale of a difference of shares."""


def audit(root: Path, grids: int, seed: int) -> Path:
    """Label all pairs of `grids` random grids; return the file of labels.

    Raises:
        DistillationError: no pair was judged yet, or the panels are none of the miniature's.
    """
    of_grid: dict[str, list[Record]] = defaultdict(list)
    for pair in judged(Store(root), SIDES):
        of_grid[_grid(pair)].append(pair)
    if not of_grid:
        raise DistillationError(f"{root} has no judged pairs yet: python distill.py out={root} until=verify")
    chosen = sorted(of_grid, key=lambda grid: uniform(seed, "audit", grid))[:grids]
    labels: dict[str, str] = {}
    characters: list[Identity] = []
    for grid in tqdm(chosen, desc="oracle", unit="grid", disable=not sys.stderr.isatty()):
        seen: dict[str, Sighting] = {}
        for pair in of_grid[grid]:
            for side in SIDES:
                if pair.stored[side] not in seen:
                    seen[pair.stored[side]] = see(_values(pair.images[side]))
            labels[pair.id] = same_identity(*(seen[pair.stored[side]] for side in SIDES))
        clear = Counter(sighting.scene.identity for sighting in seen.values() if not sighting.ambiguous)
        characters += [identity for identity, _ in clear.most_common(1)]
    target = root / LABELS / "oracle.csv"
    write_labels(target, labels)
    pairs = [pair for grid in chosen for pair in of_grid[grid]]
    write_json(target.with_suffix(".json"), shares(pairs, labels, characters))
    return target


def shares(pairs: Sequence[Record], labels: Mapping[str, str], characters: Sequence[Identity]) -> dict[str, Any]:
    """Return what the labels say of the pairs before and after the judge, by its yes or no.

    `before` and `after` are shares of one subject among the pairs that are clear, `kept` the share of these good ones that the
    judge keeps, `ambiguous` and `kept_ambiguous` shares of all pairs and of the kept ones; `gain` is `after` less `before`.
    `intervals` holds their 95 % intervals: pairs of a grid are not independent, so grids are left out one by one. `distinct`
    is the share of grids with a clear character in which the character is a new one, with Wilson's interval: the diversity
    of the teacher.
    """
    grids = list(dict.fromkeys(map(_grid, pairs)))
    values = _of_pairs(pairs, labels)
    without = [_of_pairs([pair for pair in pairs if _grid(pair) != grid], labels) for grid in grids]
    intervals = {}
    for name, value in values.items():
        estimates = np.array([math.nan if each[name] is None else each[name] for each in without])
        parts = jackknifed(estimates, [np.arange(len(grids))])
        bounds = NONE if value is None else student(value, parts, _DIFFERENCE if name == "gain" else SHARE)
        intervals[name] = None if math.isnan(bounds[0]) else bounds
    distinct = len(set(characters))
    if characters:
        intervals["distinct"] = of_share(distinct, len(characters))
    return {
        "grids": len(grids),
        "pairs": len(pairs),
        **values,
        "intervals": intervals,
        "clear_grids": len(characters),
        "distinct": distinct / len(characters) if characters else None,
    }


def _of_pairs(pairs: Sequence[Record], labels: Mapping[str, str]) -> dict[str, float | None]:
    """Return the shares of `shares` that are of pairs, None where there are none."""
    score = scores(pairs, labels)[0]
    kept = score.kept + score.kept_ambiguous
    return {
        "before": score.before,
        "after": score.precision,
        "gain": None if score.precision is None or score.before is None else score.precision - score.before,
        "kept": score.recall,
        "ambiguous": score.ambiguous / len(pairs) if pairs else None,
        "kept_ambiguous": score.kept_ambiguous / kept if kept else None,
    }


def _grid(pair: Record) -> str:
    return pair.id.rpartition("-")[0]


def _values(encoded: bytes) -> NDArray[np.float32]:
    image = load_rgb(encoded)
    if image.size != (RESOLUTION, RESOLUTION):
        raise DistillationError(
            f"a panel has {image.width} x {image.height} pixels: the oracle knows the miniature's {RESOLUTION} x "
            f"{RESOLUTION} alone"
        )
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def main() -> None:
    """Audit what the command line names."""
    parser = Flags(prog="python -m dsd_lightning.offline.audit", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run (out=... of distill.py)")
    parser.add_argument("--grids", type=whole(1), default=40, help="grids to look at; about 6 seconds each")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the sample")
    given = parser.parse_args()
    try:
        sys.stdout.write(f"{audit(given.run, given.grids, given.seed)}\n")
    except DistillationError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
