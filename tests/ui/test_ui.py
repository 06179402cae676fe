"""Shows that the page generates at a click, serves clients, and refuses bad requests without harm to others."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import ROOT
from support.web.browser import CHROMIUM, Page
from support.web.pages import PATIENCE, chromium, held_out_character, served, severe

from dsd_lightning.generation.provenance import read_provenance
from dsd_lightning.ui.__main__ import PASSWORD, REFUSED, USER, main
from dsd_lightning.ui.vocabulary import known_words, unknown_words

if os.environ.get("CI"):
    import gradio  # a missing page is a failure there, not a skip
else:
    gradio = pytest.importorskip("gradio", reason="the page's layer is not installed: `make test` makes it")


@pytest.fixture(scope="module")
def page() -> Iterator[tuple[str, Any]]:
    with served() as serving:
        yield serving


@pytest.fixture
def client(page: tuple[str, Any]) -> Any:
    from gradio_client import Client

    # The library waits 5 s for an answer, less than a busy machine may need.
    return Client(page[0], verbose=False, httpx_kwargs={"timeout": PATIENCE})


@pytest.fixture
def image(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Return an image unique to this test: Gradio names uploads by content, and a closing page removes its uploads."""
    file = held_out_character(tmp_path)[0]
    with Image.open(file) as image:
        mine = image.convert("RGB")
    mine.putpixel((0, 0), tuple(zlib.crc32(request.node.name.encode()).to_bytes(4, "big")[:3]))
    mine.save(file)
    return file


def generate(client: Any, file: str, text: str = "this character, small", **given: Any) -> tuple[Any, ...]:
    from gradio_client import handle_file

    fields = {"guidance": 3.5, "image_guidance": 1.0, "text_guidance": 1.0, "steps": 2, "seed": 7, **given}
    result: tuple[Any, ...] = client.predict(
        image=handle_file(file), text=text, prompt_enhancement=False, **fields, api_name="/generate"
    )
    return result[:5]  # of what comes behind, the list of all images, see below


# --- Clients.


def test_a_client_gets_the_image_of_the_command(client: Any, image: str, tmp_path: Path) -> None:
    from gradio_client import handle_file

    from dsd_lightning.generation.command import main as command

    # Guidances are left out: both take the model's own.
    fields = {"text": "this character, small", "prompt_enhancement": False, "steps": 2, "seed": 7}
    reference, reconstructed, result, prompt, seed, *_ = client.predict(
        image=handle_file(image), **fields, api_name="/generate"
    )
    assert (prompt, seed) == ("this character, small", 7)
    assert Image.open(reference).size == Image.open(reconstructed).size == (64, 64)
    provenance = read_provenance(Path(result))
    assert provenance is not None
    assert (provenance["seed"], provenance["prompt"], provenance["steps"]) == (7, prompt, 2)
    out = tmp_path / "out.png"
    flags = ["--steps", "2", "--seed", "7", "--disable_gemini_prompt", "--device", "cpu"]
    assert command(["--image_path", image, "--text", prompt, "--output_path", str(out), *flags]) == 0
    difference = np.asarray(Image.open(out), dtype=int) - np.asarray(Image.open(result), dtype=int)
    assert np.abs(difference).max() <= 1


def test_the_documented_client_gets_an_image(page: tuple[str, Any], image: str) -> None:
    (block,) = re.findall(r"```python\n(from gradio_client.*?)```", (ROOT / "docs" / "use.md").read_text(), re.DOTALL)
    for name, here in (("http://127.0.0.1:7860", page[0]), ("a.png", image), ("steps=28", "steps=1")):
        assert name in block
        block = block.replace(name, here)
    given: dict[str, Any] = {}
    exec(block, given)
    assert Image.open(given["result"]).size == (64, 64)
    assert given["seed"] == 7


@pytest.mark.parametrize(
    "path", ["/etc/passwd", str(ROOT / "setup.cfg"), "setup.cfg", "../setup.cfg", "%2e%2e/setup.cfg"]
)
@pytest.mark.parametrize("route", ["gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", ""])
def test_no_file_outside_of_the_pages_own_is_served(page: tuple[str, Any], route: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{page[0].rstrip('/')}/{route}{path}", timeout=PATIENCE)
    assert refusal.value.code in (400, 403, 404, 405)


def test_a_random_seed_is_returned(client: Any, image: str) -> None:
    *_, first = generate(client, image, seed=-1, steps=1)
    *_, second = generate(client, image, seed=-1, steps=1)
    assert first >= 0
    assert first != second


def test_a_client_gets_several_images_of_another_size(client: Any, image: str) -> None:
    from gradio_client import handle_file

    fields = {"guidance": 3.5, "image_guidance": 1.0, "text_guidance": 1.0, "steps": 1, "seed": 7}
    asked = {"image": handle_file(image), "text": "this character", "prompt_enhancement": False, **fields}
    images = client.predict(**asked, size="64x96", count=2, api_name="/generate")
    assert Image.open(images[2]).size == (96, 64)
    gallery = images[5]["value"] if isinstance(images[5], dict) else images[5]
    assert [each["caption"] for each in gallery] == ["seed 7", "seed 8"]
    seeds = [read_provenance(Path(each["image"]))["seed"] for each in gallery]  # type: ignore[index]
    assert seeds == [7, 8]
    with pytest.raises(Exception, match=r"size|choices"):
        client.predict(**asked, size="7x9", api_name="/generate")
    with pytest.raises(Exception, match=r"images|maximum"):
        client.predict(**asked, count=99, api_name="/generate")


def test_words_that_the_miniature_does_not_know_are_named_once() -> None:
    assert unknown_words("This character, a Robot on the moon, ROBOT, in blue light") == ["robot", "moon"]
    assert 40 < len(known_words()) < 400


def test_a_client_gets_sheets_and_stories(client: Any, image: str) -> None:
    from gradio_client import handle_file

    sheet, seed = client.predict(
        image=handle_file(image),
        text="this character",
        image_guidances=[2.0, 1.0],
        text_guidances=[1.0],
        guidance=3.5,
        steps=1,
        seed=3,
        api_name="/sheet",
    )
    assert seed == 3
    with Image.open(sheet) as opened:
        assert opened.width > 2 * 128, "small images are magnified"
        assert opened.height > 2 * 128
    for wrong, message in (({"image_guidances": []}, "choose one or more"), ({"text_guidances": [99.0]}, "choice|99")):
        fields = {"image_guidances": [1.0], "text_guidances": [1.0], **wrong}
        with pytest.raises(Exception, match=message):
            client.predict(
                image=handle_file(image), text="this", **fields, guidance=3.5, steps=1, seed=3, api_name="/sheet"
            )
    table = client.predict(image=handle_file(image), idea="Out", panels=3, seed=5, api_name="/write_story")
    assert [row[2] for row in table["data"]] == [5, 6, 7]
    table["data"][2][1] = "this character, small, at the top"
    page = client.predict(
        image=handle_file(image),
        idea="Out",
        table=table,
        guidance=3.5,
        image_guidance=1.0,
        text_guidance=1.0,
        steps=1,
        api_name="/generate_story",
    )
    assert Image.open(page).width > 2 * 256


# --- Bad requests.


def bomb(side: int = 60_000) -> bytes:
    """Return a small png file of side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": "  "}, "prompt: it is empty"),
        ({"text": "x" * 2001}, "2001 letters"),
        ({"steps": 0}, "steps|minimum"),
        ({"steps": 101}, "steps|maximum"),
        ({"seed": -2}, "seed|minimum"),
        ({"image_guidance": 21}, "guidance|maximum"),
        ({"text_guidance": "high"}, "guidance|number|float|high|str"),
    ],
)
def test_a_bad_value_is_named_and_harms_no_other(client: Any, image: str, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=f"(?i){message}"):
        generate(client, image, **bad)
    assert generate(client, image, steps=1)[4] == 7


@pytest.mark.parametrize("content", [b"no image", b"", bomb(), b"\x89PNG\r\n\x1a\n cut off", bytes(2_000_000)])
def test_a_bad_image_is_refused_and_harms_no_other(client: Any, image: str, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    with pytest.raises(Exception):  # noqa: B017, PT011  however the client reports a refusal
        generate(client, str(file))
    assert generate(client, image, steps=1)[4] == 7


def test_a_programming_error_is_logged_and_the_next_request_is_served(
    client: Any, image: str, page: tuple[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a secret")

    with monkeypatch.context() as patched:
        patched.setattr(page[1], "generate", broken)
        with pytest.raises(Exception, match="something went wrong") as caught:
            generate(client, image)
    assert "a secret" not in str(caught.value)
    assert "a secret" in caplog.text
    assert generate(client, image, steps=1)[4] == 7


def test_requests_wait_in_a_queue_of_bounded_length(client: Any, image: str, page: tuple[str, Any]) -> None:
    from gradio_client import handle_file

    from dsd_lightning.ui.page import WAITING

    fields = (handle_file(image), "this character", False, 3.5, 1.0, 1.0, 1, 7)
    with page[1]._busy:  # nothing is generated until all requests are queued
        jobs = [client.submit(*fields, api_name="/generate") for _ in range(WAITING + 6)]
        turned_away = threading.Event()
        for job in jobs:
            job.add_done_callback(lambda _: turned_away.set())
        assert turned_away.wait(PATIENCE)
    ends = [job.exception(timeout=PATIENCE) for job in jobs]
    refused = [end for end in ends if end is not None]
    assert all("full" in str(end).lower() for end in refused)
    assert 1 <= len(refused) <= 6, "every queued request was served"


def test_equal_images_are_one_file_that_is_written_atomically(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dsd_lightning.ui.files import served as file_of

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    image = Image.effect_noise((256, 256), 80)
    whole = len(Path(str(file_of(image))).read_bytes())
    with ThreadPoolExecutor(4) as pool:
        files = {str(file) for file in pool.map(file_of, [image] * 40)}
    assert len(files) == 1
    assert [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()] == [whole]
    before = Path(files.pop()).stat().st_ino
    assert Path(str(file_of(image))).stat().st_ino == before
    assert file_of(None) is None


# --- A visitor.


@pytest.mark.long
def test_a_click_generates_and_the_history_restores_it(tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with served([held_out_character(tmp_path)]) as (url, _), chromium() as driver:
        wait = WebDriverWait(driver, PATIENCE)

        def find(selector: str) -> Any:
            return wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, selector))[0]

        def natural_width(selector: str) -> int:
            script = "const i = document.querySelector(arguments[0]); return i && i.complete ? i.naturalWidth : 0"
            return int(driver.execute_script(script, selector))

        def value(selector: str) -> str:
            return str(find(f"{selector} textarea, {selector} input").get_attribute("value"))

        driver.get(url)
        find("#generate").click()
        for name in ("cropped", "reconstructed", "result"):
            wait.until(lambda _, name=name: natural_width(f"#{name} img") == 64)
        assert value("#prompt_used") == value("#prompt") != ""
        seed = value("#seed_used")
        assert int(seed) >= 0
        assert severe(driver) == []
        prompt = find("#prompt textarea")
        prompt.clear()
        prompt.send_keys("   ")
        find("#generate").click()
        wait.until(lambda d: "it is empty" in d.find_element(By.TAG_NAME, "body").text)
        find("#history img").click()
        wait.until(lambda _: value("#prompt").startswith("this character"))
        assert value("#seed") == seed


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_phone_shows_prompt_and_button_first_and_nothing_is_cut_off(tmp_path: Path) -> None:
    with served([held_out_character(tmp_path)]) as (url, _), Page(url, tmp_path / "profile", tmp_path) as person:
        person.resize(390, 2600)
        person.until("!!document.querySelector('#generate')")
        for name in ("prompt", "generate", "size", "count", "result", "reference", "seed"):
            box = f"document.getElementById('{name}').getBoundingClientRect()"
            person.until(f"{box}.left >= 0 && {box}.right <= innerWidth", 20)
        assert person.fits()
        tops = "(id => document.getElementById(id).getBoundingClientRect().top)"
        tops_and_bottoms = person.evaluate(f"['prompt', 'generate', 'result', 'reference'].map({tops})")
        assert tops_and_bottoms == sorted(tops_and_bottoms)
        person.until("document.getElementById('unknown').innerText === ''")
        person.type_into("#prompt textarea", "this robot")
        person.until("document.getElementById('unknown').innerText.includes('does not know: robot')")


@pytest.mark.long
def test_the_command_serves_and_prints_its_address(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dsd_lightning.ui", "--port", str(port), "--device", "cpu"]
    page = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert page.stdout is not None
        assert any("The page" in line for line in page.stdout)
        for _ in range(PATIENCE):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                    assert "Diffusion Self-Distillation" in answer.read().decode()
                break
            except OSError:
                threading.Event().wait(1)
        else:
            pytest.fail("no answer")
    finally:
        page.terminate()
        page.wait()


def test_missing_models_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", "nowhere"]) == REFUSED
    assert "--run nowhere: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("password", ["secret", None])
def test_other_machines_are_asked_for_the_password(
    password: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **options: given.update(options))
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: None, raising=False)
    monkeypatch.delenv(PASSWORD, raising=False)
    if password:
        monkeypatch.setenv(PASSWORD, password)
    assert main(["--host", "0.0.0.0", "--device", "cpu"]) == 0
    assert given["auth"] == (None if password is None else (USER, "secret"))
    assert ("without a password" in caplog.text) == (password is None)
