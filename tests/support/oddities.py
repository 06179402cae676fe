"""A folder of images and captions with every oddity at once: some are read, the others must be named."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from skimage import data

READ = ("1", "2", "10", "turned", "upper", "linked/far")
"""Stems of the images that are in order, in the order of listing within their kind."""

UNREADABLE = ("broken.jpg", "empty.png", "text.png")
"""Images that cannot be decoded; their captions are in order."""

CP1252, WITHOUT, BLANK = "cp1252.png", "without.png", "blank.png"
"""Images whose caption is in another encoding, missing, or empty."""


def write_oddities(root: Path) -> Path:
    """Fill a folder: targets with captions beside them in `target/`, references of the same names in `reference/`."""
    photograph = Image.fromarray(data.coffee()).resize((96, 64))
    turned = Image.Exif()
    turned[0x0112] = 6
    elsewhere = root / "elsewhere"
    for side in ("target", "reference"):
        folder = root / side
        (folder / "__MACOSX").mkdir(parents=True)
        (elsewhere / side).mkdir(parents=True)
        (folder / "linked").symlink_to(elsewhere / side)
        for name in ("1.png", "2.png", "10.png", "upper.PNG", "linked/far.png", CP1252, WITHOUT, BLANK):
            photograph.save(folder / name, "PNG")
        photograph.save(folder / "turned.jpg", exif=turned, quality=95)
        whole = (folder / "turned.jpg").read_bytes()
        for name, content in zip(UNREADABLE, (whole[: len(whole) // 2], b"", b"no image"), strict=True):
            (folder / name).write_bytes(content)
        for name in (".DS_Store", "._1.png", "Thumbs.db", "__MACOSX/1.png", "notes.pdf"):
            (folder / name).write_bytes(b"x")
    target = root / "target"
    for stem in (*READ, *(Path(name).stem for name in UNREADABLE)):
        (target / f"{stem}.txt").write_bytes(b"\xef\xbb\xbfa cup of coffee\r\n")
    (target / "cp1252.txt").write_bytes("a café".encode("cp1252"))
    (target / "blank.txt").write_text(" \n")
    return root
