"""Models of the hub, from a local server that answers what huggingface_hub asks; each question in a process of its own,
because the library reads its environment once."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from ddim.denoisers import UNet
from ddim.denoisers.formats.hub import is_hub_id
from ddim.denoisers.formats.naming import file_name
from ddim.denoisers.pretrained import open_pretrained
from ddim.errors import UserError
from ddim.export import export

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN_ALL = """
import json, pathlib, sys
from ddim.denoisers.pretrained import open_pretrained
from ddim.errors import UserError
cache_dir = None if sys.argv[1] == "-" else pathlib.Path(sys.argv[1])
answers = []
for source in sys.argv[2:]:
    try:
        found = open_pretrained(source, cache_dir)
        answers.append([found.origin, found.format, found.schedule, found.build().conv_in.weight.sum().item()])
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that a download uses, over the folders in `repositories`."""

    repositories: dict[str, Path] = {}  # noqa: RUF012
    requests: list[str] = []  # noqa: RUF012
    uploaded: dict[str, bytes] = {}  # noqa: RUF012

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        """Of an upload: a new model, how each file is to be sent, and the files."""
        path = self.path.partition("?")[0].strip("/")
        self.requests.append(f"{self.command} {path}")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_mine":
            return self.reply(401, b"{}", True)
        if path == "api/repos/create":
            return self.reply(200, json.dumps({"url": f"http://{self.headers['Host']}/some/new"}).encode(), True)
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(content)["files"]
            ]
            return self.reply(200, json.dumps({"files": files}).encode(), True)
        if "/commit/" not in path:  # what it thinks of the model card
            return self.reply(200, b"{}", True)
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                self.uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.reply(200, json.dumps({"commitUrl": path, "commitOid": COMMIT}).encode(), True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.requests.append(f"{self.command} {path}")
        parts = path.removeprefix("api/models/").split("/")
        name = "/".join(parts[:2])
        if name == "some/gated":
            return self.reply(
                403, b"{}", body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
            )
        if name not in self.repositories:
            return self.reply(401, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        folder = self.repositories[name]
        files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
        kind = parts[2] if len(parts) > 2 else ""
        if kind == "revision" and parts[3] not in ("main", COMMIT):
            return self.reply(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        if kind in ("", "revision"):
            siblings = [{"rfilename": file} for file in files]
            return self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), body)
        if kind == "tree":
            tree = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": oid(f)} for n, f in files.items()]
            return self.reply(200, json.dumps(tree).encode(), body)
        file = files["/".join(parts[4:])]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{oid(file)}"'}
        return self.reply(200, file.read_bytes(), body, headers)

    def reply(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub with a pipeline of one network, and the same network as a model of 2022 with pickled weights."""
    torch.manual_seed(0)
    unet = UNet(resolution=8, base_channels=8, channel_mult=(1,), num_res_blocks=1, norm_groups=4)
    run = tmp_path / "run.ckpt"
    config = {"denoiser": {"name": "unet", **unet.config}, "schedule": {"name": "linear", "num_timesteps": 100}}
    state = {f"denoiser.{name}": value for name, value in unet.state_dict().items()}
    torch.save({"state_dict": state, "ddim": {"format": 1, "config": config}}, run)
    export(open_pretrained(run), tmp_path / "hub" / "pipeline", weights="raw")
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        content = json.loads((tmp_path / "hub" / "pipeline" / name).read_text())
        content.pop("_ddim_weights", None)
        (tmp_path / "hub" / "pipeline" / name).write_text(json.dumps(content))
        old = tmp_path / "hub" / "old" / Path(name).name
        old.parent.mkdir(exist_ok=True)
        old.write_text(json.dumps(content))
    theirs = {file_name("diffusers", name, 1): value for name, value in unet.state_dict().items()}
    torch.save(theirs, tmp_path / "hub" / "old" / "diffusion_pytorch_model.bin")
    for folder in ("pipeline", "old"):
        (tmp_path / "hub" / folder / "large_unrelated_file.bin").write_bytes(b"x" * 1000)

    monkeypatch.setattr(
        Hub, "repositories", {"some/pipeline": tmp_path / "hub/pipeline", "some/old": tmp_path / "hub/old"}
    )
    monkeypatch.setattr(Hub, "requests", [])
    monkeypatch.setattr(Hub, "uploaded", {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., list[Any]]:
    """`ask(endpoint, cache, *sources)`: what `open_pretrained` says of each source in a new process."""

    def run(endpoint: str, cache: str, *sources: str, script: str = OPEN_ALL) -> list[Any]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", script, cache, *sources],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_a_hub_model_is_downloaded_once_and_then_works_offline(endpoint, ask, tmp_path):
    cache, closed = tmp_path / "cache", "http://127.0.0.1:9"
    sources = ("some/pipeline", "some/old", f"some/pipeline@{COMMIT}")
    pipeline, old, by_commit = online = ask(endpoint, str(cache), *sources)
    assert pipeline[:2] == [f"some/pipeline@{COMMIT}", "diffusers"]
    assert pipeline[2] == {"name": "linear", "num_timesteps": 100, "beta_start": 0.0001, "beta_end": 0.02}
    assert old == [f"some/old@{COMMIT}", *pipeline[1:]] and by_commit == pipeline
    assert not any("large_unrelated_file" in request for request in Hub.requests)
    assert (cache / "hub").is_dir() and not (tmp_path / "home" / "hub").exists()

    assert ask(closed, str(cache), *sources) == online
    (elsewhere,) = ask(closed, "-", "some/pipeline")
    assert elsewhere == (
        "some/pipeline is no file or folder here, and the Hugging Face hub cannot be reached and its cache does not "
        "hold it; connect to the network once, or give a local diffusers directory"
    )


def test_models_that_cannot_be_had(endpoint, ask, tmp_path):
    absent, gated, revision = ask(endpoint, str(tmp_path / "cache"), "some/typo", "some/gated", "some/old@v9")
    assert absent == (
        "some/typo is no file or folder here, and the Hugging Face hub has no public model some/typo; check the name"
    )
    assert gated.startswith("the hub model some/gated needs its owner's permission")
    assert revision == "the hub model some/old has no revision v9; leave out @v9"


PUSH = """
import json, os, pathlib, sys
from ddim.denoisers.formats.hub import push
from ddim.errors import UserError
answers = []
for token in sys.argv[2:]:
    os.environ["HF_TOKEN"] = token
    try:
        answers.append(push(pathlib.Path(sys.argv[1]), "some/new"))
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def test_a_directory_is_uploaded_whole(endpoint, ask, tmp_path):
    folder = tmp_path / "hub" / "pipeline"
    (address,) = ask(endpoint, str(folder), "hf_mine", script=PUSH)
    assert address == f"{endpoint}/some/new"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert Hub.uploaded == files and "unet/config.json" in files


def test_an_upload_that_is_refused_says_how_to_do_it_later(endpoint, ask, tmp_path):
    folder = tmp_path / "hub" / "pipeline"
    (sentence,) = ask(endpoint, str(folder), "hf_other", script=PUSH)
    assert sentence.startswith(f"{folder} is written, but could not be uploaded as some/new") and "\n" not in sentence
    assert "`hf auth login`" in sentence and f"`hf upload some/new {folder}`" in sentence and Hub.uploaded == {}


def test_without_the_hub_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError) as caught:
        open_pretrained("google/ddpm-cifar10-32")
    assert str(caught.value) == (
        "google/ddpm-cifar10-32 is no file or folder here, and reading it from the Hugging Face hub needs: "
        "pip install -e '.[hub]' (a local diffusers directory works without)"
    )


def test_local_paths_come_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (tmp_path / "google" / "ddpm").mkdir(parents=True)
    with pytest.raises(UserError, match="directory google/ddpm holds no"):
        open_pretrained("google/ddpm")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("google/ddpm-cifar10-32", True),
        ("google/ddpm-cifar10-32@main", True),
        (f"a/b@{COMMIT}", True),
        ("outputs/run.ckpt", False),
        ("some/model.pt", False),
        ("google", False),
        ("a/b/c", False),
        ("./google/ddpm", False),
        ("../ddpm", False),
        ("/google/ddpm", False),
        ("~/ddpm", False),
        ("a b/c", False),
        ("https://huggingface.co/google/ddpm", False),
        ("", False),
    ],
)
def test_what_looks_like_a_hub_model(source, expected):
    assert is_hub_id(source) is expected
