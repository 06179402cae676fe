"""Inputs of every kind that people bring, tried on the project's readers, as the table of docs/inputs.md."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from dsd_lightning.distillation.panels import find_panels
from dsd_lightning.distillation.rules import read_verdict
from dsd_lightning.evaluation.judging.replies import Score, parse
from dsd_lightning.files.listing import list_files
from dsd_lightning.files.rows import Table
from dsd_lightning.files.text import read_text
from dsd_lightning.images.pixels import load_rgb, require_side
from dsd_lightning.shards import PairShards, verify_shards
from support.data.shard_sets import add_tar, plain_sample

_ENCODERS = re.compile(r"(?<=at byte )\d+(?=, within)|(?<=truncated \()\d+")
"""Numbers that depend on the version of the library that encoded an image."""


@dataclass(frozen=True)
class Tried:
    """One row of the table."""

    kind: str
    input: str
    behaviour: str


def tried(folder: Path) -> list[Tried]:
    """Try everything in an empty folder, and return what happened."""
    rows = []
    for kind, inputs in (
        ("image", _images(folder)),
        ("table", _tables(folder)),
        ("text", _texts(folder)),
        ("folder", _folders(folder)),
        ("shards", _shards(folder)),
        ("judge's score", _scores()),
        ("verdict on a pair", _verdicts()),
        ("grid", _grids()),
    ):
        for name, read in inputs:
            try:
                behaviour = read()
            except (ValueError, OSError) as error:
                behaviour = "refused: " + str(error).replace("\n", " ")
            rows.append(Tried(kind, name, _ENCODERS.sub("N", behaviour.replace(f"{folder}/", ""))))
    return rows


def table(rows: list[Tried]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| kind | input | behaviour |", "|---|---|---|"]
    for row in rows:
        cells = (each.replace("|", "\\|") for each in (row.kind, row.input, row.behaviour))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


Inputs = Iterator[tuple[str, Callable[[], str]]]


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _images(folder: Path) -> Inputs:
    photograph = Image.fromarray(data.coffee()).resize((60, 40))
    turned = Image.Exif()
    turned[0x0112] = 6
    transparent = photograph.convert("RGBA")
    transparent.putalpha(0)
    huge = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0))
    huge += _chunk(b"IDAT", zlib.compress(b""))
    gray = Image.fromarray(np.full((40, 60), 65535, dtype=np.uint16))
    for name, file, content in (
        ("JPEG turned by its EXIF orientation", "turned.jpg", _encoded(photograph, "JPEG", exif=turned)),
        ("JPEG in CMYK", "cmyk.JPG", _encoded(photograph.convert("CMYK"), "JPEG")),
        ("PNG with transparency", "clear.png", _encoded(transparent, "PNG")),
        ("PNG, gray of 16 bits", "gray.png", _encoded(gray, "PNG")),
        ("GIF of several frames", "a.gif", _encoded(photograph, "GIF", save_all=True, append_images=[transparent])),
        ("TIFF of floating point", "float.tiff", _encoded(photograph.convert("F"), "TIFF")),
        ("JPEG that breaks off", "cut.jpg", _encoded(photograph, "JPEG")[:700]),
        ("empty file", "empty.png", b""),
        ("text named as an image", "text.png", b"no image"),
        ("PNG of 900 million pixels", "huge.png", huge),
        ("image of 5 x 5 pixels", "tiny.png", _encoded(photograph.resize((5, 5)), "PNG")),
    ):
        (folder / file).write_bytes(content)

        def read(path: Path = folder / file) -> str:
            image = load_rgb(path)
            require_side(image)
            corner = "white" if image.getpixel((0, 0)) == (255, 255, 255) else "coloured"
            return f"read: {image.width} x {image.height}, {image.mode}, corner {corner}"

        yield name, read


def _tables(folder: Path) -> Inputs:
    for name, file, content in (
        ("CSV with a byte order mark and CRLF", "a.csv", b'\xef\xbb\xbfimage,caption\r\na.png,"red, large"\r\n'),
        ("TSV", "a.tsv", b"image\tcaption\na.png\tred, large\n"),
        ("JSON Lines with a blank line", "a.jsonl", b'{"image": "a.png", "caption": "red"}\n\n'),
        ("CSV, commas without quotes", "b.csv", b"image,caption\na.png,red, large\n"),
        ("CSV, a cell too few", "c.csv", b"image,caption\na.png\n"),
        ("CSV, open quote", "d.csv", b'image,caption\na.png,"red\n'),
        ("CSV, a column twice", "e.csv", b"image,image\na.png,b.png\n"),
        ("CSV, a cell of 200,000 characters", "f.csv", b"image,caption\na.png," + b"x" * 200_000 + b"\n"),
        ("CSV in Windows-1252", "g.csv", "image,caption\na.png,café\n".encode("cp1252")),
        ("CSV in UTF-16", "h.csv", "image,caption\n".encode("utf-16")),
        ("empty CSV", "i.csv", b""),
        ("JSON, a caption that is null", "j.json", b'[{"image": "a.png", "caption": null}]'),
        ("JSON, a caption that is a list", "k.json", b'[{"image": "a.png", "caption": ["red"]}]'),
        ("JSON, a caption that is a number", "l.json", b'[{"image": "a.png", "caption": 7}]'),
        ("JSON with NaN", "m.json", b'[{"image": "a.png", "caption": NaN}]'),
        ("JSON, an object instead of an array", "n.json", b'{"image": "a.png"}'),
        ("Excel", "o.xlsx", b"PK"),
        ("Parquet", "p.parquet", _parquet({"image": ["a.png"], "caption": ["red, large"]})),
        ("Parquet, a caption that is null", "q.parquet", _parquet({"image": ["a.png"], "caption": [None]})),
        ("Parquet, a caption that is a number", "r.parquet", _parquet({"image": ["a.png"], "caption": [7]})),
        ("CSV named as Parquet", "s.parquet", b"image,caption\na.png,red\n"),
    ):
        (folder / file).write_bytes(content)

        def read(path: Path = folder / file) -> str:
            return "read: " + "; ".join(row.required_text("caption") for row in Table(path))

        yield name, read

    def both() -> str:
        problems: list[str] = []
        captions = [row.required_text("caption") for row in Table(folder / "t.csv").readable(problems)]
        return f"read: {'; '.join(captions)}; listed: {len(problems)} rows"

    (folder / "t.csv").write_text('caption\nred\nred, large\nblue\n"red, large"\nred, small\n')
    yield "captions of distillation, two rows of five without quotes", both


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow.parquet  # here, because parquet is an optional extra

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _texts(folder: Path) -> Inputs:
    for name, file, content in (
        ("UTF-8 with a byte order mark", "bom.txt", b"\xef\xbb\xbfa caf\xc3\xa9"),
        ("CRLF", "crlf.txt", b"one\r\ntwo\r\n"),
        ("Windows-1252", "cp1252.txt", "a café".encode("cp1252")),
        ("UTF-16", "utf16.txt", "a café".encode("utf-16")),
    ):
        (folder / file).write_bytes(content)
        yield name, lambda path=folder / file: f"read: {read_text(path)!r}"  # type: ignore[misc]


def _folders(folder: Path) -> Inputs:
    root, elsewhere = folder / "images", folder / "elsewhere"
    for place in (root, root / "__MACOSX", elsewhere, folder / "circle"):
        place.mkdir()
    accent = unicodedata.normalize("NFD", "é.png")
    for name in ("10.png", "9.PNG", ".DS_Store", "._9.png", "Thumbs.db", "__MACOSX/9.png", accent):
        (root / name).touch()
    (elsewhere / "11.png").touch()
    (root / "linked").symlink_to(elsewhere)
    (folder / "circle" / "back").symlink_to(folder / "circle")

    def names(place: Path) -> str:
        return "listed: " + ", ".join(
            unicodedata.normalize("NFC", path.relative_to(place).as_posix()) for path in list_files(place, [".png"])
        )

    yield "hidden and system files, .PNG, numbers, a linked subfolder, a name from macOS", lambda: names(root)
    yield "a link to a folder above it", lambda: names(folder / "circle")
    yield "no such folder", lambda: names(folder / "nowhere")


def _shards(folder: Path) -> Inputs:
    def made(name: str, members: dict[str, bytes], ending: str = "t.tar") -> Path:
        (folder / name).mkdir()
        add_tar(folder / name / ending, members)
        return folder / name

    whole = made("whole", plain_sample("a") | plain_sample("b", 1))
    dotted = made("dotted", plain_sample("a") | plain_sample("photo.v2", 1))
    partial = made("partial", {name: file for name, file in plain_sample("a").items() if "target" not in name})
    cut = made("cut", plain_sample("a") | plain_sample("b", 1))
    content = (cut / "t.tar").read_bytes()
    (cut / "t.tar").write_bytes(content[: len(content) // 2 + 2000])
    compressed = folder / "compressed"
    compressed.mkdir()
    with tarfile.open(compressed / "t.tar.gz", "w:gz"):
        pass

    def read(root: Path) -> str:
        shards = PairShards(root)
        problems = "; ".join(verify_shards(root))
        return f"read: {', '.join(shards.keys)}" + (f"; reported: {problems}" if problems else "")

    for name, root in (
        ("foreign tar", whole),
        ("a key with a dot", dotted),
        ("a sample without its target", partial),
        ("a tar that breaks off", cut),
        ("a compressed tar", compressed),
    ):
        yield name, lambda root=root: read(root)  # type: ignore[misc]


def _scores() -> Inputs:
    for reply in (
        "Score: 3",
        '```json\n{"score": 2}\n```',
        "<think>Score: 4</think> **Score**: 1",
        "\N{FULLWIDTH DIGIT THREE}分",
        "3 out of 4",
        "Score: 1/4 of features match, so 2",
        "Score: 3 or 4",
        "Score: 3.5",
        "Score: 7",
        "I'm sorry, I cannot rate this.",
    ):

        def read(reply: str = reply) -> str:
            result = parse(reply)
            return f"score {result.value}" if isinstance(result, Score) else f"no score: {result.problem}"

        yield "`" + reply.replace("\n", "\\n").replace("`", "'") + "`", read


def _verdicts() -> Inputs:
    for reply in (
        "Yes, they are the same.",
        "Confidence: 0.95\nYes",
        "Confidence: 95%\nNo.",
        "<think>yes</think>No",
        "是",
        "Maybe.",
    ):

        def read(reply: str = reply) -> str:
            verdict = read_verdict(reply)
            if verdict is None:
                return "unclear"
            confidence = "" if verdict.confidence is None else f", confidence {verdict.confidence:g}"
            return ("same" if verdict.same else "another") + confidence

        yield "`" + reply.replace("\n", "\\n") + "`", read


def _grids() -> Inputs:
    photographs = [np.asarray(Image.fromarray(read()).resize((64, 64))) for read in (data.coffee, data.astronaut)]
    four = np.block([[[photographs[0]], [photographs[1]]], [[photographs[1][::-1]], [photographs[0][::-1]]]])
    for name, values in (
        ("2 x 2 photographs", four),
        ("one photograph", np.asarray(Image.fromarray(data.chelsea()).resize((128, 128)))),
        ("one colour", np.full((64, 64, 3), 200, dtype=np.uint8)),
        ("20 x 20 pixels", np.zeros((20, 20, 3), dtype=np.uint8)),
    ):
        yield name, lambda values=values: f"cut into {len(find_panels(values))} panels"  # type: ignore[misc]
