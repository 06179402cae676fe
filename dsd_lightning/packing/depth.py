"""Makes depth pairs of images: a depth model estimates each one's map, once; a kill loses at most the map in progress.

A map is gray of 16 bits, of the image's size, near is bright (as `miniature.renderer.Rendering.depth_map`), stretched so
that the farthest pixel is black and the nearest white. Maps are kept in a folder named after the model's weights, each
under the hash of its image's file, so that no map is ever used for another image or model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dsd_lightning.compute.device import find_device
from dsd_lightning.files.atomic import remove_leftovers, write_bytes
from dsd_lightning.images.pixels import WHITE_16, ImageError, load_rgb, shrink
from dsd_lightning.packing.candidates import Candidate, Orphan, PackingError, Source
from dsd_lightning.packing.sources import TASK_WITHOUT_REFERENCE, open_source
from dsd_lightning.shards import DamagedSample, PairShards, encode_image

_METRIC_TYPES = ("zoedepth", "glpn", "depth_pro")
"""Types of transformers' models that predict distances; the others predict inverse depth."""

_SMALLEST = 1e-6
"""Distances below are raised to this one before they are inverted."""


def normalised(nearness: NDArray[np.float32]) -> Image.Image:
    """Return values [height, width], large is near, as gray of 16 bits from black (farthest) to white (nearest).

    Raises:
        ImageError: values that are not finite.
    """
    values = nearness.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("the depth model's prediction holds values that are not finite")
    spread = values.max() - values.min()
    share = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    return Image.fromarray(np.round(share * WHITE_16).astype(np.uint16))


class DepthEstimator:
    """A depth model of transformers, with its own preprocessing; one image at a time, so that no other changes its map.

    Args:
        model: hub id or folder, for `AutoModelForDepthEstimation` and `AutoImageProcessor`.
        revision: of the hub's repository; None for the newest.
        near_is: whether near is "large" in the model's predictions (inverse depth) or "small" (distances, which are inverted);
            "auto" goes by its configuration.
        device: torch's name of a device; "auto" is CUDA where there is a device.
        short_side: images with a longer short side (pixels) are shrunk before the model sees them; None lets its own
            preprocessing decide. The map has the image's size in any case.

    Raises:
        PackingError: the model cannot be loaded.
        DeviceError: a device that is not there.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        near_is: str = "auto",
        device: str = "auto",
        short_side: int | None = None,
    ) -> None:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation  # here, because it takes seconds

        if near_is not in ("auto", "large", "small"):
            raise PackingError(f"estimator.near_is={near_is!r}: choose auto, large or small")
        self.name, self.short_side = model, short_side
        self.device = find_device(device, "estimator.device")
        try:
            self.processor = AutoImageProcessor.from_pretrained(model, revision=revision)
            network = AutoModelForDepthEstimation.from_pretrained(model, revision=revision, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise PackingError(
                f"estimator.model={model!r} cannot be loaded as a depth model: {error}\nGive the hub id or the folder of a "
                "model for depth estimation, such as depth-anything/Depth-Anything-V2-Small-hf"
            ) from error
        self.network = network.to(self.device).eval()
        config = network.config
        metric = getattr(config, "depth_estimation_type", None) == "metric" or config.model_type in _METRIC_TYPES
        self.near_is = ("small" if metric else "large") if near_is == "auto" else near_is

    def fingerprint(self) -> str:
        """Return a short hash of all that a map depends on besides its image."""
        settings = (self.near_is, self.short_side, type(self.processor).__name__, self.processor.to_json_string())
        digest = hashlib.sha256(repr(settings).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the depth map of an RGB image, of its size.

        Raises:
            ImageError: the model's prediction is not finite.
        """
        inputs = self.processor(images=shrink(image, self.short_side), return_tensors="pt").to(self.device)
        prediction = self.network(**inputs)
        size = (image.height, image.width)
        depth = self.processor.post_process_depth_estimation(prediction, target_sizes=[size])[0]["predicted_depth"]
        values: NDArray[np.float32] = depth.float().cpu().numpy()
        if self.near_is == "small":
            values = np.reciprocal(np.maximum(values, np.float32(_SMALLEST)))
        return normalised(values)


class DepthMaps:
    """Depth maps in a folder, each written atomically under the hash of its image's file.

    Args:
        folder: of the maps; created where missing.
        estimate: returns the map of an RGB image.
    """

    def __init__(self, folder: Path, estimate: Callable[[Image.Image], Image.Image]) -> None:
        self.folder, self.estimate = folder, estimate
        self.estimated = 0
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)

    def path(self, image: bytes) -> Path:
        """Return the path of the map of an image's file."""
        return self.folder / f"{hashlib.sha256(image).hexdigest()[:40]}.png"

    def make(self, image: bytes) -> Path:
        """Return the file with an image's map, estimated now unless it is there.

        Raises:
            ImageError: the image cannot be decoded, or the model fails on it.
        """
        path = self.path(image)
        if path.exists():
            return path
        data = encode_image(self.estimate(load_rgb(image)), "png")
        write_bytes(path, data)
        self.estimated += 1
        return path


class DepthPairSource:
    """A source of images as a source of pairs: to each image, as target, its depth map as reference.

    Args:
        images: source of the targets and their captions; its own references and instructions are left out.
        maps: estimates and keeps the maps.
        model: the depth model's name, for the provenance.
    """

    def __init__(self, images: Source, maps: DepthMaps, model: str) -> None:
        self.images, self.maps, self.model = images, maps, model
        self.orphans = images.orphans

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Candidate | Orphan]:
        for each in self.images:
            yield each if isinstance(each, Orphan) else self._pair(each)

    def _pair(self, candidate: Candidate) -> Candidate | Orphan:
        target = candidate.target
        try:
            if isinstance(target, Image.Image):
                target = encode_image(target, "png")
            reference = self.maps.make(target.read_bytes() if isinstance(target, Path) else target)
        except (ImageError, OSError) as error:
            return Orphan(candidate.name, "unreadable_target", f"{candidate.name}: {error}")
        provenance: dict[str, Any] = {**candidate.provenance, "depth_model": self.model}
        return replace(candidate, target=target, reference=reference, instruction=None, provenance=provenance)


class ShardTargets:
    """The target images of pair shards, with their captions.

    Raises:
        ShardError: see `PairShards`.
    """

    def __init__(self, root: Path) -> None:
        self.shards = PairShards(root)
        self.orphans = [Orphan(str(root), "damaged_shard", line) for line in self.shards.damage]

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[Candidate | Orphan]:
        for position, key in enumerate(self.shards.keys):
            try:
                record, target = self.shards.record(position), self.shards.target_bytes(position)
            except DamagedSample as damage:
                yield Orphan(key, "damaged_sample", str(damage))
                continue
            yield Candidate(key, target, None, record.caption, provenance={**record.provenance, "source": key})


def open_images(source: str | Path) -> Source:
    """Open images with captions: a folder of pair shards, or any source of the packing command, without references.

    Raises:
        PackingError, ShardError: nothing of that kind is there.
    """
    root = Path(source)
    if root.is_dir() and any(root.glob("*.tar")):
        return ShardTargets(root)
    return open_source(root, task=TASK_WITHOUT_REFERENCE)
