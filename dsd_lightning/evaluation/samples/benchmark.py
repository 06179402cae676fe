"""What is drawn and judged? Subjects with a reference image, and prompts by kind, from benchmarks' folders and tables."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsd_lightning.evaluation.errors import EvaluationError

STYLE = "style"
"""The category of subjects, and the kind of prompts, that are about how an image is made."""

IMAGES = (".jpg", ".jpeg", ".png", ".webp")

DREAMBENCHPP_KINDS = ("photorealistic",) * 4 + (STYLE,) * 3 + ("imaginative",) * 2
"""Kind of each of a subject's nine prompts (DreamBench++: 0-3, 4-6, 7-8)."""


@dataclass(frozen=True)
class Prompt:
    """One text to draw, and its place among its subject's."""

    index: int
    text: str
    kind: str


@dataclass(frozen=True)
class Subject:
    """One reference image and what is to be drawn of it.

    Attributes:
        name: unique; the folder of its results (DreamBench++: the collection id).
        category: such as animal, human, object or style.
        reference: image file.
        prompts: ordered by index.
    """

    name: str
    category: str
    reference: Path
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Case:
    """One image to draw: a subject, a prompt, and which of the images for both."""

    subject: Subject
    prompt: Prompt
    copy: int = 0

    @property
    def name(self) -> str:
        """Return `subject/prompt_copy`, by which files and records name the image."""
        return f"{self.subject.name}/{self.prompt.index}_{self.copy}"


@dataclass(frozen=True)
class Benchmark:
    """Subjects in a fixed order."""

    name: str
    subjects: tuple[Subject, ...]

    def __post_init__(self) -> None:
        names = [subject.name for subject in self.subjects]
        if not names:
            raise EvaluationError(f"benchmark {self.name} has no subjects")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise EvaluationError(f"benchmark {self.name}: the subject {twice[0]!r} is there twice; give each a name")

    def cases(self, copies: int = 1) -> list[Case]:
        """Return all images to draw, subject by subject."""
        if copies < 1:
            raise EvaluationError(f"copies={copies}: at least 1 image a prompt")
        return [
            Case(subject, prompt, copy)
            for subject in self.subjects
            for prompt in subject.prompts
            for copy in range(copies)
        ]

    def limited(self, subjects: int | None) -> Benchmark:
        """Return the first so many subjects, taken from all categories in their proportions; None keeps all."""
        if subjects is None or subjects >= len(self.subjects):
            return self
        if subjects < 1:
            raise EvaluationError(f"subjects={subjects}: at least 1, or null for all {len(self.subjects)}")
        sizes: dict[str, int] = {}
        for subject in self.subjects:
            sizes[subject.category] = sizes.get(subject.category, 0) + 1
        taken: dict[str, int] = dict.fromkeys(sizes, 0)
        rank = {}
        for position, subject in enumerate(self.subjects):
            rank[position] = (taken[subject.category] + 0.5) / sizes[subject.category]
            taken[subject.category] += 1
        chosen = set(sorted(rank, key=lambda position: (rank[position], position))[:subjects])
        return Benchmark(self.name, tuple(each for place, each in enumerate(self.subjects) if place in chosen))


def dreambenchpp(folder: str | Path, subjects: int | None = None) -> Benchmark:
    """Read a checkout of DreamBench++ (https://github.com/yuangpeng/dreambench_plus), or a folder like it.

    Args:
        folder: the checkout, or its `data/`, with `images/` and `captions/` by category: an image `NN.jpg` for each
            `NN.txt`, whose first line names the subject and whose other lines are its prompts.
        subjects: how many to take; None takes all.

    Raises:
        EvaluationError: no such folder, a caption file without its image, or one without prompts.
    """
    root = Path(folder)
    root = root / "data" if (root / "data" / "captions").is_dir() else root
    if not (root / "captions").is_dir():
        raise EvaluationError(f"{folder} is no DreamBench++ checkout: there is no captions/ in it or in its data/")
    found = []
    for captions in sorted((root / "captions").rglob("*.txt")):
        place = captions.relative_to(root / "captions").with_suffix("")
        lines = [line.strip() for line in captions.read_text(encoding="utf-8").splitlines()]
        name, texts = (lines[0] if lines else ""), [line for line in lines[1:] if line]
        if not name or not texts:
            raise EvaluationError(f"{captions}: the first line names the subject, the others are its prompts")
        reference = _image(root / "images" / place, captions)
        collection = "_".join([*place.parts, name.lower().replace(" ", "_")])
        kinds = DREAMBENCHPP_KINDS if len(texts) == len(DREAMBENCHPP_KINDS) else ("prompt",) * len(texts)
        prompts = tuple(Prompt(index, text, kinds[index]) for index, text in enumerate(texts))
        found.append(Subject(collection, place.parts[-2] if len(place.parts) > 1 else "subject", reference, prompts))
    return Benchmark("DreamBench++", tuple(found)).limited(subjects)


def dreambench(folder: str | Path, subjects: int | None = None) -> Benchmark:
    """Read DreamBench (https://github.com/google/dreambooth): 30 subjects, 25 prompts each.

    Args:
        folder: the checkout, with `dataset/prompts_and_classes.txt` and a folder of images a subject. The first
            image by name is the reference.
        subjects: how many to take; None takes all.

    Raises:
        EvaluationError: a file or folder is missing, or the table cannot be read.
    """
    root = Path(folder)
    root = root / "dataset" if (root / "dataset").is_dir() else root
    table = root / "prompts_and_classes.txt"
    if not table.is_file():
        raise EvaluationError(f"{folder} is no DreamBench checkout: there is no {table}")
    text = table.read_text(encoding="utf-8")
    classes = dict(re.findall(r"^\s*([\w-]+)\s*,\s*([^,\n]+?)\s*$", text, re.MULTILINE))
    classes.pop("subject_name", None)
    lists = re.findall(r"prompt_list\s*=\s*\[(.*?)\n\s*\]", text, re.DOTALL)
    if not classes or len(lists) != 2:
        raise EvaluationError(f"{table}: a table of subjects and classes and two prompt lists are needed")
    objects, live = ([quoted[1:-1] for quoted in re.findall(r"'[^'\n]*'", each)] for each in lists)
    found = []
    for name, kind in sorted(classes.items()):
        images = sorted(each for each in (root / name).glob("*") if each.suffix.lower() in IMAGES)
        if not images:
            raise EvaluationError(f"{root / name} holds no image of {name}")
        is_live = kind in ("cat", "dog")
        texts = [each.replace("{0} ", "").replace("{1}", kind) for each in (live if is_live else objects)]
        prompts = tuple(Prompt(index, each, "prompt") for index, each in enumerate(texts))
        found.append(Subject(name, "live subject" if is_live else "object", images[0], prompts))
    return Benchmark("DreamBench", tuple(found)).limited(subjects)


def table(file: str | Path, subjects: int | None = None) -> Benchmark:
    """Read a CSV with the columns `reference` (an image, relative to the file) and `prompt`.

    Rows of one reference are one subject. Further columns may be `subject` (its name; the reference's otherwise),
    `category` and `kind` (of the prompt).

    Raises:
        EvaluationError: a column, an image or a prompt is missing; the message names the row.
    """
    path = Path(file)
    if not path.is_file():
        raise EvaluationError(f"{file}: there is no such file")
    rows: dict[str, list[dict[str, str]]] = {}
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=1):
            if not row.get("reference") or not row.get("prompt"):
                raise EvaluationError(f"{file}, row {number}: reference and prompt are needed")
            if not (path.parent / row["reference"]).is_file():
                raise EvaluationError(f"{file}, row {number}: there is no image {path.parent / row['reference']}")
            rows.setdefault(row.get("subject") or Path(row["reference"]).with_suffix("").as_posix(), []).append(row)
    found = []
    for name, group in rows.items():
        if len({(row["reference"], row.get("category")) for row in group}) > 1:
            raise EvaluationError(f"{file}: the subject {name!r} has several references or categories")
        prompts = tuple(Prompt(index, row["prompt"], row.get("kind") or "prompt") for index, row in enumerate(group))
        reference = path.parent / group[0]["reference"]
        found.append(Subject(name.replace("/", "_"), group[0].get("category") or "subject", reference, prompts))
    return Benchmark(path.stem, tuple(found)).limited(subjects)


def folder(folder: str | Path, subjects: int | None = None) -> Benchmark:
    """Read a folder of images, each with its prompts, a line each, in `NAME.txt` beside it; subfolders are categories.

    Raises:
        EvaluationError: there is no such folder, or an image without prompts.
    """
    root = Path(folder)
    found = []
    for image in _images(root):
        texts = image.with_suffix(".txt")
        lines = texts.read_text(encoding="utf-8").splitlines() if texts.is_file() else []
        prompts = tuple(Prompt(index, line.strip(), "prompt") for index, line in enumerate(filter(str.strip, lines)))
        if not prompts:
            raise EvaluationError(f"{image}: its prompts are missing, a line each, in {texts}")
        place = image.relative_to(root).with_suffix("")
        found.append(
            Subject("_".join(place.parts), place.parts[0] if len(place.parts) > 1 else "subject", image, prompts)
        )
    return Benchmark(root.name, tuple(found)).limited(subjects)


def _images(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        raise EvaluationError(f"{root}: there is no such folder")
    yield from sorted(each for each in root.rglob("*") if each.suffix.lower() in IMAGES)


def _image(stem: Path, asked_by: Path) -> Path:
    return first_image(stem) or _missing(stem, asked_by)


def _missing(stem: Path, asked_by: Path) -> Path:
    raise EvaluationError(f"{asked_by} has no image: {stem}.jpg is missing")


def first_image(stem: Path, extensions: Sequence[str] = IMAGES) -> Path | None:
    """Return the file `stem` with the first extension that exists, or None."""
    for extension in extensions:
        if (file := stem.parent / f"{stem.name}{extension}").is_file():
            return file
    return None
