"""Uses a trained model: a diffusers pipeline from a reference image and a prompt to images of the same subject."""

from dsd_lightning.pipeline.denoising import TwoFrameOutput
from dsd_lightning.pipeline.two_frame import TwoFramePipeline

__all__ = ["TwoFrameOutput", "TwoFramePipeline"]
