"""Generates with compiled blocks, as a script: the test suite's shape checks are not in these modules, and cannot be compiled.

Prints as JSON: graphs compiled by the first call and by the second one, and the largest difference to uncompiled latents.
"""

from __future__ import annotations

import json
import sys

import torch
from support.models.golden_pipeline import draw

from dsd_lightning.pipeline import TwoFramePipeline


def main(backend: str, cache: str) -> None:
    """Compile by `backend`, under the step cache `cache` ("" for none)."""
    torch.set_num_threads(1)
    stock = torch.compile
    torch.compile = lambda block: stock(block, backend=backend)  # type: ignore[assignment,misc]
    pipelines = [TwoFramePipeline.tiny(device="cpu", compile=each, step_cache=cache or None) for each in (False, True)]
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": "a hat", "latents": pipelines[0].draw_latents(1, 32, 32, torch.Generator().manual_seed(0))}
    given |= {"num_inference_steps": 5, "height": 32, "width": 32}
    given |= {"image_guidance": 1.0, "text_guidance": 1.0}  # guided steps have batches, and so graphs, of their own
    expected = draw(pipelines[0], **given)
    graphs, counted = [], torch._dynamo.utils.counters["stats"]
    for _ in range(2):
        before = counted["unique_graphs"]
        difference = float((draw(pipelines[1], **given) - expected).abs().max())
        graphs.append(counted["unique_graphs"] - before)
    sys.stdout.write(json.dumps({"graphs": graphs, "difference": difference}))


if __name__ == "__main__":
    main(*sys.argv[1:])
