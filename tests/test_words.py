"""Checks the tree itself: plain words in every text, docstrings that state, small folders, one place that writes files."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from configparser import ConfigParser
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).relative_to(ROOT).as_posix()

CODE = ("dsd_lightning/", "datamodules/", "callbacks/")

NOT_READ = (
    *("*.png", "*.safetensors", "LICENSE", "constraints.txt"),
    *("assets/*.json", "assets/*.txt", "tests/data/*"),  # weights, tokenizers and what others publish
    "dsd_lightning/*.txt",  # what language models are asked; judges were measured with these texts
)
"""Files that are not searched for words."""

BANNED = {
    "image": r"pictures?(?!d)",
    "generated; teacher": r"paint(ed|er|ers|ing|s)?\b",
    "metric or estimate; character or silhouette": r"(?<![A-Za-z])figures?(?![a-z])",
    "EMA weights": r"averag(ed|ing) weights|weight averages|averages of the weights|(?<![A-Za-z])averages(?! over)",
    "gradient checkpointing": r"recompute(?!d|s)",
    "sharded; all-gathered": r"(?<![a-z])in pieces(?![\w.:)\]]| if)|put together",
    "subject named; not named": r"untold|told grids?\b|told teacher|teacher \w+ (not )?told",
    "reconstructed": r"redrawn|redraw",
    "command": r"(?<![A-Za-z])verbs?(?![a-z])",
    "fix": r"(?<![A-Za-z])mend(s|ed|ing)?(?![a-z])",
    "again; from scratch": r"(?<![A-Za-z])anew(?![a-z])",
    "is; are": r"(?<!must\x20)(?<![A-Za-z])lies?(?![a-z])(?! outside| within| between)",
    "atomic": r"whole or not at all",
    "no API call is repeated": r"nothing twice",
    "a statement": r"what becomes of",
    "alternately": r"(?<![a-z])in turns(?=[\s,])",
}
"""Words that earlier drafts used in a sense of their own, by what the field says instead."""

ALLOWED = (
    # A style of the miniature, and words of its captions: losses with a seed depend on captions.
    ("*", r"(?i)(?<!s )painted(?! (image|by|with|sample|panel|grid|one|character))"),
    ("*", r"pictures? of (this|the same|the) character"),
    ("dsd_lightning/miniature/captions.py", r"pictures?( of|\"| \w+\")"),
    ("conf/pretraining/text.yaml", r"picture|painting"),
    # matplotlib's class, HTML's element, and illustrations of a paper by their number.
    ("dsd_lightning/*/plot*.py", r"(?i)figure"),
    ("*.html", r"figure( img)? \{|figure\""),
    ("*", r"Figures? \d"),
)
"""Matches that stay for a reason: paths, and what stands at the match's place."""


@cache
def tracked() -> tuple[str, ...]:
    """Return the project's files as git lists them; without git, those that are neither hidden nor outputs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else [
        name for name in (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*"))
        if not re.search(r"/\.|/(outputs|multirun|wandb|wheels|build|__pycache__)/|egg-info", f"/{name}")
    ]  # fmt: skip
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


def lines_with(banned: str) -> list[str]:
    """Return `path:line: text` of the places where a banned pattern stands, but for those that are allowed."""
    pattern = re.compile(banned.replace(" ", r"[ \n#]+"), re.IGNORECASE)
    hits = []
    for name in tracked():
        if name == HERE or any(fnmatchcase(name, data) for data in NOT_READ):
            continue
        text = re.sub(r"base64,[\w+/=]+", "", (ROOT / name).read_text(encoding="utf-8"))
        allowed = [re.compile(words) for paths, words in ALLOWED if fnmatchcase(name, paths)]
        for match in pattern.finditer(text):
            if not any(each.match(text, match.start()) for each in allowed):
                line = text.count("\n", 0, match.start()) + 1
                hits.append(f"{name}:{line}: {text.splitlines()[line - 1].strip()[:100]}")
    return hits


def test_texts_use_the_terms_of_the_field() -> None:
    hits = {instead: lines for instead, pattern in BANNED.items() if (lines := lines_with(pattern))}
    assert not hits, "\n".join(f"{instead}: {line}" for instead, lines in hits.items() for line in lines)


EMPTY_NAMES = {"found", "known", "told", "made"}
"""Names of variables that say how a value came about, and not what it is."""


def test_variables_are_named_by_what_they_hold() -> None:
    named = {
        f"{name}:{node.lineno}: {variable}"
        for name in tracked()
        if name.endswith(".py")
        for function in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        if (variable := node.arg if isinstance(node, ast.arg) else node.id) in EMPTY_NAMES
    }
    assert not named


def test_module_docstrings_state_what_the_module_does() -> None:
    asking = []
    for name in tracked():
        if name.endswith(".py"):
            docstring = ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8")))
            assert docstring, f"{name} has no docstring"
            if "?" in docstring.split("\n\n")[0]:
                asking.append(name)
    assert not asking, f"first lines that ask: {asking}"


def test_folders_are_small() -> None:
    modules = [PurePosixPath(name) for name in tracked() if name.endswith(".py") and not name.endswith("__init__.py")]
    counts = Counter(path.parent.as_posix() for path in modules)
    assert counts.pop("dsd_lightning") <= 6
    assert {folder: count for folder, count in counts.items() if count > 15} == {}


def test_folders_of_tests_mirror_the_code() -> None:
    folders = {name.split("/")[1] for name in tracked() if re.fullmatch(r"tests/\w+/test_\w+\.py", name)}
    code = {name.split("/")[1] for name in tracked() if re.match(r"dsd_lightning/\w+/", name)}
    assert folders - code == {"callbacks", "conf", "datamodules"}


def test_every_data_file_is_part_of_the_package() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = [
        f"{package.replace('.', '/')}/{pattern.strip()}"
        for package, listed in config["options.package_data"].items()
        for pattern in listed.split(",")
    ]
    data = [name for name in tracked() if name.startswith(CODE) and not name.endswith(".py")]
    assert [name for name in data if not any(fnmatchcase(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in data)] == []


OUTSIDE = re.compile(r"os\.replace|(?<!atomic)\.rename\(|csv\.DictReader")

ONE_PLACE = ("dsd_lightning/files/atomic.py", "dsd_lightning/files/rows.py")


def test_files_are_renamed_and_tables_read_in_one_place() -> None:
    others = [
        f"{name}: {call}"
        for name in tracked()
        if name.startswith(CODE) and name.endswith(".py") and name not in ONE_PLACE
        for call in OUTSIDE.findall((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert others == []
