"""Reads benchmarks: subjects with a reference image, and prompts by kind, from folders and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.files.listing import is_system_file, list_files, normalised, together
from dsd_lightning.files.rows import Row, Table
from dsd_lightning.files.text import TextError, read_text
from dsd_lightning.images.pixels import ImageError, load_rgb

STYLE = "style"
"""The category of subjects, and the kind of prompts, that are about an artistic style."""

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
"""Endings of image files, in lower case; upper case is read as well."""

DREAMBENCHPP_KINDS = ("photorealistic",) * 4 + (STYLE,) * 3 + ("imaginative",) * 2
"""Kind of each of a subject's nine prompts (DreamBench++: 0-3, 4-6, 7-8)."""


@dataclass(frozen=True)
class Prompt:
    """One text, and its index among its subject's."""

    index: int
    text: str
    kind: str


@dataclass(frozen=True)
class Subject:
    """One reference image and its prompts.

    Attributes:
        name: unique; the folder of its results (DreamBench++: the collection id).
        category: such as animal, human, object or style.
        reference: image file.
        prompts: ordered by index.
        more_images: further real images of it, which similarities are measured to as well (DreamBench).
    """

    name: str
    category: str
    reference: Path
    prompts: tuple[Prompt, ...]
    more_images: tuple[Path, ...] = ()

    @property
    def real_images(self) -> tuple[Path, ...]:
        """Return all its real images, the reference first."""
        return (self.reference, *self.more_images)


@dataclass(frozen=True)
class Case:
    """One image to generate: a subject, a prompt, and the number of the copy."""

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
            raise EvaluationError(f"benchmark {self.name}: the subject {twice[0]!r} appears twice; give each a name")

    def cases(self, copies: int = 1) -> list[Case]:
        """Return all images to generate, subject by subject."""
        if copies < 1:
            raise EvaluationError(f"copies={copies}: at least 1 image a prompt")
        return [
            Case(subject, prompt, copy)
            for subject in self.subjects
            for prompt in subject.prompts
            for copy in range(copies)
        ]

    def limited(self, subjects: int | None) -> Benchmark:
        """Return the first so many subjects, chosen from all categories in their proportions; None keeps all."""
        if subjects is None or subjects >= len(self.subjects):
            return self
        if subjects < 1:
            raise EvaluationError(f"subjects={subjects}: at least 1, or null for all {len(self.subjects)}")
        sizes: dict[str, int] = {}
        for subject in self.subjects:
            sizes[subject.category] = sizes.get(subject.category, 0) + 1
        chosen_of: dict[str, int] = dict.fromkeys(sizes, 0)
        rank = {}
        for position, subject in enumerate(self.subjects):
            rank[position] = (chosen_of[subject.category] + 0.5) / sizes[subject.category]
            chosen_of[subject.category] += 1
        chosen = set(sorted(rank, key=lambda position: (rank[position], position))[:subjects])
        return Benchmark(self.name, tuple(self.subjects[position] for position in sorted(chosen)))


def dreambenchpp(folder: str | Path, subjects: int | None = None) -> Benchmark:
    """Read a checkout of DreamBench++ (https://github.com/yuangpeng/dreambench_plus), or a folder like it.

    Args:
        folder: the checkout, or its `data/`, with `images/` and `captions/` by category: an image `NN.jpg` for each
            `NN.txt`, whose first line names the subject and whose other lines are its prompts.
        subjects: how many to take; None takes all.

    Raises:
        EvaluationError: no such folder, a caption file without its image, or one without prompts.
        TextError: a caption file that is not UTF-8.
    """
    root = Path(folder)
    root = root / "data" if (root / "data" / "captions").is_dir() else root
    if not (root / "captions").is_dir():
        raise EvaluationError(f"{folder} is no DreamBench++ checkout: there is no captions/ in it or in its data/")
    result = []
    for captions in list_files(root / "captions", (".txt",)):
        place = captions.relative_to(root / "captions").with_suffix("")
        lines = [line.strip() for line in read_text(captions).splitlines()]
        name, texts = (lines[0] if lines else ""), [line for line in lines[1:] if line]
        if not name or not texts:
            raise EvaluationError(f"{captions}: the first line names the subject, the others are its prompts")
        reference = image_of(root / "images" / place)
        if reference is None:
            raise EvaluationError(f"{captions} has no image: {root / 'images' / place}.jpg is missing")
        collection = "_".join([*place.parts, name.lower().replace(" ", "_")])
        kinds = DREAMBENCHPP_KINDS if len(texts) == len(DREAMBENCHPP_KINDS) else ("prompt",) * len(texts)
        prompts = tuple(Prompt(index, text, kinds[index]) for index, text in enumerate(texts))
        result.append(Subject(collection, place.parts[-2] if len(place.parts) > 1 else "subject", reference, prompts))
    return Benchmark("DreamBench++", tuple(result)).limited(subjects)


def dreambench(folder: str | Path, subjects: int | None = None) -> Benchmark:
    """Read DreamBench (https://github.com/google/dreambooth): 30 subjects, 25 prompts each, 4 to 6 images of a subject.

    Args:
        folder: the checkout, with `dataset/prompts_and_classes.txt` and a folder of images a subject. The first
            image by name is the reference.
        subjects: how many to take; None takes all.

    Raises:
        EvaluationError: a file or folder is missing, or the table cannot be read.
        TextError: the table is not UTF-8.
    """
    root = Path(folder)
    root = root / "dataset" if (root / "dataset").is_dir() else root
    table = root / "prompts_and_classes.txt"
    if not table.is_file():
        raise EvaluationError(f"{folder} is no DreamBench checkout: there is no {table}")
    text = read_text(table)
    classes = dict(re.findall(r"^\s*([\w-]+)\s*,\s*([^,\n]+?)\s*$", text, re.MULTILINE))
    classes.pop("subject_name", None)
    lists = re.findall(r"prompt_list\s*=\s*\[(.*?)\n\s*\]", text, re.DOTALL)
    if not classes or len(lists) != 2:
        raise EvaluationError(f"{table}: a table of subjects and classes and two prompt lists are needed")
    objects, live = ([quoted[1:-1] for quoted in re.findall(r"'[^'\n]*'", entries)] for entries in lists)
    result = []
    for name, kind in sorted(classes.items()):
        images = list_files(root / name, IMAGES, recursive=False) if (root / name).is_dir() else []
        if not images:
            raise EvaluationError(f"{root / name} holds no image of {name}")
        is_live = kind in ("cat", "dog")
        texts = [template.replace("{0} ", "").replace("{1}", kind) for template in (live if is_live else objects)]
        result.append(
            Subject(name, "live subject" if is_live else "object", images[0], _prompts(texts), tuple(images[1:]))
        )
    return Benchmark("DreamBench", tuple(result)).limited(subjects)


def table(file: str | Path, subjects: int | None = None) -> Benchmark:
    """Read a table (see `files.rows`) with the columns `reference` (an image, relative to the file) and `prompt`.

    Rows of one reference are one subject. Further columns may be `subject` (its name; the reference's otherwise),
    `category` and `kind` (of the prompt).

    Raises:
        EvaluationError: an image is missing, or a subject has several references; the message names the row or subject.
        TableError: the table cannot be read, or a reference or prompt is missing; the message names the row.
    """
    path = Path(file)
    groups: dict[str, list[Row]] = {}
    for row in Table(path):
        image = row.required_text("reference")
        if not (path.parent / image).is_file():
            raise EvaluationError(f"{row.where}: there is no image {path.parent / image}")
        groups.setdefault(row.text("subject") or Path(image).with_suffix("").as_posix(), []).append(row)
    result = []
    for name, rows in groups.items():
        if len({(row.text("reference"), row.text("category")) for row in rows}) > 1:
            raise EvaluationError(f"{file}: the subject {name!r} has several references or categories")
        prompts = tuple(
            Prompt(index, row.required_text("prompt"), row.text("kind") or "prompt") for index, row in enumerate(rows)
        )
        reference = path.parent / rows[0].required_text("reference")
        category = rows[0].text("category") or "subject"
        result.append(Subject(name.replace("/", "_"), category, reference, prompts))
    return Benchmark(path.stem, tuple(result)).limited(subjects)


def folder(folder: str | Path, subjects: int | None = None) -> Benchmark:
    """Read a folder of images, each with its prompts, a line each, in `NAME.txt` beside it; subfolders are categories.

    Raises:
        EvaluationError: images without prompts or that cannot be decoded, prompts that are not UTF-8; all of them by name.
        FolderError: there is no such folder.
    """
    root = Path(folder)
    result = []
    problems: list[str] = []
    for image in list_files(root, IMAGES):
        texts = image.with_suffix(".txt")
        try:
            load_rgb(image)
            prompts = _prompts(read_text(texts).splitlines() if texts.is_file() else ())
        except (ImageError, TextError) as error:
            problems.append(str(error))
            continue
        if not prompts:
            problems.append(f"{image}: its prompts are missing, a line each, in {texts}")
        place = image.relative_to(root).with_suffix("")
        category = place.parts[0] if len(place.parts) > 1 else "subject"
        result.append(Subject("_".join(place.parts), category, image, prompts))
    if problems:
        raise EvaluationError(together(problems))
    return Benchmark(root.name, tuple(result)).limited(subjects)


def _prompts(lines: Iterable[str]) -> tuple[Prompt, ...]:
    return tuple(Prompt(index, line.strip(), "prompt") for index, line in enumerate(filter(str.strip, lines)))


def image_of(stem: Path) -> Path | None:
    """Return the image named `stem` with one of the endings `IMAGES`, in any case; None if there is none."""
    for ending in IMAGES:
        if (file := stem.parent / f"{stem.name}{ending}").is_file():
            return file
    if not stem.parent.is_dir():
        return None
    name = normalised(stem.name)
    others = [
        file
        for file in stem.parent.iterdir()
        if normalised(file.stem) == name and file.suffix.lower() in IMAGES and not is_system_file(file.name)
    ]
    return min(others, key=lambda file: IMAGES.index(file.suffix.lower()), default=None)
