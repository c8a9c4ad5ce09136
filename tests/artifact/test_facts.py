"""What a file keeps of its network beside what it computes: class names, origin, training; from where, and checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import bcos_fx
from bcos_fx.artifact import from_bytes, read_header, to_bytes
from bcos_fx.cli.commands import app
from bcos_fx.errors import ArtifactError, UsageError
from bcos_fx.network import BcosNetwork, Origin, TrainingRun
from bcos_fx.network.facts import describe_facts
from tests.artifact import second_reader
from tests.artifact.making import opened, tampered
from tests.small_networks import cnn, images

NAMES = ("tench, Tinca tinca", "cat", "dog", "\x1b[31mred", "house")
RUN = TrainingRun("flowers", 120, "matched", 7, {"lr": 0.01, "optimizer": "adam"}, "test", 0.25, 0.875)
ORIGIN = Origin("torchvision:resnet18", "resnet18.pth", "a" * 64, "apache-2.0", "https://example.org")


def converted(**options: Any) -> BcosNetwork:
    options = {"recipe": "equivalent", "example_inputs": images(), "verified": False} | options
    return bcos_fx.bcosify(cnn(), **options)


@pytest.fixture(scope="module")
def network() -> BcosNetwork:
    return converted(class_names=NAMES).with_record(training=(RUN, RUN), origin=ORIGIN)


@pytest.fixture(scope="module")
def data(network: BcosNetwork) -> bytes:
    return to_bytes(network)


# ---------------------------------------------------------------- the file


def test_everything_comes_back(network: BcosNetwork, data: bytes, tmp_path: Path) -> None:
    found = from_bytes(data).record
    assert (found.classes, found.training, found.origin) == (NAMES, (RUN, RUN), ORIGIN)
    assert second_reader.read(data)["format"] == 4
    assert read_header(bcos_fx.save(network, tmp_path / "a.safetensors")).record == network.record


def test_a_file_without_them_is_as_older_versions_wrote_it() -> None:
    network = converted()
    network.record = dataclasses.replace(network.record, origin=None)
    _, document, _ = opened(to_bytes(network))
    assert document["format"] == 2
    assert not {"classes", "training", "origin"} & set(document["record"]["Record"])


def test_an_older_file_with_every_field_written_out_is_read(data: bytes) -> None:
    """Earlier versions wrote fields that hold their defaults too."""

    def spelled_out(document: Any) -> None:
        document["format"] = 2
        record = document["record"]["Record"]
        for name in ("classes", "training", "origin"):
            del record[name]
        record |= {"train": "refuse", "train_difference": None, "guards": {"tuple": []}}
        record["inputs"]["tuple"][0]["InputSpec"] |= {"crop_pct": None, "interpolation": None, "samples": 0}

    found = from_bytes(tampered(data, spelled_out)).record
    assert found.inputs == from_bytes(data).record.inputs
    assert found.classes == ()


def _record(document: Any) -> Any:
    return document["record"]["Record"]


def _run(document: Any) -> Any:
    return _record(document)["training"]["tuple"][0]["TrainingRun"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: _record(d)["classes"]["tuple"].pop(),
        lambda d: _record(d)["classes"]["tuple"].append("one more"),
        lambda d: _record(d).update(classes=["a", "b", "c", "d", "e"]),
        lambda d: _record(d)["classes"].update(tuple=["a", "b", "c", "d", 5]),
        lambda d: _record(d)["classes"].update(tuple=["a", "b", "c", "d", ""]),
        lambda d: _record(d)["classes"].update(tuple=["a", "b", "c", "d", "e" * 1001]),
        lambda d: _record(d)["training"]["tuple"].extend(_record(d)["training"]["tuple"] * 501),
        lambda d: _run(d).update(accuracy=1.5),
        lambda d: _run(d).update(accuracy={"float": "nan"}),
        lambda d: _run(d).update(epochs=-1),
        lambda d: _run(d).update(epochs="many"),
        lambda d: _run(d).update(options={"dict": [["lr", {"float": "inf"}]]}),
        lambda d: _run(d).update(options={"dict": [["lr", {"Guard": {"kind": "a", "value": "b", "source": "c"}}]]}),
        lambda d: _run(d).update(data="x" * 2001),
        lambda d: _run(d).update(more=1),
        lambda d: _record(d)["origin"]["Origin"].update(sha256="../../etc/passwd"),
        lambda d: _record(d)["origin"]["Origin"].update(url=["https://example.org"]),
        lambda d: _record(d).update(origin=_record(d)["training"]["tuple"][0]),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes, change: Callable[[Any], Any]) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(tampered(data, change))


def test_control_characters_are_escaped_where_they_are_shown(network: BcosNetwork, tmp_path: Path) -> None:
    path = bcos_fx.save(network, tmp_path / "a.safetensors")
    shown = CliRunner().invoke(app, ["inspect", str(path)]).stdout
    assert "\x1b" not in shown
    shown = " ".join(shown.split())
    assert "\\x1b[31mred" in shown
    assert "adam" in shown
    assert "87.50% on test, 25.00% before" in shown
    assert "apache-2.0" in shown
    plain = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)[0]["bcos_fx"]
    assert plain["classes"] == list(NAMES)
    assert plain["training"][0]["accuracy"] == 0.875
    assert plain["origin"]["sha256"] == "a" * 64


def test_what_is_known_is_put_into_rows() -> None:
    rows = dict(describe_facts(("a",), (RUN,), Origin("net")))
    assert rows["classes"] == "1: a"
    assert rows["training"] == (
        "matched, 7 epochs on flowers (120 images), lr 0.01, optimizer adam, accuracy 87.50% on test, 25.00% before"
    )
    assert describe_facts((), (), None) == []


# ---------------------------------------------------------------- where names come from


def test_names_are_as_many_as_outputs() -> None:
    with pytest.raises(UsageError, match="2 class names are given for 5 classes"):
        converted(class_names=("a", "b"))


def _module(**attributes: Any) -> torch.nn.Module:
    module = cnn()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"config": SimpleNamespace(id2label={place: name for place, name in enumerate("edcba")})}, tuple("edcba")),
        (
            {"config": SimpleNamespace(id2label={str(place): name for place, name in enumerate("edcba")})},
            tuple("edcba"),
        ),
        ({"config": SimpleNamespace(id2label={place: f"LABEL_{place}" for place in range(5)})}, ()),
        ({"config": SimpleNamespace(id2label=dict(enumerate("abcdef")))}, ()),
        ({"config": SimpleNamespace(id2label={0: "a", 7: "b", 2: "c", 3: "d", 4: "e"})}, ()),
        ({"pretrained_cfg": {"label_names": list("abcde")}}, tuple("abcde")),
        (
            {
                "pretrained_cfg": {
                    "label_names": list("abcde"),
                    "label_descriptions": dict(zip("edcba", "12345", strict=True)),
                }
            },
            tuple("54321"),
        ),
        ({"pretrained_cfg": {"label_names": list("abcd")}}, ()),
        ({"pretrained_cfg": {"label_names": ["a", "b", "c", "d", 5]}}, ()),
        ({"pretrained_cfg": {"label_names": "abcde"}}, ()),
        ({}, ()),
    ],
)
def test_names_that_a_module_records(attributes: dict[str, Any], expected: tuple[str, ...]) -> None:
    module = _module(**attributes)
    found = bcos_fx.bcosify(module, recipe="equivalent", example_inputs=images(), verified=False)
    assert found.record.classes == expected


def test_timm_names_the_classes_of_imagenet() -> None:
    timm = pytest.importorskip("timm")
    from bcos_fx.conversion.recorded import recorded_classes, recorded_origin

    with torch.device("meta"):
        module = timm.create_model("resnet18")
        other = timm.create_model("resnet18", num_classes=7)
    names = recorded_classes(module, 1000)
    assert (names[0], len(names)) == ("tench, Tinca tinca", 1000)
    assert recorded_classes(other, 7) == ()
    module.pretrained_cfg["tag"] = "of_my_own"  # 1,000 classes of something else
    assert recorded_classes(module, 1000) == ()
    assert recorded_origin(module) == Origin("timm:resnet18")


def test_some_classes_are_kept_with_their_names() -> None:
    some = converted(class_names=NAMES, classes=["dog", "tinca tinca"])
    assert some.record.classes == ("dog", "tench, Tinca tinca")
    again = bcos_fx.bcosify(some, class_names=("hound", "fish"))
    assert again.record.classes == ("hound", "fish")


def test_a_new_head_has_no_names() -> None:
    from bcos_fx.heads.layers import with_new_head

    assert with_new_head(converted(class_names=NAMES), 3, 0).record.classes == ()


# ---------------------------------------------------------------- what uses them


def test_explanations_name_classes_by_themselves(network: BcosNetwork) -> None:
    found = bcos_fx.explain(network, images(), target="Tinca tinca")
    assert found.target.tolist() == [0, 0]
    assert found.target_name() == "tench, Tinca tinca"
    inner = next(node.name for node in network.graph.nodes if node.op == "call_module")
    assert bcos_fx.explain(network, images(), target=1, output=inner).names is None
    assert bcos_fx.explain(network, images(), target=1, names=tuple("vwxyz")).target_name() == "w"


def test_images_are_prepared_by_the_network(network: BcosNetwork, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    array = np.asarray(picture)
    expected = network.preprocessing(picture)[None]
    forms = (picture, array, array.transpose(2, 0, 1), tmp_path / "a.png", str(tmp_path / "a.png"), tmp_path, [picture])
    for form in (*forms, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        torch.testing.assert_close(network.preprocess(form), expected, rtol=0, atol=0)
    assert network.preprocess([picture, array]).shape == (2, 3, 8, 8)
    assert network.preprocess(np.stack([array, array])).shape == (2, 3, 8, 8)
    assert network.preprocess(images(3)).shape == (3, 3, 8, 8)
    doubled = bcos_fx.load(bcos_fx.save(network, tmp_path / "a.safetensors")).double()
    assert doubled.preprocess(picture).dtype == torch.float64
    assert network(network.preprocess(picture)).shape == (1, 5)
    with pytest.raises(UsageError, match="no images"):
        network.preprocess([])
    with pytest.raises(UsageError, match="a dict"):
        network.preprocess({"a": 1})
