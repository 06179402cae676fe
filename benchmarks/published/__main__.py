r"""Compares our metrics with the public code of those who published them, on the same random weights, images and replies.

python -m benchmarks.published --dreambench_plus DIR --dino DIR --imagen_hub DIR --csd DIR --vistorybench DIR \
    --grounding_dino DIR --packages DIR [--out benchmarks/results/published_metrics.json]

Each DIR is a git checkout; those compared last and their commits are in the results:
https://github.com/yuangpeng/dreambench_plus, facebookresearch/dino (the ViT-S that DreamBench and DreamBench++ use),
TIGER-AI-Lab/ImagenHub (DreamBench's metric, of which its authors published no code), learn2phoenix/CSD,
ViStoryBench/vistorybench, IDEA-Research/GroundingDINO. --packages is a folder that only their code sees:
`pip install --no-deps --target DIR torchvision==0.28.0 transformers==4.41.2 tokenizers==0.19.1 \
huggingface-hub==0.25.2 natsort==8.4.0`.
What of theirs is replaced, and why, is in `benchmarks/published/their_code.py` and `their_stories.py`. Ours is built from the
shipped configuration. The ViT-S are of the published size; CLIP, DINOv2 and CSD have two blocks. Exits with 1 if a value
differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import facts, write
from benchmarks.published import inputs
from benchmarks.published.characters import compare_faces, compare_grounding_dino
from benchmarks.published.comparison import TOLERANCE, Comparison, Theirs
from benchmarks.published.stories import compare_csd, compare_vistorybench
from benchmarks.published.subjects import compare_dreambench, compare_dreambenchpp

CODE = {
    "dreambench_plus": (
        "dreambench_plus/metrics/clip_score.py",
        "dreambench_plus/metrics/dino_score.py",
        "dreambench_plus/eval_concept_preservation.py",
        "dreambench_plus/eval_prompt_following.py",
        "dreambench_plus/krippendorff_analysis.py",
        "dreambench_plus/dreambench_plus_dataset.py",
    ),
    "dino": ("hubconf.py", "vision_transformer.py"),
    "imagen_hub": ("src/imagen_hub/metrics/dreambooth_metric.py", "src/imagen_hub/miscmodels/dino_vit.py"),
    "csd": ("CSD/model.py", "models/clip/model.py"),
    "vistorybench": (
        "vistorybench/bench/style/csd_evaluator.py",
        "vistorybench/bench/content/cids_evaluator.py",
        "vistorybench/bench/prompt_align/prompt_align_evaluator.py",
        "vistorybench/dataset_loader/dataset_load.py",
        "vistorybench/dataset_loader/read_outputs.py",
    ),
    "grounding_dino": ("groundingdino/util/inference.py", "groundingdino/datasets/transforms.py"),
}
"""What is run, by option."""


def provenance(checkouts: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield, for each checkout, its repository, commit and the files that are run."""
    for name, folder in checkouts.items():
        git = [
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *CODE[name]))
        ]
        digests = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest()[:16] for file in CODE[name]}
        yield name, {"commit": git[0], "changed": bool(git[1]), "sha256": digests}


COMPARED = {
    "csd": compare_csd,
    "vistorybench": compare_vistorybench,
    "faces": compare_faces,
    "grounding_dino": compare_grounding_dino,
    "dreambench": compare_dreambench,
    "dreambench_plus": compare_dreambenchpp,
}
"""By the word of --only."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all comparisons; return 1 if something differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    for name in (*CODE, "packages"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--only", choices=COMPARED, nargs="+", default=list(COMPARED), help="others stay in --out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    checkouts = {name: getattr(args, name).resolve() for name in CODE}
    code = dict(provenance(checkouts))
    before = json.loads(args.out.read_text()) if args.out is not None and args.out.is_file() else {}
    compared = Comparison(before["compared"] if before.get("code") == code and args.only != list(COMPARED) else {})
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng():
        folder = Path(scratch)
        weights = folder / "weights"
        inputs.write_dino(weights / "vits16", 16)
        inputs.write_dino(weights / "vits8", 8)
        inputs.write_dinov2(weights / "dinov2")
        inputs.write_clip(weights / "clip32", 32)
        inputs.write_clip(weights / "pretrain" / "openai" / "clip-vit-large-patch14", 14)
        inputs.write_csd(weights / "pretrain" / "csd" / "csd_vit-large.pth")
        theirs = Theirs(checkouts, args.packages.resolve(), folder)
        for name in args.only:
            COMPARED[name](theirs, folder, compared)
    results = {
        "what": "metrics of the public code and ours, on the same random weights, images and replies",
        **facts(torch.device("cpu")),
        "code": code,
        "versions_of_their_process": theirs.versions,
        "tolerance": TOLERANCE,
        "compared": compared.results,
    }
    write(args.out, results)
    for name in compared.failed:
        sys.stderr.write(f"differs: {name}: {compared.results[name]}\n")
    return int(bool(compared.failed))


if __name__ == "__main__":
    sys.exit(main())
