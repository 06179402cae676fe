"""Writes the report of a run, one HTML file: yields, costs, reasons, images, diversity of prompts, errors of the judge."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dsd_lightning.distillation.judge_quality import STAGE, Score, judged, label_files, read_labels, scores
from dsd_lightning.distillation.labels import data_url, templates
from dsd_lightning.distillation.records import GRID, SIDES, Record, Rejection, Usage
from dsd_lightning.distillation.store import Manifest, Store
from dsd_lightning.distillation.yields import PAIRS
from dsd_lightning.files.atomic import write_json, write_text
from dsd_lightning.files.text import read_text
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.randomness import uniform

SHOWN = 36
"""Pairs on a contact sheet, accepted and rejected each; chosen by a hash of their ids."""

OTHERS_SHOWN = 12
"""Rejected records of each other stage."""

MOST_REPEATED = 25
"""Words that are listed."""

WIDEST = 192
"""Width of a shown image, pixels; larger ones are shrunk."""

_WORD = re.compile(r"[a-z]{3,}")
_LITTLE = (
    " and are for four from grid has her his its not one other same that the their them then there they this with without "
    "top bottom left right under over while into onto each panel panels quadrant quadrants image images shows "
)
"""Words that every grid prompt needs; each between blanks."""


_UNITS = {
    "filter": ("captions", "captions"),
    "prompts": ("prompts", "captions"),
    "grids": ("grids", "prompts"),
    "split": ("grids", "grids"),
    "verify": ("pairs", "pairs"),
    "caption": ("pairs", "pairs"),
}
"""What each stage gives, and what it looks at."""


@dataclass(frozen=True)
class StageLine:
    """One row of the report's table."""

    stage: str
    taken: int
    kept: int
    rejected: Mapping[str, int]
    usage: Usage
    seconds: float

    @property
    def share(self) -> float | None:
        """Records that came out over those that were looked at."""
        return self.kept / self.seen if self.taken else None

    @property
    def seen(self) -> int:
        """Records of the stage's own kind: the judge takes grids and looks at their pairs of panels."""
        return self.taken * (PAIRS if self.stage == STAGE else 1)

    @property
    def yielded(self) -> str:
        """What came out, in the stage's own units: `26 of 32 grids`, `32 prompts of 37 captions`."""
        given, looked_at = _UNITS[self.stage]
        return f"{self.kept:,} {'' if given == looked_at else f'{given} '}of {self.seen:,} {looked_at}"


def total(lines: Sequence[StageLine]) -> dict[str, Any]:
    """Return a run's last row: what became of the first stage's records, and what all stages took."""
    first, last = lines[0], lines[-1]
    yielded = f"{last.kept:,} {_UNITS[last.stage][0]} of {first.seen:,} {_UNITS[first.stage][1]}"
    usage = sum((line.usage for line in lines), Usage())
    return {"yielded": yielded, "usage": usage, "seconds": sum(line.seconds for line in lines)}


def summarise(manifests: Sequence[Manifest]) -> StageLine:
    """Return one stage's line from its partitions."""
    rejected: Counter[str] = Counter()
    usage = Usage()
    for manifest in manifests:
        rejected.update(manifest.rejected)
        usage += manifest.usage
    return StageLine(
        manifests[0].stage,
        sum(each.taken for each in manifests),
        sum(each.kept for each in manifests),
        dict(rejected.most_common()),
        usage,
        sum((each.seconds for each in manifests), 0.0),
    )


def diversity(records: Iterable[Record]) -> dict[str, Any]:
    """Return how varied prompts are: their number, distinct subjects and prompts, families, and the most repeated words.

    Words that every grid prompt needs are left out; a word counts once a prompt.
    """
    subjects: Counter[str] = Counter()
    families: Counter[str] = Counter()
    words: Counter[str] = Counter()
    prompts: set[str] = set()
    total = 0
    for record in records:
        total += 1
        prompts.add(record.values["prompt"])
        subjects[str(record.values["subject"]).lower()] += 1
        families[record.values["family"]] += 1
        words_of_prompt = dict.fromkeys(
            _WORD.findall(record.values["prompt"].lower())
        )  # in order, for equal reports of equal runs
        words.update(word for word in words_of_prompt if f" {word} " not in _LITTLE)
    return {
        "prompts": total,
        "distinct_prompts": len(prompts),
        "distinct_subjects": len(subjects),
        "families": dict(families.most_common()),
        "repeated": [(word, number / max(total, 1)) for word, number in words.most_common(MOST_REPEATED)],
    }


def thumbnail(encoded: bytes) -> str:
    """Return an image, no wider than `WIDEST`, as a URL that holds it."""
    stored = load_rgb(encoded)
    if stored.width > WIDEST:
        image = stored.resize((WIDEST, round(stored.height * WIDEST / stored.width)), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return data_url(encoded)


def _card(record: Record, images: Sequence[str], reason: str, detail: str) -> dict[str, Any]:
    values = record.values
    return {
        "id": record.id,
        "images": [thumbnail(record.images[name]) for name in images if name in record.images],
        "reason": reason,
        "detail": detail,
        "prompt": values.get("prompt") or values.get("caption", ""),
        "confidence": values.get("confidence"),
        "words": values.get("words", []),
    }


def _chosen(records: list[tuple[int, str, Any]], count: int) -> list[tuple[int, str, Any]]:
    return sorted(records, key=lambda each: uniform("shown", each[1]))[:count]


def contact_sheet(store: Store, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Return cards of some accepted pairs, and of some of what each stage rejected."""
    cards: list[dict[str, Any]] = []
    kept = [
        (manifest.partition, record.id, record)
        for manifest in store.manifests(STAGE)
        for record in store.read(STAGE, manifest.partition)
    ]
    for partition, _, record in _chosen(kept, SHOWN):
        (seen,) = store.with_images(partition, [record], SIDES)
        cards.append(_card(seen, SIDES, "accepted", record.values["words"][-1]))
    for stage in stages:
        rejected: list[tuple[int, str, Rejection]] = [
            (manifest.partition, each.record.id, each)
            for manifest in store.manifests(stage)
            if manifest.rejected
            for each in store.read_rejected(stage, manifest.partition)
        ]
        names = SIDES if stage in ("verify", "caption") else (GRID,)
        for partition, _, each in _chosen(rejected, SHOWN if stage == STAGE else OTHERS_SHOWN):
            (seen,) = store.with_images(partition, [each.record], names)
            cards.append(_card(seen, names, f"{stage}: {each.reason}", each.detail))
    return cards


def judge_scores(store: Store) -> dict[str, list[Score]]:
    """Return the judge's scores against every file of labels, by its name."""
    files = label_files(store.root)
    pairs = list(judged(store)) if files else []
    by_labels = {file.stem: scores(pairs, read_labels(file)) for file in files}
    return {name: each for name, each in by_labels.items() if each and (each[0].labelled or each[0].ambiguous)}


def write_report(root: Path, stages: Sequence[str], samples: Mapping[str, int], other: Path | None = None) -> Path:
    """Write `report.html` and `report.json` into a run's folder; return the page.

    Args:
        root: the run.
        stages: its stages, in order.
        samples: of each set of shards that was written.
        other: another run, whose yields and diversity are shown beside (a teacher tuned on grids, prompts without captions).
    """
    store = Store(root)
    content: dict[str, Any] = {"run": _metrics(store, stages), "other": None}
    if other is not None:
        content["other"] = {"name": str(other), **_metrics(Store(other), stages)}
    cards = contact_sheet(store, stages)
    page = (
        templates()
        .get_template("report.html.j2")
        .render(
            name=root.name,
            cards=cards,
            reasons=list(dict.fromkeys(card["reason"] for card in cards)),
            samples=samples,
            config=read_text(root / "config.yaml") if (root / "config.yaml").exists() else "",
            **content,
        )
    )
    metrics = {
        name: None
        if part is None
        else {
            **part,
            "lines": [asdict(line) for line in part["lines"]],
            "total": part["total"] and {**part["total"], "usage": part["total"]["usage"].as_json()},
            "judge": _plain(part["judge"]),
        }
        for name, part in content.items()
    }
    write_json(root / "report.json", {**metrics, "samples": dict(samples)})
    write_text(root / "report.html", page)
    return root / "report.html"


def _plain(judge: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    return {
        name: [
            {**asdict(each), "before": each.before, "precision": each.precision, "recall": each.recall}
            for each in by_threshold
        ]
        for name, by_threshold in judge.items()
    }


def _metrics(store: Store, stages: Sequence[str]) -> dict[str, Any]:
    lines = [summarise(manifests) for stage in stages if (manifests := store.manifests(stage))]
    prompts = [
        record for manifest in store.manifests("prompts") for record in store.read("prompts", manifest.partition)
    ]
    judges = [name for line in lines if line.stage == STAGE for name in line.usage.served]
    return {
        "lines": lines,
        "total": total(lines) if lines else None,
        "judges": judges,
        "diversity": diversity(prompts),
        "judge": judge_scores(store),
    }
