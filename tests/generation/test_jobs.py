"""Shows that tables of jobs of every kind are read, done once, checked before the first image, and refused by row."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsd_lightning.files.rows import TableError
from dsd_lightning.generation.command import REFUSED, main
from dsd_lightning.generation.jobs import GenerationError, read_jobs
from dsd_lightning.generation.provenance import read_provenance


def test_jobs_are_done_once(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "jobs.csv"
    table.write_text("image_path,text,output_path,seed,steps\na.png,a hat,x/1.png,3,\na.png,a coat,x/2.png,,1\n")
    flags = ["--jobs", str(table), "--steps", "2", "--size", "32", "--device", "cpu", "--disable_gemini_prompt"]
    assert main(flags) == 0
    first, second = tmp_path / "x" / "1.png", tmp_path / "x" / "2.png"
    before = first.stat().st_mtime_ns
    second.unlink()
    capsys.readouterr()
    assert main(flags) == 0
    assert "1 of 2 jobs are done already" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == before
    provenance = read_provenance(second)
    assert provenance is not None
    assert provenance["steps"] == 1
    assert main(flags) == 0  # nothing left: no model is loaded
    assert "2 of 2 jobs are done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"image_path": "a.png", "text": "x"}'], "row 1: no value for output"),
        (['{"image_path": "a.png", "text": "x", "output_path": "o.png", "colour": "red"}'], "unknown column 'colour'"),
        (['{"image_path": "a.png", "text": "x", "output_path": "o.png", "steps": "many"}'], "row 1: .*'many'"),
        (['{"image_path": "a.png", "text": "x", "output_path": "o.png", "size": "big"}'], "size=big: give SIDE"),
        (['{"image_path": "a.png", "text": "x", "output_path": "o.gif"}'], r"written as \.png"),
        (['{"image_path": "a.png", "text": "x", "output_path": "o.png"}'] * 2, "row 2: writes .*as row 1 does"),
        (
            ['{"image_path": "a.png", "text": "x", "output_path": "o.png", "seed": 7.9}'],
            r"seed=7\.9 must be a whole number",
        ),
        (['{"image_path": "a.png", "text": ["x"], "output_path": "o.png"}'], "column 'text' holds a list"),
        (['{"image_path": "a.png", "text": NaN, "output_path": "o.png"}'], "row 1 is not JSON"),
        (["{"], "row 1 is not JSON"),
        ([], "has no rows"),
    ],
)
def test_wrong_tables_are_refused_by_row(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines))
    with pytest.raises((GenerationError, TableError), match=message):
        read_jobs(tmp_path / "jobs.jsonl", {})


@pytest.mark.parametrize(
    ("name", "content", "seeds"),
    [
        ("jobs.CSV", "\ufeffimage_path,text,output_path,seed\r\na.png,caf\u00e9,1.png,7.0\r\n".encode(), [7]),
        ("jobs.tsv", b"image_path\tprompt\toutput_path\tseed\na.png\ta, b\t1.png\t9007199254740993\n", [2**53 + 1]),
        ("jobs.json", b'[{"image_path": "a.png", "text": "a", "output_path": "1.png", "seed": null}]', [-1]),
    ],
)
def test_every_kind_of_table_is_read(tmp_path: Path, name: str, content: bytes, seeds: list[int]) -> None:
    (tmp_path / name).write_bytes(content)
    assert [job.seed for job in read_jobs(tmp_path / name, {})] == seeds


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_jobs_that_are_not_utf8_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str) -> None:
    table = tmp_path / "jobs.csv"
    table.write_bytes("image_path,text,output_path\na.png,caf\u00e9,1.png\n".encode(encoding))
    assert main(["--jobs", str(table)]) == REFUSED
    message = capsys.readouterr().err
    assert f"{table} is not UTF-8" in message
    assert "iconv" in message


def test_every_size_is_checked_before_the_first_image(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "jobs.csv"
    table.write_text("image_path,text,output_path,size\na.png,red,1.png,32\na.png,red,2.png,100\n")
    assert main(["--jobs", str(table), "--steps", "1", "--device", "cpu", "--disable_gemini_prompt"]) == REFUSED
    message = capsys.readouterr().err
    assert "2.png" in message
    assert "nearest is" in message
    assert not (tmp_path / "1.png").exists()
