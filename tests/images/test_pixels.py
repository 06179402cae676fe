"""Image files become the right pixels, whatever their mode, orientation and size."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from dsd_lightning.images.pixels import (
    ImageError,
    bucket_for,
    load_image,
    load_rgb,
    shrink,
    stored_format,
    to_gray16,
    to_image,
    to_pixels,
    upright_size,
)

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return Image.fromarray(data.astronaut())  # 512 x 512


def test_an_image_of_the_right_size_passes_both_ways_exactly(astronaut: Image.Image) -> None:
    pixels = to_pixels(astronaut, 512, 512)
    assert (pixels.shape, pixels.dtype) == ((3, 512, 512), torch.float32)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    np.testing.assert_array_equal(np.asarray(to_image(pixels)), data.astronaut())


def test_to_image_clamps_and_takes_half_precision() -> None:
    pixels = torch.tensor([-7.0, 0.0, 7.0], dtype=torch.bfloat16).expand(3, 1, 3)
    np.testing.assert_array_equal(np.asarray(to_image(pixels))[0, :, 0], [0, 128, 255])


def test_crop_positions_reach_the_edges_and_the_middle() -> None:
    coffee = data.coffee()  # 400 rows, 600 columns
    image = Image.fromarray(coffee)
    for crop, left in (((0.0, 0.0), 0), ((0.5, 0.5), 100), ((1.0, 1.0), 200)):
        expected = Image.fromarray(coffee[:, left : left + 400])
        assert torch.equal(to_pixels(image, 400, 400, crop=crop), to_pixels(expected, 400, 400))


def test_resizing_covers_the_size_keeps_the_aspect_and_antialiases() -> None:
    image = Image.fromarray(data.coffee())
    pixels = to_pixels(image, 100, 100)
    reference = torch.nn.functional.avg_pool2d(to_pixels(image, 400, 400)[None], 4)[0]
    assert (pixels - reference).abs().mean() < 0.02
    # Without antialiasing, every fourth pixel would be taken: clearly farther from the average.
    assert (to_pixels(image, 400, 400)[:, ::4, ::4] - reference).abs().mean() > 0.04


def test_enlarging_is_refused_naming_both_sizes(astronaut: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"512 x 512 .* 640 x 256"):
        to_pixels(astronaut, 256, 640)
    with pytest.raises(ValueError, match=r"crop=\(0.5, 1.5\)"):
        to_pixels(astronaut, 256, 256, crop=(0.5, 1.5))


def test_transparency_is_flattened_over_white() -> None:
    see_through = Image.fromarray(data.astronaut())
    see_through.putalpha(Image.fromarray(data.camera()))
    flat = np.asarray(load_rgb(encoded(see_through))).astype(float)
    alpha = data.camera()[..., None] / 255
    assert alpha.min() == 0
    assert np.abs(flat - (alpha * data.astronaut() + (1 - alpha) * 255)).max() < 1.01
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert np.asarray(load_rgb(encoded(palette)))[0, 0].tolist() == [200, 100, 50]
    assert np.asarray(load_rgb(encoded(palette, transparency=1)))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_cut_off(file_format: str) -> None:
    camera = data.camera()
    wide = Image.fromarray(camera.astype(np.uint16) * 257)
    loaded = load_rgb(encoded(wide, file_format))
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), np.repeat(camera[..., None], 3, axis=-1))


@pytest.fixture
def ramp() -> Image.Image:
    """Return a gray image that uses most of its 16 bits, in neighbours that 8 bits could not tell apart."""
    return Image.fromarray((np.arange(96 * 128, dtype=np.uint32).reshape(96, 128) * 5).astype(np.uint16))


def test_sixteen_bits_keep_their_precision_from_file_to_pixels_and_back(ramp: Image.Image) -> None:
    loaded = load_image(encoded(ramp))
    assert loaded.mode == "I;16"
    pixels = to_pixels(loaded, 96, 128)
    assert pixels.dtype == torch.float32
    assert len(torch.unique(pixels)) == 96 * 128
    assert torch.equal(pixels[0], pixels[2])
    expected = np.asarray(ramp).astype(np.float64) / 65535 * 2 - 1
    np.testing.assert_allclose(pixels[1].numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(to_gray16(pixels)), np.asarray(ramp))


def test_sixteen_and_eight_bits_of_one_image_give_the_same_pixels() -> None:
    narrow = Image.fromarray(data.camera())
    wide = Image.fromarray(data.camera().astype(np.uint16) * 257)
    for crop in ((0.5, 0.5), (0.0, 1.0)):
        one, other = (to_pixels(image, 64, 80, crop=crop) for image in (narrow, wide))
        # 8 bits are rounded, and clipped where resampling overshoots, first across and then down.
        assert (one - other).abs().max() <= 4 / 127.5
        assert (one - other).abs().mean() <= 0.5 / 127.5
        assert other.abs().max() <= 1
    assert np.abs(np.asarray(shrink(wide, 64)) / 257 - np.asarray(shrink(narrow, 64))).max() <= 4


def test_sixteen_bit_files_are_stored_as_they_are_and_colours_are_no_gray(ramp: Image.Image) -> None:
    assert stored_format(encoded(ramp)) == "png"
    assert stored_format(encoded(ramp, "TIFF")) is None
    assert load_image(encoded(ramp, "TIFF")).mode == "I;16"
    assert load_image(encoded(Image.fromarray(data.camera()))).mode == "RGB"
    with pytest.raises(ValueError, match="channels differ"):
        to_gray16(to_pixels(Image.fromarray(data.astronaut()), 64, 64))


def test_gray_and_cmyk_become_rgb(astronaut: Image.Image) -> None:
    np.testing.assert_array_equal(np.asarray(load_rgb(encoded(astronaut.convert("L"))))[..., 1], astronaut.convert("L"))
    cmyk = load_rgb(encoded(astronaut.convert("CMYK"), "TIFF"))
    assert np.abs(np.asarray(cmyk).astype(int) - data.astronaut()).mean() < 2


def test_exif_orientation_is_applied(astronaut: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    file = encoded(astronaut.crop((0, 0, 300, 200)), "PNG", exif=exif)
    turned = load_rgb(file)
    assert upright_size(file) == turned.size == (200, 300)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(data.astronaut()[:200, :300], -1))


def test_what_is_no_complete_image_is_refused(astronaut: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"decode 5 bytes as an image: it is empty, cut short, or of no known format$"):
        load_rgb(b"hello")
    for file_format in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(ImageError):
            load_rgb(encoded(astronaut.resize((99, 99)), file_format)[:2000])
    with pytest.raises(ImageError, match="no defined range"):
        load_rgb(encoded(Image.new("F", (4, 4)), "TIFF"))
    with pytest.raises(FileNotFoundError):
        load_rgb(tmp_path / "absent.png")


@given(st.data())
def test_changed_bytes_give_an_image_or_its_refusal(draw: st.DataObject) -> None:
    file = bytearray(draw.draw(st.sampled_from([encoded(Image.new("RGB", (24, 20), 1), name) for name in FORMATS])))
    for place, value in draw.draw(st.lists(st.tuples(st.integers(0, len(file) - 1), st.integers(0, 255)), max_size=6)):
        file[place] = value
    for read in (load_image, stored_format, upright_size):
        with suppress(ImageError):
            read(bytes(file))


def test_only_plain_files_are_stored_as_they_are(astronaut: Image.Image) -> None:
    astronaut = astronaut.resize((64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert [stored_format(encoded(astronaut, f)) for f in ("PNG", "JPEG", "WEBP", "BMP")] == [
        "png",
        "jpg",
        "webp",
        None,
    ]
    assert stored_format(encoded(astronaut, "JPEG", exif=exif)) is None
    assert stored_format(encoded(astronaut.convert("L"))) is None
    assert stored_format(encoded(astronaut.convert("RGBA"))) is None
    assert stored_format(b"hello") is None


def test_shrinking_only_ever_shrinks() -> None:
    coffee = Image.fromarray(data.coffee())
    assert shrink(coffee, 200).size == (300, 200)
    assert shrink(coffee, 400) is coffee
    assert shrink(coffee, None) is coffee


def test_buckets_are_chosen_by_aspect_among_those_that_need_no_enlarging() -> None:
    buckets = [(512, 512), (640, 384), (384, 640), (256, 256)]
    assert bucket_for(1200, 800, buckets) == (640, 384)
    assert bucket_for(800, 1200, buckets) == (384, 640)
    assert bucket_for(1000, 1000, buckets) == (512, 512)
    assert bucket_for(400, 400, buckets) == (256, 256)
    assert bucket_for(639, 400, buckets) == (256, 256)
    with pytest.raises(ValueError, match="200 x 900"):
        bucket_for(200, 900, buckets)
