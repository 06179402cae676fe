"""Shows that prompts are enhanced by two calls over HTTP, and kept with a warning if they cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from rehearsal_server import Asked, Fault, RehearsalServer
from support.llm.rehearsals import PROVIDERS, rehearsing_agent

from dsd_lightning.agents.presets import PresetError, find_agent
from dsd_lightning.generation.command import main
from dsd_lightning.generation.prompts import enhance
from dsd_lightning.generation.provenance import read_provenance

pytestmark = pytest.mark.usefixtures("without_keys")

CAPTION, MERGED = "a red star with a top hat", "a red star with a top hat on a beach"


def answer(asked: Asked) -> str | Fault:
    """Describe images, and merge a caption and a wish."""
    if asked.images:
        return f'"{CAPTION}\n"'
    if "refuse" in asked.text:
        return Fault("refusal")
    return f" {MERGED}\n" if CAPTION in asked.text and "on a beach" in asked.text else "nothing to merge"


@pytest.fixture
def server() -> Iterator[RehearsalServer]:
    with RehearsalServer(answer) as serving:
        yield serving


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def generate(image: Path, *flags: str) -> int:
    settings = ["--steps", "1", "--size", "32", "--device", "cpu", "--seed", "1"]
    return main(["--image_path", str(image), "--text", "on a beach", "--output_path", "out.png", *settings, *flags])


@pytest.mark.parametrize("preset", PROVIDERS)
def test_two_calls_caption_the_reference_and_merge(
    preset: str, server: RehearsalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "a-key")
    with rehearsing_agent(preset, server, tmp_path) as agent:
        assert enhance(agent, [Image.new("RGB", (64, 64))], ["on a beach"]) == [MERGED]
    assert server.counts["answered"] == 2


def test_a_prompt_without_an_answer_stays_unchanged(
    server: RehearsalServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with rehearsing_agent("local", server, tmp_path) as agent:
        image = Image.new("RGB", (64, 64))
        assert enhance(agent, [image, image], ["refuse", "on a beach"]) == ["refuse", MERGED]
    assert "the prompt of job 1 was not enhanced" in caplog.text
    assert "job 2" not in caplog.text
    assert server.counts["answered"] == 3, "one image is captioned once"


def test_the_command_uses_the_enhanced_prompt_and_records_both(
    server: RehearsalServer, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = ["local", "agents.vlm.provider.model=m", f"agents.vlm.provider.base_url={server.url}/v1"]
    assert generate(image, "--agents", *local) == 0
    assert f"prompt: {MERGED}" in capsys.readouterr().out
    provenance = read_provenance(Path("out.png"))
    assert provenance is not None
    assert (provenance["prompt"], provenance["given_prompt"]) == (MERGED, "on a beach")
    asked = server.counts["asked"]
    assert generate(image, "--agents", *local, "--disable_gemini_prompt") == 0
    assert server.counts["asked"] == asked


def test_a_dead_server_costs_the_enhancement_and_not_the_image(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    nobody = ["agents.vlm.provider.base_url=http://127.0.0.1:9/v1", "agents.retries.attempts=1"]
    assert generate(image, "--agents", "local", "agents.vlm.provider.model=m", *nobody) == 0
    assert "was not enhanced" in caplog.text
    provenance = read_provenance(Path("out.png"))
    assert provenance is not None
    assert provenance["prompt"] == "on a beach"


def test_the_first_preset_with_a_key_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    assert find_agent(None).provider.identity.startswith("openai")
    monkeypatch.setenv("GEMINI_API_KEY", "a-key")
    assert find_agent(None).provider.identity.startswith("gemini")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [(["nobody"], "nobody is unknown; choose one of"), (["local"], "agents.vlm.provider.model=...")],
)
def test_wrong_presets_are_refused(chosen: list[str], message: str) -> None:
    with pytest.raises(PresetError, match=message):
        find_agent(chosen)
