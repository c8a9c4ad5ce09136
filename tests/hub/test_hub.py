"""Networks on the hub: folders, cards, downloads and uploads, without a connection."""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import bcos_fx
from bcos_fx.cli.commands import app
from bcos_fx.errors import ArtifactError, UsageError
from bcos_fx.hub import card
from bcos_fx.network import BcosNetwork, Origin, TrainingRun
from tests.small_networks import cnn, images
from tests.test_architecture import ROOT

hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")
constants = pytest.importorskip("huggingface_hub.constants")
NAMES = ("tench | fish", "<b>cat</b>", "dog", "[link](https://example.org)", "a\nb")


@pytest.fixture(scope="module")
def network() -> BcosNetwork:
    made = bcos_fx.bcosify(cnn(), recipe="equivalent", example_inputs=images(4), class_names=NAMES)
    run = TrainingRun("flowers", 12, "matched", 3, {"lr": 0.01}, "test", 0.5, 0.75)
    return made.with_record(origin=Origin("net", license="apache-2.0"), training=(run,))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, network: BcosNetwork, tmp_path: Path) -> list[Any]:
    """A hub with one repository, in place of the library's calls; what it was asked for."""
    folder = bcos_fx.save_pretrained(network, tmp_path / "remote")
    asked: list[Any] = []

    def download(repository: str, name: str, *, revision: str | None = None, **options: Any) -> str:
        asked.append((repository, name, revision, options, constants.HF_HUB_OFFLINE))
        return str(folder / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(socket, "create_connection", lambda *words, **options: socket.socket())
    return asked


# ---------------------------------------------------------------- folders and cards


def test_a_folder_comes_back_and_is_written_the_same_again(network: BcosNetwork, tmp_path: Path, photo: Path) -> None:
    pytest.importorskip("matplotlib")
    first = bcos_fx.save_pretrained(network, tmp_path / "a", name="user/net", example=photo)
    found = bcos_fx.from_pretrained(first)
    assert found.record == network.record
    torch.testing.assert_close(found(images()), network(images()), rtol=0, atol=0)
    second = bcos_fx.save_pretrained(found, tmp_path / "b", name="user/net", example=photo)
    names = sorted(path.name for path in first.iterdir())
    assert names == ["README.md", "explanation.png", "model.safetensors"]
    assert [(first / name).read_bytes() for name in names] == [(second / name).read_bytes() for name in names]
    assert bcos_fx.from_pretrained(str(first / "model.safetensors")).record == network.record
    (first / "README.md").write_text("old")
    bcos_fx.save_pretrained(network, first, name="user/net", example=photo)
    assert "user/net" in (first / "README.md").read_text()


def test_a_card_states_what_is_known(network: BcosNetwork) -> None:
    text = card(network, "user/net", picture="explanation.png", measured={"GridPG 3x3": 0.8125})
    for wanted in ("dynamic linear", "equal, worst relative error", "0.8125", "75.00%", "apache-2.0", "flowers"):
        assert wanted in text
    assert "![An explanation](explanation.png)" in text
    assert 'bcos_fx.from_pretrained("user/net")' in text
    lines = text.partition("\n---\n")[0].splitlines()[1:]
    found = {key: json.loads(value) for key, _, value in (line.partition(": ") for line in lines)}
    assert found["license"] == "apache-2.0"
    assert found["library_name"] == "bcos_fx"
    assert found["pipeline_tag"] == "image-classification"


def test_a_licence_that_the_hub_does_not_know_is_named(network: BcosNetwork) -> None:
    other = copy.deepcopy(network).with_record(origin=Origin("net", license='Our: own "licence"\nhomepage: evil'))
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load(card(other, "a/b").split("---\n")[1])
    assert found["license"] == "other"
    assert found["license_name"] == 'Our: own "licence"\nhomepage: evil'
    assert "homepage" not in found


def test_names_are_no_markup_in_a_card(network: BcosNetwork) -> None:
    text = card(network, "user/net")
    assert "<b>" not in text
    assert "](https://example.org)" not in text
    rows = [line for line in text.splitlines() if line.startswith("| classes")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3


def test_a_conversion_that_needs_training_says_so() -> None:
    made = bcos_fx.bcosify(cnn(), b=2, example_inputs=images(4))
    assert "fine-tune" in card(made, "a/b").lower()


# ---------------------------------------------------------------- the hub


def test_a_name_is_downloaded(online: list[Any], network: BcosNetwork) -> None:
    assert bcos_fx.from_pretrained("user/net").record == network.record
    bcos_fx.from_pretrained("hf:user/net@v1", token="secret")
    bcos_fx.from_pretrained("user/net", revision="main", local_files_only=True)
    assert [each[:4] for each in online] == [
        ("user/net", "model.safetensors", None, {}),
        ("user/net", "model.safetensors", "v1", {"token": "secret"}),
        ("user/net", "model.safetensors", "main", {"local_files_only": True}),
    ]


@pytest.mark.parametrize("command", [("explain", "-o", "a.html"), ("report", "-o", "a.html")])
def test_commands_take_names(online: list[Any], photo: Path, command: tuple[str, ...], monkeypatch: Any) -> None:
    monkeypatch.chdir(photo.parent)
    word, *rest = command
    done = CliRunner().invoke(app, [word, "hf:user/net", str(photo), *rest])
    assert done.exit_code == 0, done.output
    assert Path("a.html").stat().st_size > 1000
    assert [repository for repository, *_ in online] == ["user/net"]
    for words in (["inspect", "hf:user/net"], ["check", "hf:user/net"], ["check", str(photo.parent / "remote")]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (errors.LocalEntryNotFoundError("no connection"), "HF_HOME"),
        (errors.HFValidationError("bad name"), "user/name"),
        (ConnectionError("no route"), "HF_HOME"),
        (errors.EntryNotFoundError("404"), "bcos-fx convert"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_had_is_one_message(monkeypatch: pytest.MonkeyPatch, error: Exception, hint: str) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(ArtifactError, match=r"user/net cannot be fetched from the hub") as caught:
        bcos_fx.from_pretrained("user/net")
    assert hint in str(caught.value)
    done = CliRunner().invoke(app, ["explain", "hf:user/net", "a.jpg"])
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_without_a_connection_the_cache_alone_is_read_at_once(
    monkeypatch: pytest.MonkeyPatch, network: BcosNetwork, online: list[Any]
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    bcos_fx.from_pretrained("user/net")
    monkeypatch.setattr(socket, "create_connection", refused)
    bcos_fx.from_pretrained("user/net")
    assert [offline for *_, offline in online] == [False, True]
    with pytest.raises(ArtifactError, match="no connection"):
        bcos_fx.push_to_hub(network, "user/net")


def test_without_a_connection_the_library_itself_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not in the cache .*is not reached"):
        bcos_fx.from_pretrained("user/net", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ArtifactError, match="HFValidationError"):
        bcos_fx.from_pretrained("no/such/folder", local_files_only=True, cache_dir=tmp_path)


def test_the_hub_is_reached_in_a_process_that_has_not_imported_its_library(tmp_path: Path) -> None:
    """Parts of that library are attributes only once something imported them."""
    program = (
        "import bcos_fx, socket\nfrom bcos_fx.errors import ArtifactError\n"
        "def refused(*_, **__): raise OSError('no route')\nsocket.create_connection = refused\n"
        "for call in (bcos_fx.from_pretrained, lambda name: bcos_fx.push_to_hub(bcos_fx.example_network(), name)):\n"
        "    try: call('user/net')\n    except ArtifactError as error: print(error.what)"
    )
    left_out = ("http_proxy", "https_proxy", "all_proxy")
    kept = {name: value for name, value in os.environ.items() if name.lower() not in left_out}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=kept | {"HF_HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read, uploaded = done.stdout.splitlines()
    assert f"is not in the cache {tmp_path}" in read
    assert "there is no connection" in uploaded


class Api:
    """What the hub's client is used for, kept instead of sent."""

    calls: list[tuple[str, Any]]

    def __init__(self, **options: Any) -> None:
        self.calls.append(("client", options))

    def create_repo(self, repository: str, **options: Any) -> None:
        self.calls.append((repository, options))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        found = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.calls.append((repo_id, found))


def test_a_network_is_uploaded_with_its_card(monkeypatch: pytest.MonkeyPatch, network: BcosNetwork) -> None:
    Api.calls = []
    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(socket, "create_connection", lambda *words, **options: socket.socket())
    assert bcos_fx.push_to_hub(network, "user/net", private=True, measured={"GridPG": 0.5}).endswith("/user/net")
    _, (created, options), (repository, files) = Api.calls
    assert (created, options) == ("user/net", {"private": True, "exist_ok": True})
    assert repository == "user/net"
    assert set(files) == {"README.md", "model.safetensors"}
    assert b"GridPG" in files["README.md"]

    def refuse(self: Api, repository: str, **_: Any) -> None:
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(ArtifactError, match="403 Forbidden"):
        bcos_fx.push_to_hub(network, "user/net")


def test_publish_writes_a_folder_with_the_figures_of_an_evaluation(network: BcosNetwork, tmp_path: Path) -> None:
    model = bcos_fx.save(network, tmp_path / "a.safetensors")
    results = {
        "accuracy": {"top1": 0.625},
        "gridpg": [{"method": "network", "protocol": {"side": 3}, "mean": 0.75, "chance": 1 / 9}],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = ["publish", str(model), str(tmp_path / "out"), "--overwrite"]
    done = CliRunner().invoke(app, [*words, "--measured", str(tmp_path / "results.json")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "README.md").read_text()
    assert "0.625" in text
    assert "GridPG 3x3, network" in text
    assert "0.75" in text
    for content in ("no json", "[]", '{"accuracy": 3, "gridpg": 5}'):
        (tmp_path / "results.json").write_text(content)
        done = CliRunner().invoke(app, [*words, "--measured", str(tmp_path / "results.json")])
        assert done.exit_code == 2
        assert "not results of an evaluation" in done.stderr
    done = CliRunner().invoke(app, ["publish", str(model), str(tmp_path / "results.json"), "--overwrite"])
    assert done.exit_code == 2
    assert "is a file, and a network is published as a folder" in done.output


def test_torch_hub_reads_a_folder(network: BcosNetwork, tmp_path: Path) -> None:
    folder = bcos_fx.save_pretrained(network, tmp_path / "a")
    found = torch.hub.load(str(ROOT), "bcos_network", str(folder), source="local")
    assert isinstance(found, BcosNetwork)
    assert found.record == network.record


def test_a_folder_that_cannot_be_made_is_named(network: BcosNetwork, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        bcos_fx.save_pretrained(network, tmp_path / "file" / "folder")
