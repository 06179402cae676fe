"""Shows that `python generate.py` takes the official flags, writes files atomically, and refuses wrong inputs by name."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.commands import run

from dsd_lightning.checkpoints.official import LORA_FILE
from dsd_lightning.generation import arguments
from dsd_lightning.generation.command import INTERRUPTED, NO_MEMORY, REFUSED, main
from dsd_lightning.generation.generate import complete
from dsd_lightning.generation.jobs import Job
from dsd_lightning.generation.provenance import heading_size, read_provenance, save_image
from dsd_lightning.pipeline import TwoFramePipeline

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
OFFICIAL = GOLDEN / "tiny_official"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "out.png"


def command(image: Path, out: Path, *more: str, text: str = "a hat") -> list[str]:
    return [
        *("--image_path", str(image), "--text", text, "--output_path", str(out)),
        *("--steps", "1", "--seed", "7", "--device", "cpu", "--size", "32", *more),
    ]


def official_flags(transformer: Path = OFFICIAL / "transformer", lora: Path = OFFICIAL / LORA_FILE) -> list[str]:
    base = GOLDEN / "tiny_flux_dev"
    return ["--base_path", str(base), "--model_path", str(transformer), "--lora_path", str(lora)]


def pixels(file: Path) -> np.ndarray[Any, Any]:
    with Image.open(file) as image:
        return np.asarray(image)


# --- Images.


def test_an_image_and_a_text_are_enough(
    image: Path, out: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(command(image, out)) == 0
    printed = capsys.readouterr().out
    assert "using the shipped miniature" in printed
    assert "(seed 7)" in printed
    assert "continuing with your prompt" in caplog.text
    assert pixels(out).shape == (32, 32, 3)
    provenance = read_provenance(out)
    assert provenance is not None
    assert (provenance["seed"], provenance["prompt"], provenance["text_guidance"]) == (7, "a hat", 1.5)
    assert "tiny-dsd" in provenance["model"]


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "webp"])
def test_the_ending_of_the_output_decides_its_format(tmp_path: Path, ending: str) -> None:
    image = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 50).convert("RGB")
    facts = {"seed": 7, "prompt": "a café, 雪"}
    for name, provenance in (("with", facts), ("without", None)):
        file = tmp_path / f"{name}.{ending}"
        save_image(image, file, provenance)
        assert read_provenance(file) == provenance
        with Image.open(file) as read:
            assert read.format == {"jpg": "JPEG", "JPEG": "JPEG", "webp": "WEBP"}[ending]
            difference = np.asarray(read.convert("RGB"), dtype=int) - np.asarray(image)
        assert np.abs(difference).mean() <= (0 if ending == "webp" else 4)


def test_the_official_command_line(image: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = [
        "--guidance",
        "3.5",
        "--i_guidance",
        "1.3",
        "--t_guidance",
        "2.0",
        "--steps",
        "3",
        "--disable_gemini_prompt",
    ]
    assert main([*official_flags(), *command(image, out, *flags, text="a \nhat\r\n")]) == 0
    assert "continuing with your prompt" not in caplog.text
    provenance = read_provenance(out)
    assert provenance is not None
    assert provenance["prompt"] == "a hat"
    pipeline = TwoFramePipeline.load(
        GOLDEN / "tiny_flux_dev", OFFICIAL / "transformer", OFFICIAL / LORA_FILE, dtype=torch.float32, device="cpu"
    )
    with Image.open(image) as reference:
        expected = pipeline(
            reference,
            "a hat",
            image_guidance=1.3,
            text_guidance=2.0,
            num_inference_steps=3,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(7),
        ).images[0]
    assert np.abs(pixels(out).astype(int) - np.asarray(expected)).max() <= 1


def test_several_images_count_their_seeds_up(image: Path, out: Path) -> None:
    assert main(command(image, out, "--num_images", "5", "--no_metadata", "--disable_gemini_prompt")) == 0
    names = [out.with_stem(f"out_{number}") for number in range(1, 6)]
    assert all(name.is_file() for name in names)
    assert read_provenance(names[0]) is None
    single = out.with_name("single.png")
    assert main([*command(image, single), "--seed", "9"]) == 0
    difference = pixels(single).astype(int) - pixels(names[2])
    assert np.abs(difference).max() <= 1, "the third image of seed 7 is that of seed 9, whatever the batch"


def test_a_step_cache_changes_the_image_and_is_in_its_metadata(image: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("plain.png", "cached.png")]
    flags = ["--steps", "4", "--t_guidance", "2", "--num_images", "1"]
    assert main(command(image, files[0], *flags)) == 0
    TwoFramePipeline.tiny.cache_clear()  # type: ignore[attr-defined]
    assert main(command(image, files[1], *flags, "--step_cache", "first_block:0.5")) == 0
    facts = [read_provenance(file) for file in files]
    assert facts[1] == {**(facts[0] or {}), "step_cache": "first_block:0.5"}
    assert (pixels(files[0]) != pixels(files[1])).any()


def test_a_random_seed_is_printed_and_gives_the_same_image(
    image: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(image, out), "--seed", "-1"]) == 0
    seed = capsys.readouterr().out.rpartition("(seed ")[2].split(")")[0]
    again = out.with_name("again.png")
    assert main([*command(image, again), "--seed", seed]) == 0
    assert np.abs(pixels(out).astype(int) - pixels(again)).max() <= 1


def test_a_sheet_of_guidances_from_one_noise(image: Path, out: Path) -> None:
    assert main(command(image, out, "--sheet", "1,1.5/1,2", "--disable_gemini_prompt")) == 0
    sheet = pixels(out)
    assert sheet.shape[1] > 3 * 128
    assert sheet.shape[0] > 2 * 128
    provenance = read_provenance(out)
    assert provenance is not None
    assert provenance["text_guidance"] == [1, 2]
    single = out.with_name("single.png")
    assert main(command(image, single)) == 0
    top, left = 14 + heading_size(128) + 4, 14 + 128 + 8
    corner = sheet[top : top + 128 : 4, left : left + 128 : 4]  # each pixel is shown as 4 x 4
    assert np.abs(corner.astype(int) - pixels(single)).max() <= 1, "the first cell is the image without guidance"


# --- What is refused, and with which message.


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = REFUSED) -> str:
    assert main(arguments) == code
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


def test_a_missing_image(image: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = refused(command(image.with_name("b.png"), out), capsys)
    assert "b.png: there is no such file" in printed


@pytest.mark.parametrize("content", [b"no image", b""])
def test_a_file_that_is_no_image(image: Path, out: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    image.write_bytes(content)
    assert f"cannot decode {image}" in refused(command(image, out), capsys)
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--model_path", "--run"])
def test_a_missing_model(image: Path, out: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert f"{flag} nowhere: there is no such file" in refused(command(image, out, flag, "nowhere"), capsys)


def test_a_folder_that_is_no_run(image: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no run folder" in refused(command(image, out, "--run", str(image.parent)), capsys)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: name.replace("transformer.", "unet."), "must begin with 'transformer.'"),
        (lambda name: name.replace("blocks", "blobs"), "which the transformer does not have"),
    ],
)
def test_a_lora_that_matches_nothing(
    image: Path, out: Path, capsys: pytest.CaptureFixture[str], rename: Callable[[str], str], message: str
) -> None:
    file = image.with_name(LORA_FILE)
    save_file({rename(name): value for name, value in load_file(OFFICIAL / LORA_FILE).items()}, file)
    assert message in refused([*official_flags(lora=file), *command(image, out)], capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ("c_embedder", "condition_embedder", ("condition_embedder", "does not have")),
        ("proj_out.bias", "proj_out.b", ("proj_out.b", "does not have")),
        ("c_embedder.weight", None, ("lacks 1", "c_embedder.weight")),
    ],
)
def test_official_weights_with_renamed_or_missing_keys(
    image: Path, out: Path, capsys: pytest.CaptureFixture[str], old: str, new: str | None, messages: tuple[str, ...]
) -> None:
    folder = image.with_name("transformer")
    shutil.copytree(OFFICIAL / "transformer", folder)
    weights = load_file(folder / WEIGHTS)
    renamed = {name if new is None else name.replace(old, new): value for name, value in weights.items()}
    save_file({name: value for name, value in renamed.items() if new is not None or name != old}, folder / WEIGHTS)
    message = refused([*official_flags(transformer=folder), *command(image, out)], capsys)
    assert all(part in message for part in messages)
    assert not out.exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_no_memory(
    image: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(TwoFramePipeline, "__call__", exhausted)
    printed = refused(command(image, out), capsys, NO_MEMORY)
    assert all(flag in printed for flag in ("--model_offload", "--sequential_offload", "--quantize", "--size"))


def test_ctrl_c(image: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TwoFramePipeline, "__call__", interrupted)
    assert "stopped" in refused(command(image, out), capsys, INTERRUPTED)
    assert not list(out.parent.glob("*")), "nothing half-written"


@pytest.mark.parametrize("flag", ["--model_offload", "--sequential_offload"])
def test_offload_without_a_gpu_is_a_warning(
    image: Path, out: Path, caplog: pytest.LogCaptureFixture, flag: str
) -> None:
    assert main(command(image, out, flag)) == 0
    assert "needs a GPU" in caplog.text
    assert out.is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_path", "x"], "belong to --model_path"),
        (["--run", "x", "--base_path", "y"], "--run names a whole model"),
        (["--model_offload", "--sequential_offload"], "choose one of"),
        (["--size", "48x"], "size=48x: give SIDE"),
        (["--size", "30"], "nearest is 32 x 32"),
        (["--i_guidance", "-1"], "i_guidance=-1.0"),
        (["--t_guidance", "nan"], "must be finite"),
        (["--steps", "0"], "steps=0"),
        (["--num_images", "0"], "num_images=0"),
        (["--seed", "-5"], "seed=-5"),
        (["--text", " \n"], "is empty"),
        (["--output_path", "out.gif"], "written as .png, .jpg, .jpeg, .webp"),
        (["--output_path", "https://host/out.png"], "is a URL"),
        (["--image_path", "https://host/a.png"], "image_path=https:/host/a.png is a URL"),
        (["--device", "gpu0"], "--device=gpu0 is no device: give cpu"),
        (["--guidance", "inf"], "must be finite"),
        (["--output_path", "/proc/version/out.png"], "cannot be written"),
        (["--sheet", "1;2"], "give image guidances, a slash"),
        (["--sheet", "nan,inf/1"], "must be finite"),
        (["--jobs", "jobs.csv"], "--jobs brings its own"),
        (["--step_cache", "mag"], "step_cache=mag is unknown; choose one of first_block, taylor_seer"),
        (["--step_cache", "taylor_seer", "--compile"], "step_cache=taylor_seer:5 works inside of the blocks"),
        (["--num_images", "1000000"], "num_images=1000000 must be at most 10000"),
        (["--size", "32x99999"], "and at most 16384"),
    ],
)
def test_refused_flags(
    image: Path, out: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in refused([*command(image, out), *flags], capsys)


def test_an_image_and_a_text_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --image_path and --text" in refused([], capsys)


def test_a_programming_error_keeps_its_traceback(image: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(TwoFramePipeline, "__call__", broken)
    with pytest.raises(ZeroDivisionError):
        main(command(image, out))


def test_every_official_flag_is_known() -> None:
    official = "model_path lora_path image_path text output_path guidance i_guidance t_guidance steps model_offload"
    accepted = vars(arguments.parser().parse_args([]))
    assert set(official.split()) | {"sequential_offload", "disable_gemini_prompt"} <= set(accepted)
    defaults = {"guidance": 3.5, "i_guidance": 1.0, "t_guidance": 1.0, "steps": 28}
    assert {accepted[name] for name in defaults} == {None}, "the model's own"
    job = Job(Path("a.png"), "a hat", Path("b.png"))
    authors = TwoFramePipeline.load(
        GOLDEN / "tiny_flux_dev", OFFICIAL / "transformer", dtype=torch.float32, device="cpu"
    )
    assert {name: getattr(complete(job, authors), name) for name in defaults} == defaults


@pytest.mark.slow
def test_the_command_itself(image: Path, out: Path) -> None:
    done: subprocess.CompletedProcess[str] = run(*command(image, out), module=("generate.py",))
    assert done.returncode == 0, done.stderr
    assert read_provenance(out) is not None
    assert "%|" not in done.stderr, "a bar in a log file"


def test_weights_that_are_not_whole_are_refused_without_a_traceback(
    image: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image.with_name("transformer")
    shutil.copytree(OFFICIAL / "transformer", folder)
    shutil.copy(folder / WEIGHTS, folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    assert "one file and shards" in refused([*official_flags(transformer=folder), *command(image, out)], capsys)
    several = [*official_flags()[:-2], "--lora_path", str(OFFICIAL / LORA_FILE), "nowhere.safetensors:0.5"]
    assert "nowhere.safetensors: there is no such LoRA file" in refused([*several, *command(image, out)], capsys)
    assert "cannot be downloaded" in refused(["--model_path", "nobody/nothing", *command(image, out)], capsys)
    assert "stands alone" in refused([*several, "none", *command(image, out)], capsys)
    assert "--text_length 0" in refused([*official_flags(), "--text_length", "0", *command(image, out)], capsys)
    assert not out.exists()
