"""Reads the commands of the documents' code blocks, and says of each how it is tested, or why it is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{each.name}" for each in (ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

_PROGRAM = re.compile(r"(\w+=(\"[^\"]*\"|\S+) )*(python|make|pip|hf|curl|torchrun|for gpu in|launch/\S+)\b")
"""What a command begins with; other lines of a block are trees, diagrams and comments."""


@dataclass(frozen=True)
class Pasted:
    """Run as it stands, in the documents' order, in a fresh copy of the project: `tests/test_fresh_copy.py`."""

    before: str = ""
    """Shell code that makes room for it, or what the document takes for granted."""


@dataclass(frozen=True)
class Elsewhere:
    """Run, with other sizes or settings, by a test: `file::name`."""

    test: str


@dataclass(frozen=True)
class Left:
    """Not run, for this reason."""

    reason: str


Way = Pasted | Elsewhere | Left

FLUX = Left("needs a GPU and the gated weights")
INSTALLS = Left("installs what the tests run in, from an index")
HUB = Left("needs a data set, or weights from a hub")
CLUSTER = Left("needs several GPUs or machines")
HOURS = Left("makes what assets/ holds, in hours")
ABBREVIATED = Left("abbreviated: `...` stands for settings of the reader's")

TRUE_CONDITIONS = Elsewhere(
    "tests/training/test_true_conditions.py::test_a_preset_trains_validates_saves_and_resumes_as_it_is"
)
EXPERIMENT = Elsewhere(
    "tests/training/test_true_conditions.py::test_an_experiment_of_the_miniature_trains_validates_saves_and_resumes_as_it_is"
)
ABLATION = Elsewhere("tests/ablation/test_ablation.py::test_a_killed_sweep_goes_on_and_is_reported_whole")
DATA_RUN = Elsewhere("tests/test_launch.py::test_a_data_run_makes_the_pairs_that_its_plan_expects_and_trains_on_them")
OWN_IMAGES = Elsewhere("tests/test_launch.py::test_own_images_become_pairs_a_model_and_an_image")
STORIES = Elsewhere("tests/evaluation/test_stories.py::test_a_miniature_copy_of_the_dataset_is_scored_offline")
STUDY = Elsewhere("tests/evaluation/test_user_study.py::test_raters_files_become_means_and_agreement")
JUDGED = Elsewhere(
    "tests/offline/test_offline_judge.py::test_the_command_scores_the_shipped_model_and_tables_compare_methods"
)
JUDGE_CALLBACK = Elsewhere("tests/callbacks/test_judge.py::test_all_processes_generate_and_the_first_judges")
ENCODES = Elsewhere("tests/distillation/test_distill_encode.py::test_a_run_is_encoded_and_trained_on_without_encoders")
ON_SHARDS = Elsewhere("tests/datamodules/test_data_sources.py::test_photographs_train")
RUN_AS_WRITTEN = Elsewhere("tests/generation/test_documented_commands.py::test_a_documented_command_runs")
OFFICIAL = Elsewhere("tests/models/test_restore.py::test_generation_uses_the_official_weights_a_run_started_from")
SERVER = Elsewhere("tests/agents/test_agents_server.py::test_the_command_serves_both_protocols_and_counts")

PACK = "python -m dsd_lightning.packing my_images"

RULES: list[tuple[str, str, Way]] = [
    # Documents, a pattern of the command, and what is done with it. The first that matches counts.
    (".*", r" \.\.\.( |$)", ABBREVIATED),
    # A new user's first hour.
    ("README.md", r"^python generate.py --image_path .*$", Pasted()),
    ("README.md|docs/distill.md", r"^python distill.py( agents=paper .*dry_run=true)?$", Pasted()),
    ("README.md", r"^python train.py (arch=parallel task=\w+|-m seed=.*|--help)$", Pasted()),
    ("README.md", r"^python train.py data=shards data.root=FOLDER$", Pasted(f"{PACK} FOLDER --all-pairs")),
    ("README.md", r"^python train.py experiment=miniature_long$", EXPERIMENT),
    (".*", r"launch/own_images.sh$|support.llm.own_image_captions", OWN_IMAGES),
    (".*", r"^launch/data_run.sh$", DATA_RUN),
    ("docs/train_flux.md", r"^python ", Pasted()),
    ("docs/data.md", r"dsd_lightning.packing (?!.*--caption vlm)\S+/? shards/", Pasted("rm -rf shards")),
    ("docs/data.md", r"dsd_lightning.shards index", Pasted("rm FOLDER/index.json")),
    ("docs/data.md", r"dsd_lightning.shards ", Pasted()),
    ("docs/data.md", r"write_shards", Pasted("rm -r FOLDER")),
    ("docs/distill.md", r"distillation.labels RUN", Pasted("ln -sfn outputs/distillation RUN")),
    (".*", r"^make page", Elsewhere("tests/ui/test_ui.py::test_the_command_serves_and_prints_its_address")),
    (".*", r"^make ", Left("`.ci/run` runs make check, test and test-long; make demo is the first training command")),
    (".*", r"^pip ", INSTALLS),
    (".*", r"^hf ", FLUX),
    ("README.md|docs/(use|export).md", r"^python (generate.py|-m dsd_lightning.export)", RUN_AS_WRITTEN),
    ("docs/(scale|planning).md", r"^python ", TRUE_CONDITIONS),
    ("docs/scale.md", "^torchrun", CLUSTER),
    ("README.md", r"experiment=(flux_|dsd_)", TRUE_CONDITIONS),
    (".*", r"experiment=(ablation|students)|dsd_lightning.ablation multirun", ABLATION),
    ("docs/agents.md", ".", SERVER),
    # Making pairs.
    ("docs/distill.md", r"executor\.tasks?=|executor=ray", CLUSTER),
    ("docs/distill.md", r"agents=paper|labels pairs$", DATA_RUN),
    ("docs/distill.md", r"grid_lora|tuned|outputs/(pairs|plain|exact|held_out)", Pasted()),
    (".*", r"distill.py encode=true|encoded/train", ENCODES),
    # One's own pairs.
    (
        "docs/data.md",
        r"--caption vlm",
        Elsewhere("tests/packing/test_own_images.py::test_a_model_writes_the_captions_once"),
    ),
    (
        "docs/data.md",
        r"depth_command|task=depth",
        Elsewhere("tests/packing/test_depth_command.py::test_depth_pairs_of_photographs_train"),
    ),
    ("docs/data.md", r"base=flux_dev", FLUX),
    (".*", r"data=shards data.root=", ON_SHARDS),
    # Scores.
    ("docs/evaluate.md", r"benchmark=vistorybench benchmark.folder=DATASET|agents=gemini|use=\[", HUB),
    ("docs/evaluate.md", r"offline.stories", STORIES),
    ("docs/evaluate.md", r"study", STUDY),
    ("docs/evaluate.md", r"^python evaluate.py$|table rows|run=last|method=images|benchmark.subjects=null", JUDGED),
    (
        "docs/evaluate.md",
        r"callbacks=judge",
        JUDGE_CALLBACK,
    ),
    # Weights.
    (
        "docs/export.md",
        r"init_from=",
        OFFICIAL,
    ),
    ("docs/miniature.md", ".", HOURS),
]


def commands(document: str) -> Iterator[str]:
    """Yield the commands of a document's code blocks in order: continued lines joined, comments cut."""
    for language, block in _BLOCK.findall((ROOT / document).read_text()):
        for line in re.sub(r"\\\n\s*", "", block).splitlines() if language in ("", "bash") else ():
            if _PROGRAM.match(line.strip()) and " -> " not in line:
                yield re.sub(r"\s+# .*", "", line.strip())


def rule_of(document: str, command: str) -> tuple[int, Way] | None:
    """Return the number of the first rule for a command, and what is done with it; None if there is no rule."""
    for number, (documents, pattern, way) in enumerate(RULES):
        if re.fullmatch(documents, document) and re.search(pattern, command):
            return number, way
    return None
