"""An export has its card and companions, is refused where it makes no sense, and reaches the hub complete."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from huggingface_hub import HfApi
from omegaconf import OmegaConf
from support.choices import BASES
from support.commands import CONF
from support.exported_run import MadeRun, export

from dsd_lightning.export.card import licence_of
from dsd_lightning.export.command import main
from dsd_lightning.export.hub import push
from dsd_lightning.flux.base import FluxBase

# --- Companions and refusals.


def test_an_export_has_a_model_card(parallel: MadeRun, tmp_path: Path) -> None:
    for layout in ("official", "adapter"):
        out = export(parallel, tmp_path / layout, "--format", layout, "--base-model", "black-forest-labs/FLUX.1-dev")
        front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
        assert front["license"] == "other"
        assert front["license_name"] == "flux-1-dev-non-commercial-license"
        assert front["license_link"].startswith("https://huggingface.co/black-forest-labs/FLUX.1-dev/")
        assert front["base_model"] == "black-forest-labs/FLUX.1-dev"
        assert front["base_model_relation"] == ("adapter" if layout == "adapter" else "finetune")
        assert front["pipeline_tag"] == "image-to-image"
        assert {"flux", "lora", "diffusers"} <= set(front["tags"])
        assert "| `val/loss_right` | 0.25 |" in (out / "README.md").read_text()
        assert "bin0" not in (out / "README.md").read_text()
        config = yaml.safe_load((out / "config.yaml").read_text())
        assert config["arch"]["lora"]["alpha"] == 3
        pairs = config["data"]["datamodule"]["source"]["pairs"]
        assert json.loads((out / "data.json").read_text())["datamodule"]["source"]["pairs"] == pairs > 0
        assert json.loads((out / "metrics.json").read_text())["steps"] == 3


def test_a_written_card_stays(parallel: MadeRun, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    export(parallel, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_licence_is_the_bases(tmp_path: Path) -> None:
    dev, tiny = licence_of(FluxBase("black-forest-labs/FLUX.1-dev")), licence_of(FluxBase("assets/tiny-flux"))
    assert dev.fields["license"] == "other"
    assert dev.known
    assert tiny.fields == {"license": "apache-2.0"}
    assert tiny.base_model is None
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: flux-1-dev-non-commercial-license\n---\n")
    assert licence_of(FluxBase(str(tmp_path))) == dev
    assert not licence_of(FluxBase("somebody/flux-like")).known


@pytest.mark.parametrize("base", [each for each in BASES if each.startswith("flux_")])
def test_every_base_has_a_known_licence(base: str) -> None:
    path = OmegaConf.load(CONF / "base" / f"{base}.yaml").model.path
    licence = licence_of(FluxBase(path))
    assert licence.base_model == path
    assert licence.fields["license"] == ("apache-2.0" if base == "flux_schnell" else "other")
    assert path in licence.fields.get("license_link", path)


def test_a_format_that_cannot_hold_a_run_says_which_can(
    text_only: MadeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(text_only.folder), str(tmp_path / "out"), "--format", "official"]) == 2
    message = capsys.readouterr().err
    assert "arch=text_only" in message
    assert "--format adapter, comfyui, diffusers, transformer" in message
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_overwritten(parallel: MadeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main([str(parallel.folder), str(tmp_path), "--format", "official"]) == 2
    assert "holds something that is no export" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()
    for _ in range(2):  # an earlier export is replaced
        export(parallel, tmp_path / "out", "--format", "transformer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dtype", "fp8"), "fp8 would round away"),
        (("--merged",), "an adapter does not hold"),
        (("--push-to-hub", "me/model", "--format", "official"), "uploads adapters only"),
        (("--push-to-hub", "me/model"), "needs to know the base's licence"),
        (("--base", "nowhere/at/all", "--format", "official"), "nowhere/at/all"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    parallel: MadeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert main([str(parallel.folder), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


# --- The hub.


class Hub(BaseHTTPRequestHandler):
    """Speaks as much of the hub's protocol as making a repository and committing small files takes."""

    created: ClassVar[list[dict[str, Any]]] = []
    committed: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        here = f"http://127.0.0.1:{self.server.server_port}/me/model"
        answer: dict[str, Any]
        if self.headers["Authorization"] != "Bearer hf_token":
            self.send_error(401)
            return
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            answer = {"url": here, "id": "me/model", "name": "me/model"}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif self.path == "/api/models/me/model/preupload/main":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            answer = {"files": files}
        else:
            assert self.path == "/api/models/me/model/commit/main"
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{here}/commit/{'0' * 40}", "commitOid": "0" * 40}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def test_an_adapter_is_pushed_to_a_private_repository(
    parallel: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    out = export(parallel, tmp_path / "out")
    (out / ".adapter.safetensors.partial").write_text("incomplete")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_token")
        address = push(out, "me/model", api=api)
    finally:
        server.shutdown()
        server.server_close()
    assert address.endswith("/me/model")
    assert [each["visibility"] for each in Hub.created] == ["private"]
    assert Hub.committed.keys() == {file.name for file in out.iterdir()} - {".adapter.safetensors.partial"}
    for name, content in Hub.committed.items():
        assert content == (out / name).read_bytes(), name
