"""Runs the public code of published metrics on prepared inputs: the half of `benchmarks.published` that is not ours.

python -m benchmarks.published.their_code SPEC.json

`python -m benchmarks.published` starts it in a process of its own. Of this project it imports these modules alone,
so that other versions of transformers can be used. What the public modules import and the compared metrics do not need is
replaced by empty modules if it is not installed: command lines (fire), logging (loguru), remote files (megfile: glob and open
take its place), face recognition (facexlib, AdaFace), OpenCV, supervision. InsightFace is never imported:
`stand_ins.FaceAnalysis` is in its place. Weights are loaded from the prepared files where theirs would be downloaded; Grounding
DINO's boxes are read from a table, or its network's answers are; a language model's answer is computed from the request. The
rest is their code as it stands.
"""

from __future__ import annotations

import glob
import importlib
import json
import logging
import os
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.published.stand_ins import Recorder, local_dino, package, stub, stub_torchvision_operators
from benchmarks.published.their_stories import grounding_dino, vistorybench, vistorybench_faces

VERSIONS = ("numpy", "pillow", "torch", "torchvision", "transformers", "tokenizers", "scipy", "krippendorff")


def dreambench_plus(spec: dict[str, Any]) -> dict[str, Any]:
    """Return similarities by image, scores, requests to the judge, scores of published replies, alpha and subjects."""
    import numpy
    import torch

    stub("fire")
    stub("megfile", smart_glob=lambda pattern: glob.glob(pattern, recursive=True), smart_open=open)
    vars(numpy)["float_"] = numpy.float64  # removed in numpy 2
    sys.path.insert(0, spec["dreambench_plus"])
    local_dino(spec["dino"], spec["dino_weights"])
    package("dreambench_plus", f"{spec['dreambench_plus']}/dreambench_plus")
    importlib.import_module("dreambench_plus.utils")
    stub("dreambench_plus.utils.loguru", logger=logging.getLogger("dreambench_plus"))
    clip = importlib.import_module("dreambench_plus.metrics.clip_score")
    dino = importlib.import_module("dreambench_plus.metrics.dino_score")
    torch.distributed.init_process_group("gloo", init_method=f"file://{os.getcwd()}/group", rank=0, world_size=1)
    source, target, text = (f"{spec['samples']}/{name}" for name in ("src_image", "tgt_image", "text"))
    encoder = clip.CLIPScore(spec["clip"], device="cpu")
    means = {
        "CLIP-I": clip.multigpu_eval_clipi_score(source, target, clip_score=encoder, write_to_json=True),
        "CLIP-T": clip.multigpu_eval_clipt_score(text, target, clip_score=encoder, write_to_json=True),
        "DINO": dino.multigpu_eval_dino_score(source, target, write_to_json=True),
        "DINOv2": dino.multigpu_eval_dino_score(
            source, target, dino_score=dino.Dinov2Score(spec["dinov2"], device="cpu"), version="v2", write_to_json=True
        ),
    }
    files = {
        "CLIP-I": "clip_scores_image",
        "CLIP-T": "clip_scores_text",
        "DINO": "dino_scores_v1",
        "DINOv2": "dino_scores_v2",
    }
    dataset = importlib.import_module("dreambench_plus.dreambench_plus_dataset").DreamBenchPlus(spec["data"])
    alpha = importlib.import_module("dreambench_plus.krippendorff_analysis").kd_alpha
    return {
        "means": means,
        "by_image": {name: json.loads(Path(f"{file}.json").read_text()) for name, file in files.items()},
        "alpha": alpha(spec["ratings"]),
        "subjects": {each.collection_id: each.captions for each in dataset},
        **_judged(spec),
    }


def _judged(spec: dict[str, Any]) -> dict[str, Any]:
    preservation = importlib.import_module("dreambench_plus.eval_concept_preservation")
    following: Any = importlib.import_module("dreambench_plus.eval_prompt_following")
    utilities: Any = importlib.import_module("dreambench_plus.utils.gpt_utils")
    utilities.OpenAI = Recorder
    bodies, scores = [], []
    settings = ("full", 0, os.getcwd(), "judge", 3)
    for subject, index in spec["judged"]:
        category = "style" if subject.startswith("style") else "subject"
        place = "method", spec["samples"], subject, index
        assert preservation.execute_gpt_task(*place, category, *settings)
        scores.append(json.loads(Path(f"method-{subject}-{index}.json").read_text())["score"])
        assert following.execute_gpt_task(*place, "full", os.getcwd(), "judge", 3)
        scores.append(json.loads(Path(f"method-{subject}-{index}.json").read_text())["score"])
    bodies = [{key: value for key, value in body.items() if key != "seed"} for body in Recorder.bodies]
    read = []
    subject, index = spec["judged"][0]
    for reply in spec["replies"]:
        following.call_gpt = lambda *_, reply=reply, **__: reply
        scored = following.execute_gpt_task("method", spec["samples"], subject, index, "full", os.getcwd(), "judge", 1)
        read.append(json.loads(Path(f"method-{subject}-{index}.json").read_text())["score"] if scored else None)
    return {"requests": bodies, "scores": scores, "read": read}


def imagen_hub(spec: dict[str, Any]) -> dict[str, Any]:
    """Return DreamBench's DINO of every pair of a result and a real image."""
    from PIL import Image

    local_dino(spec["dino"], spec["dino_weights"])
    root = f"{spec['imagen_hub']}/src/imagen_hub"
    for name in ("", ".metrics", ".miscmodels"):
        package(f"imagen_hub{name}", root + name.replace(".", "/"))
    metric = importlib.import_module("imagen_hub.metrics.dreambooth_metric").MetricDINO("cpu")

    def of(pair: tuple[str, str]) -> float:
        real, result = (Image.open(file).convert("RGB") for file in pair)
        return float(metric.evaluate(real, result))

    return {"pairs": [[of(pair) for pair in pairs] for pairs in spec["pairs"]]}


def csd(spec: dict[str, Any]) -> dict[str, Any]:
    """Return CSD's style embeddings of square images."""
    import torch
    from PIL import Image

    transforms: Any = importlib.import_module("torchvision.transforms")

    clip = types.ModuleType("clip")
    package("openai_clip", f"{spec['csd']}/models/clip")
    model = importlib.import_module("openai_clip.model")
    clip.load = lambda _: (model.CLIP(*spec["sizes"], 8, 16, 64, 1, 1), None)  # type: ignore[attr-defined]
    sys.modules["clip"] = clip
    package("CSD", f"{spec['csd']}/CSD")
    encoder = importlib.import_module("CSD.model").CSD_CLIP()
    state = torch.load(spec["weights"], weights_only=True)
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], [])
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, deviation)])
    pixels = torch.stack([prepare(Image.open(file).convert("RGB")) for file in spec["images"]])
    with torch.no_grad():
        return {"style": encoder.eval()(pixels)[2].tolist()}


RUNNERS = {
    each.__name__: each for each in (dreambench_plus, imagen_hub, csd, vistorybench, vistorybench_faces, grounding_dino)
}


def main() -> None:
    """Run one of `RUNNERS` and write what it returns, with the versions, beside the specification."""
    file = Path(sys.argv[1])
    spec = json.loads(file.read_text())
    stub_torchvision_operators()
    results = RUNNERS[spec["code"]](spec)
    results["versions"] = {name: version(name) for name in VERSIONS}
    file.with_suffix(".results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
