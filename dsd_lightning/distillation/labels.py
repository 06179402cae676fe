"""Prepares a random sample of pairs for people to label: a page of its own and a CSV file; both are read alike.

python -m dsd_lightning.distillation.labels RUN --count 60 --name ada

writes RUN/labels/ada.csv to be filled in (yes, no or ambiguous), and RUN/labels/ada.html, a page with the images that
gives the same file: by keys or buttons, with undo, and answers that stay in the browser. `python distill.py out=RUN` then
shows the judge's precision and recall.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from dsd_lightning.cli.flags import Flags, whole
from dsd_lightning.distillation.judge_quality import LABELS, judged, write_labels
from dsd_lightning.distillation.records import SIDES, DistillationError
from dsd_lightning.distillation.store import Store, digest_of
from dsd_lightning.files.atomic import write_text
from dsd_lightning.randomness import uniform


def templates() -> Environment:
    """Return the page templates of this package."""
    return Environment(
        loader=PackageLoader("dsd_lightning.distillation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_url(image: bytes) -> str:
    """Return a png as a URL that holds it."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def prepare(root: Path, count: int, name: str, seed: int) -> Path:
    """Write the sheet and the page of a random sample of judged pairs, kept or not; return the page.

    Raises:
        DistillationError: no pair was judged yet, or there are labels of that name.
    """
    target = root / LABELS / f"{name}.csv"
    if target.exists():
        raise DistillationError(f"{target} exists; choose another --name")
    pairs = sorted(judged(Store(root), SIDES), key=lambda pair: uniform(seed, "label", pair.id))[:count]
    if not pairs:
        raise DistillationError(f"{root} has no judged pairs yet: python distill.py out={root} until=verify")
    write_labels(target, {pair.id: "" for pair in pairs})
    shown = [{"id": pair.id, "images": [data_url(pair.images[side]) for side in SIDES]} for pair in pairs]
    page = target.with_suffix(".html")
    # The browser keeps answers by this key: another sample of the same name starts without any.
    key = f"{name}-{digest_of([pair.id for pair in pairs])[:12]}"
    write_text(page, templates().get_template("labels.html.j2").render(pairs=shown, name=name, key=key))
    return page


def main() -> None:
    """Prepare what the command line asks for."""
    parser = Flags(prog="python -m dsd_lightning.distillation.labels", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run (out=... of distill.py)")
    parser.add_argument("--count", type=whole(1), default=60, help="pairs to label")
    parser.add_argument("--name", default="human", help="of the file of labels")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the sample")
    given = parser.parse_args()
    try:
        page = prepare(given.run, given.count, given.name, given.seed)
    except DistillationError as error:
        parser.error(str(error))
    sys.stdout.write(f"{page}\n{page.with_suffix('.csv')}\n")


if __name__ == "__main__":
    main()
