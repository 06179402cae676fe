"""Runs the public code of published metrics on prepared inputs: the half of `benchmarks.published_metrics` that is not ours.

python their_code.py SPEC.json      (started by `python -m benchmarks.published_metrics`, in a process of its own)

Imports nothing of this project, so that other versions of transformers can be used. What their modules import and the
compared metrics do not need is replaced by empty modules if it is not installed: command lines (fire), logging (loguru),
remote files (megfile: glob and open take its place), face recognition (insightface, facexlib, cv2, AdaFace). Weights are loaded
from the prepared files where theirs would be downloaded; Grounding DINO's finds are read from a table; a language model's
answer is computed from the request. The rest is their code as it stands.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import json
import logging
import os
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

VERSIONS = ("numpy", "pillow", "torch", "torchvision", "transformers", "tokenizers", "scipy", "krippendorff")

TIMESTAMP = "20260101_000000"
"""Of the run in ViStoryBench's folder of outputs."""


def in_parts(messages: Any) -> list[dict[str, Any]]:
    """Return messages whose content is a list of parts; to the API a text alone is the same."""
    return [
        {**each, "content": [{"type": "text", "text": each["content"]}]} if isinstance(each["content"], str) else each
        for each in messages
    ]


def reply_to(messages: Any) -> str:
    """Return a language model's answer: a score that any change of the request changes."""
    digest = hashlib.sha256(json.dumps(in_parts(messages), sort_keys=True).encode()).digest()
    return f"Analysis: as it is.\nScore: {digest[0] % 5}"


class _Absent:
    """Stands for anything of a module that is not installed; what is called or built fails, which their code catches."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ImportError("not installed")


def stub(name: str, **attributes: Any) -> None:
    """Put an empty module where none is installed."""
    parts = name.split(".")
    if name not in sys.modules and (len(parts) > 1 or find_spec(name) is None):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
        if len(parts) > 1:
            setattr(sys.modules[".".join(parts[:-1])], parts[-1], module)
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)


def package(name: str, folder: str) -> None:
    """Put a package without its `__init__`, which imports more than is needed."""
    module = types.ModuleType(name)
    module.__path__ = [folder]
    sys.modules[name] = module


def stub_torchvision_operators() -> None:
    """Declare operators that torchvision describes when it is imported, in case it was built for another torch."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    stub.library = library  # type: ignore[attr-defined]  # declarations last as long as this object


def local_dino(checkout: str, weights: dict[str, str]) -> None:
    """Have `torch.hub.load("facebookresearch/dino:main", NAME)` build NAME from the checkout with prepared weights."""
    import torch

    load: Any = torch.hub.load

    def from_checkout(repository: str, name: str, **_: object) -> Any:
        assert repository.startswith("facebookresearch/dino")
        model = load(checkout, name, source="local", pretrained=False)
        model.load_state_dict(torch.load(weights[name], weights_only=True))
        return model

    hub: Any = torch.hub
    hub.load = from_checkout


class Recorder:
    """In the place of OpenAI's client: records requests and answers each by `reply_to`."""

    bodies: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **_: object) -> None:
        self.chat = self.completions = self

    def create(self, **body: Any) -> Any:
        """Return an answer in the client's form."""
        self.bodies.append(body)
        message = types.SimpleNamespace(content=reply_to(body["messages"]))
        return types.SimpleNamespace(choices=[types.SimpleNamespace(message=message)])


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
        found = following.execute_gpt_task("method", spec["samples"], subject, index, "full", os.getcwd(), "judge", 1)
        read.append(json.loads(Path(f"method-{subject}-{index}.json").read_text())["score"] if found else None)
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


def vistorybench(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of every story by CSD, prompt alignment and CIDS, and the requests to the judge."""
    _stub_faces_and_detector(spec["boxes"])
    os.chdir(spec["vistorybench"])
    sys.path.insert(0, spec["vistorybench"])
    style: Any = importlib.import_module("vistorybench.bench.style.csd_evaluator")
    model: Any = importlib.import_module("vistorybench.bench.style.csd.csd_model")
    backbone = importlib.import_module("vistorybench.bench.style.csd.clip_model")
    model.build_model = lambda **_: backbone.CLIP(*spec["sizes"], 8, 16, 64, 1, 1)
    style.CSD_CLIP = lambda **given: model.CSD_CLIP(device="cpu", **given)
    utilities: Any = importlib.import_module("vistorybench.bench.prompt_align.gptv_utils")
    bodies: list[dict[str, Any]] = []

    def post(data: str, **_: object) -> Any:
        body = json.loads(data)
        bodies.append(body)
        content = {"choices": [{"message": {"content": reply_to(body["messages"])}}]}
        return types.SimpleNamespace(status_code=200, json=lambda: content)

    utilities.requests = types.SimpleNamespace(post=post)
    alignment = importlib.import_module("vistorybench.bench.prompt_align.prompt_align_evaluator")
    identity: Any = importlib.import_module("vistorybench.bench.content.cids_evaluator")
    paths = {
        "dataset": spec["dataset"],
        "outputs": spec["outputs"],
        "pretrain": spec["pretrain"],
        "results": spec["results"],
    }
    account = {"api_key": "none", "base_url": "http://none", "model_id": "judge"}
    config = {"core": {"paths": paths, "runtime": {"device": "cpu"}}, "cli_args": account}
    place = config, TIMESTAMP, "mode", "en", TIMESTAMP
    found: dict[str, Any] = {"requests": {}}
    for name, kind in (
        ("csd", style.CSDEvaluator),
        ("alignment", alignment.PromptAlignEvaluator),
        ("rounded", identity.CIDSEvaluator),
        ("cids", identity.CIDSEvaluator),
    ):
        if name == "cids":
            # Theirs are rounded to four digits; whole numbers remain rounded.
            identity.round = lambda value, digits=None: value if digits else round(value)
        evaluator = kind(*place)
        found[name] = {story: evaluator.evaluate("method", story) for story in spec["stories"]}
        found["requests"][name] = bodies[:]
        bodies.clear()
    return json.loads(json.dumps(found, default=float))


def _stub_faces_and_detector(boxes: dict[str, Any]) -> None:
    import torch

    def predict(image: str, **_: object) -> Any:
        rows = boxes[image]
        found = torch.tensor([row[:4] for row in rows]).reshape(-1, 4)
        return found, torch.tensor([row[4] for row in rows]), ["character"] * len(rows)

    class Model:
        def to(self, _: object) -> Model:
            return self

    stub("cv2")
    stub("pandas")
    stub("insightface")
    stub("insightface.app", FaceAnalysis=_Absent)
    for name in ("facexlib", "facexlib.utils"):
        stub(name)
    stub("facexlib.utils.face_restoration_helper", FaceRestoreHelper=_Absent)
    for name in ("groundingdino", "groundingdino.util"):
        stub(name)
    stub(
        "groundingdino.util.inference",
        load_model=lambda *_: Model(),
        load_image=lambda file: (None, file),
        predict=predict,
        annotate=lambda **_: None,
    )
    faces = "vistorybench.bench.content.AdaFace"
    for name in (faces, f"{faces}.inference"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    inference: Any = sys.modules[f"{faces}.inference"]
    inference.load_pretrained_model, inference.to_input, inference.adaface_models = _Absent, _Absent, {}


RUNNERS = {"dreambench_plus": dreambench_plus, "imagen_hub": imagen_hub, "csd": csd, "vistorybench": vistorybench}


def main() -> None:
    """Run one of `RUNNERS` and write what it returns, with the versions, beside the specification."""
    file = Path(sys.argv[1])
    spec = json.loads(file.read_text())
    sys.path.pop(0)  # this folder, whose modules have common names
    stub_torchvision_operators()
    found = RUNNERS[spec["code"]](spec)
    found["versions"] = {name: version(name) for name in VERSIONS}
    file.with_suffix(".found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
