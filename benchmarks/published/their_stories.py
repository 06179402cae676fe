"""Runs ViStoryBench's public code, and that of the detector that it uses, on prepared inputs; see `their_code`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from typing import Any

from benchmarks.published.stand_ins import Absent, FaceAnalysis, package, reply_to, stub

TIMESTAMP = "20260101_000000"
"""Of the run in ViStoryBench's folder of outputs."""


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
    account = {"api_key": "none", "base_url": "http://none", "model_id": "judge"}
    place = _place(spec, {"cli_args": account})
    results: dict[str, Any] = {"requests": {}}
    for name, kind in (
        ("csd", style.CSDEvaluator),
        ("alignment", alignment.PromptAlignEvaluator),
        ("rounded", identity.CIDSEvaluator),
        ("cids", identity.CIDSEvaluator),
    ):
        if name == "cids":
            _leave_digits(identity)
        evaluator = kind(*place)
        results[name] = {story: evaluator.evaluate("method", story) for story in spec["stories"]}
        results["requests"][name] = bodies[:]
        bodies.clear()
    return json.loads(json.dumps(results, default=float))


def vistorybench_faces(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of every story by CIDS with faces: by ArcFace alone, and as the mean over networks, one."""
    _stub_faces_and_detector(spec["boxes"])
    stub("insightface.app", FaceAnalysis=FaceAnalysis)
    stub("cv2", COLOR_RGB2BGR=0, cvtColor=lambda image, _: image[..., ::-1])
    os.chdir(spec["vistorybench"])
    sys.path.insert(0, spec["vistorybench"])
    identity: Any = importlib.import_module("vistorybench.bench.content.cids_evaluator")
    _leave_digits(identity)
    results = {}
    for name, several in (("arcface", False), ("face_mix", True)):
        settings = {"cids": {"use_multi_face_encoder": several}}
        evaluator = identity.CIDSEvaluator(*_place(spec, {"evaluators": settings}))
        results[name] = {story: evaluator.evaluate("method", story) for story in spec["stories"]}
    return json.loads(json.dumps(results, default=float))


def _place(spec: dict[str, Any], settings: dict[str, Any]) -> tuple[Any, ...]:
    """Return what an evaluator of ViStoryBench is built from."""
    paths = {name: spec[name] for name in ("dataset", "outputs", "pretrain", "results")}
    config = {"core": {"paths": paths, "runtime": {"device": "cpu"}}, **settings}
    return config, TIMESTAMP, "mode", "en", TIMESTAMP


def _leave_digits(evaluator: Any) -> None:
    """Have a module round to whole numbers alone: its results are rounded to four digits."""
    evaluator.round = lambda value, digits=None: value if digits else round(value)


def grounding_dino(spec: dict[str, Any]) -> dict[str, Any]:
    """Return, for each image, what Grounding DINO's code gives its network, and what ViStoryBench cuts out by its answers.

    The network's answers are prepared: logits of each box's words, and boxes.
    """
    import torch
    from transformers import BertTokenizerFast

    _stub_faces_and_detector({})
    for name in [name for name in sys.modules if name.startswith("groundingdino")]:
        del sys.modules[name]
    root = f"{spec['grounding_dino']}/groundingdino"
    for name in ("", ".util", ".datasets"):
        package(f"groundingdino{name}", root + name.replace(".", "/"))
    stub("supervision", Detections=Absent)
    stub("groundingdino.models", build_model=Absent)
    stub("groundingdino.util.slconfig", SLConfig=Absent)
    inference: Any = importlib.import_module("groundingdino.util.inference")
    os.chdir(spec["vistorybench"])
    sys.path.insert(0, spec["vistorybench"])
    module: Any = importlib.import_module("vistorybench.bench.content.cids_evaluator")
    evaluator: Any = module.CIDSEvaluator.__new__(module.CIDSEvaluator)
    evaluator.BOX_TRESHOLD, evaluator.TEXT_TRESHOLD = 0.25, 0.25  # as in its __init__, which loads weights
    answers: dict[str, torch.Tensor] = {}
    inputs: list[dict[str, Any]] = []

    class Network:
        tokenizer = BertTokenizerFast(spec["vocabulary"])

        def to(self, _: object) -> Network:
            return self

        def __call__(self, image: torch.Tensor, captions: list[str]) -> dict[str, torch.Tensor]:
            file = f"{spec['folder']}/{len(inputs)}.pt"
            torch.save(image[0], file)
            inputs.append({"pixels": file, "tokens": self.tokenizer(captions[0])["input_ids"]})
            return answers

    evaluator.dino = Network()
    module.predict = lambda **given: inference.predict(**given, device="cpu")
    module.annotate = lambda **_: None  # draws boxes into an image that is not used
    results = []
    for number, (file, logits, boxes) in enumerate(spec["images"]):
        answers.update(pred_logits=torch.tensor(logits)[None], pred_boxes=torch.tensor(boxes)[None])
        centred, scores, *_ = evaluator.dino_detect(file, "character")
        order = torch.sort(scores, descending=True)[1]
        surest = torch.topk(scores, 1)[1] if len(scores) else order
        crops = [evaluator.crop_img(file, centred[chosen]) for chosen in (order, surest)]
        saved = [
            [f"{spec['folder']}/{number}-{kind}-{place}.png" for place in range(len(each))]
            for kind, each in enumerate(crops)
        ]
        for each, names in zip(crops, saved, strict=True):
            for image, name in zip(each, names, strict=True):
                image.save(name)
        results.append({"scores": scores[order].tolist(), "all": saved[0], "surest": saved[1]})
    return {"images": results, "inputs": inputs}


def _stub_faces_and_detector(boxes: dict[str, Any]) -> None:
    import torch

    def predict(image: str, **_: object) -> Any:
        rows = boxes[image]
        centred = torch.tensor([row[:4] for row in rows]).reshape(-1, 4)
        return centred, torch.tensor([row[4] for row in rows]), ["character"] * len(rows)

    class Model:
        def to(self, _: object) -> Model:
            return self

    stub("cv2")
    stub("pandas")
    stub("insightface")
    stub("insightface.app", FaceAnalysis=Absent)
    for name in ("facexlib", "facexlib.utils"):
        stub(name)
    stub("facexlib.utils.face_restoration_helper", FaceRestoreHelper=Absent)
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
    inference.load_pretrained_model, inference.to_input, inference.adaface_models = Absent, Absent, {}
