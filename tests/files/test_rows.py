"""Tables are read strictly: right rows, or one message that names the file and the row."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_lightning.files.rows import SUFFIXES, Table, TableError
from dsd_lightning.files.text import TextError

CELLS = [{"image": "a.png", "caption": 'this character, "large"'}, {"image": "b.png", "caption": "line\nbreak"}]


def write(path: Path) -> Path:
    """Write `CELLS` as the table that the path's ending says."""
    if path.suffix in (".csv", ".tsv"):
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join(CELLS[0])]
        lines += [mark.join('"' + cell.replace('"', '""') + '"' for cell in row.values()) for row in CELLS]
        path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    elif path.suffix == ".parquet":
        pyarrow = importlib.import_module("pyarrow")
        importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(CELLS), path)
    else:
        path.write_text(json.dumps(CELLS) if path.suffix == ".json" else "\n\n".join(map(json.dumps, CELLS)))
    return path


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".CSV"])
def test_every_kind_of_table_has_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"table{suffix.lower()}").rename(tmp_path / f"t{suffix}")
    table = Table(path)
    assert table.columns == ("image", "caption")
    assert len(table) == 2
    assert [row.number for row in table] == [1, 2]
    assert [{name: row.text(name) for name in table.columns} for row in table] == CELLS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "image,caption\na.png,this character, large\n", "row 1 has 3 cells, and the header has 2"),
        ("a.csv", "image,caption\na.png,x\nb.png\n", "row 2 has 1 cells"),
        ("a.csv", 'image,caption\na.png,"open\n', "row 1: unexpected end of data; a quote is missing"),
        ("a.csv", 'image,caption\na.png,"one" two\n', "row 1: .* a quote is missing"),
        ("a.csv", f"image,caption\na.png,{'x' * 200_000}\n", "row 1: field larger than field limit"),
        ("a.csv", "image,image\na,b\n", "the column 'image' twice"),
        ("a.csv", "", "is empty; its first line names the columns"),
        ("a.jsonl", '{"image": "a.png"}\n[1]\n', "row 2: a JSON object is needed, not a list"),
        ("a.jsonl", '{"image": NaN}\n', "row 1 is not JSON: NaN"),
        ("a.json", '{"image": "a.png"}', "an array of objects is needed"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("a.xlsx", "", "a table ends in .csv"),
    ],
)
def test_what_is_no_table_is_refused_by_its_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TableError, match=message):
        list(Table(tmp_path / name))


@pytest.mark.parametrize(("encoding", "hint"), [("cp1252", "iconv -f WINDOWS-1252"), ("utf-16", "iconv -f UTF-16")])
def test_other_encodings_are_refused_with_the_way_to_convert(tmp_path: Path, encoding: str, hint: str) -> None:
    (tmp_path / "a.csv").write_text("image,caption\na.png,a café\n", encoding=encoding)
    with pytest.raises(TextError, match=f"a.csv is not UTF-8 text.*{hint}"):
        list(Table(tmp_path / "a.csv"))


@pytest.mark.parametrize("value", [7, 1.5, True, ["red"], {"a": 1}])
def test_what_is_no_text_never_becomes_words(tmp_path: Path, value: object) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"caption": value}))
    row = next(iter(Table(tmp_path / "a.jsonl")))
    with pytest.raises(TableError, match=r"row 1: column 'caption' holds .*; text is needed"):
        row.text("caption")


@pytest.mark.parametrize("cells", ["{}", '{"caption": null}', '{"caption": "  "}'])
def test_empty_cells_are_none_and_refused_where_needed(tmp_path: Path, cells: str) -> None:
    (tmp_path / "a.jsonl").write_text(cells)
    row = next(iter(Table(tmp_path / "a.jsonl")))
    assert row.text("caption") is None
    with pytest.raises(TableError, match="row 1: column 'caption' is empty"):
        row.required_text("caption")


@given(content=st.binary(max_size=200), suffix=st.sampled_from(SUFFIXES))
def test_random_bytes_are_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("random") / f"a{suffix}"
    path.write_bytes(content)
    try:
        rows = list(Table(path))
    except (TableError, TextError) as error:
        assert "a" + suffix in str(error)  # noqa: PT017 (either is right: rows, or a message)
    else:
        assert all(set(row.cells) <= set(Table(path).columns) for row in rows)
