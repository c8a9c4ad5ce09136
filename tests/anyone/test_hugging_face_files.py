"""Folders and files as the Hugging Face hub has them, of this version of transformers and of earlier ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bcos_fx.checkpoint import identify, inspect, read_model, read_state_dict
from bcos_fx.errors import CheckpointError

transformers = pytest.importorskip("transformers")

ARCH = "transformers:ViTForImageClassification"


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=3, **sizes)
    return transformers.ViTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def saved(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    network.save_pretrained(folder)
    return folder


def _copy(saved: Path, folder: Path) -> dict[str, Tensor]:
    (folder / "config.json").write_text((saved / "config.json").read_text())
    from safetensors.torch import load_file

    return load_file(saved / "model.safetensors")


def _halves(
    tensors: dict[str, Tensor], write: Callable[[dict[str, Tensor], Path], None], folder: Path, end: str
) -> Path:
    names = sorted(tensors)
    parts = {f"model-{k + 1}-of-2.{end}": names[k::2] for k in (0, 1)}
    for file, inside in parts.items():
        write({name: tensors[name] for name in inside}, folder / file)
    whole = "model.safetensors" if end == "safetensors" else "pytorch_model.bin"
    index = folder / f"{whole}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {n: f for f, ns in parts.items() for n in ns}}))
    return index


def _same(path: Path, network: nn.Module, arch: str = ARCH) -> None:
    x = torch.rand(2, 3, 32, 32)
    read: Any = read_model(path, arch=arch)
    with torch.no_grad():
        assert torch.equal(read(x).logits, network(x).logits)


def test_a_folder_builds_the_network_by_its_configuration(saved: Path, network: nn.Module) -> None:
    assert identify(saved).kind == "safetensors"
    _same(saved, network)
    _same(saved / "model.safetensors", network)


def test_pytorch_model_bin(saved: Path, network: nn.Module, tmp_path: Path) -> None:
    torch.save(_copy(saved, tmp_path), tmp_path / "pytorch_model.bin")
    _same(tmp_path, network)


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_shards(end: str, saved: Path, network: nn.Module, tmp_path: Path) -> None:
    tensors = _copy(saved, tmp_path)
    index = _halves(tensors, save_file if end == "safetensors" else torch.save, tmp_path, end)
    assert identify(tmp_path).kind == identify(index).kind == "sharded"
    assert len(inspect(tmp_path).tensors) == len(tensors)
    _same(tmp_path, network)
    _same(index, network)


def test_names_of_this_version_and_of_the_last(saved: Path, network: nn.Module, tmp_path: Path) -> None:
    last = _copy(saved, tmp_path)
    now = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    assert now.keys() != last.keys()
    for number, state in enumerate((now, last)):
        folder = tmp_path / str(number)
        folder.mkdir()
        _copy(saved, folder)
        save_file(state, folder / "model.safetensors")
        _same(folder, network)


def test_the_first_names_of_norms_and_a_prefix_of_the_whole(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=30, **sizes)).eval()
    bert.save_pretrained(tmp_path)
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    older = {}
    for name, tensor in bert.state_dict().items():
        for now, then in names.items():
            name = name.replace(now, then)
        older[f"bert.{name}"] = tensor.contiguous()
    save_file(older, tmp_path / "model.safetensors")
    read: Any = read_model(tmp_path, arch="transformers:BertModel")
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(read(ids).last_hidden_state, bert(ids).last_hidden_state)


def test_weights_that_do_not_fit_are_named(saved: Path, tmp_path: Path) -> None:
    tensors = _copy(saved, tmp_path)
    lost = tensors.pop("classifier.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        read_model(tmp_path, arch=ARCH)
    save_file({**tensors, "classifier.weight": lost[:2].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        read_model(tmp_path, arch=ARCH)


def test_nothing_is_said_on_the_terminal(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read_model(saved, arch=ARCH)
    assert capfd.readouterr() == ("", "")


def test_a_class_of_another_kind(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is of a network of the kind 'vit'"):
        read_model(saved, arch="transformers:BertModel")


def test_a_tower_takes_its_part_of_a_configuration(tmp_path: Path) -> None:
    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.CLIPConfig(
        vision_config={**part, "image_size": 32, "patch_size": 16}, text_config={**part, "vocab_size": 30}
    )
    whole = transformers.CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    tower: Any = read_model(tmp_path, arch="transformers:CLIPVisionModel", key="vision_model")
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tower(x).pooler_output, whole.vision_model(x).pooler_output)


def _write(folder: Path, content: Any) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(content if isinstance(content, str) else json.dumps(content))
    return index


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weight_map": {"a": "../outside.safetensors"}}, "which is not a file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "which is not a file beside it"),
        ({"weight_map": {"a": 3}}, "which is not a file beside it"),
        ({"weight_map": {"a": "gone.safetensors"}}, "1 of 1 shards are missing: gone.safetensors"),
        ({"weight_map": {"b": "here.safetensors"}}, "other tensors than model.safetensors.index.json says: a, b"),
        ({"weight_map": {}}, "no weight_map"),
        ("[1]", "no JSON object"),
        ("{", "JSON"),
    ],
)
def test_an_index_that_is_wrong(content: Any, reason: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "here.safetensors")
    _write(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(tmp_path)
    assert reason in caught.value.what
    assert caught.value.where


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"a directory without model\.safetensors"):
        read_model(tmp_path, arch=ARCH)


def test_quantised_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    save_file(_copy(saved, tmp_path), tmp_path / "model.safetensors")
    content = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "quantization_config": {"bits": 4}}))
    with pytest.raises(CheckpointError, match="quantized"):
        read_model(tmp_path, arch=ARCH)


# ---------------------------------------------------------------- the folder names its network


def _processor(folder: Path, **changes: Any) -> None:
    found = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3, "crop_pct": 0.875}
    found |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(found | changes))


@pytest.mark.parametrize("form", ["folder", "file", "index", "bin"])
def test_a_folder_is_read_without_a_name(network: Any, saved: Path, tmp_path: Path, form: str) -> None:
    tensors = _copy(saved, tmp_path)
    path = tmp_path
    if form == "index":
        path = _halves(tensors, save_file, tmp_path, "safetensors")
    elif form == "bin":
        path = tmp_path / "pytorch_model.bin"
        torch.save(tensors, path)
    else:
        save_file(tensors, tmp_path / "model.safetensors")
        path = tmp_path if form == "folder" else tmp_path / "model.safetensors"
    _processor(tmp_path)
    found: Any = read_model(path)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(found(x).logits, network(x).logits, rtol=0, atol=0)
    assert found.pretrained_cfg == {
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
    }


def test_a_processor_that_squeezes_is_noted(saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(_copy(saved, tmp_path), tmp_path / "model.safetensors")
    _processor(tmp_path)
    read_model(tmp_path)
    assert "squeezes" not in caplog.text
    _processor(tmp_path, size={"height": 32, "width": 48}, crop_pct=None)
    assert read_model(tmp_path).pretrained_cfg["input_size"] == (3, 32, 48)
    assert "squeezes images into 32x48 pixels" in caplog.text


def test_convert_takes_a_folder_with_its_classes_and_its_preparation(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    import bcos_fx
    from bcos_fx.cli.commands import app

    monkeypatch.chdir(tmp_path)
    save_file(_copy(saved, tmp_path), tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": {"0": "cat", "1": "dog", "2": "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _processor(tmp_path)
    done = CliRunner().invoke(app, ["convert", ".", "--recipe", "equivalent", "-o", "a.st", "--no-verify"])
    assert done.exit_code == 0, done.output
    made = bcos_fx.load("a.st")
    assert made.record.classes == ("cat", "dog", "owl")
    assert tuple(made.report.options["mean"]) == (0.5, 0.4, 0.3)
    assert (made.preprocessing.size, made.preprocessing.crop_pct) == ((32, 32), 0.875)
    assert made.record.origin is not None
    assert made.record.origin.file == "model.safetensors"


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"do_normalize": False}, {"mean", "std", "input_size", "interpolation", "crop_pct"}),
        ({"rescale_factor": 1 / 127.5}, {"mean", "std", "input_size", "interpolation", "crop_pct"}),
        ({"image_std": [0.2, 0.0, 0.4]}, {"mean", "std"}),
        ({"image_mean": ["0.5", 0.4, 0.3]}, {"mean", "std"}),
        ({"image_mean": [0.5]}, {"mean", "std"}),
        ({"resample": 1}, {"interpolation", "crop_pct"}),
        ({"size": {"height": 32, "width": 32}, "crop_pct": None}, {"interpolation", "crop_pct"}),
        ({"size": {"shortest_edge": "32"}}, {"input_size", "interpolation", "crop_pct"}),
        ({"size": {"shortest_edge": 10**9}}, {"input_size"}),
    ],
)
def test_what_a_processor_does_otherwise_is_left_out(tmp_path: Path, changes: dict[str, Any], lost: set[str]) -> None:
    from bcos_fx.checkpoint.recorded import recorded_images

    _processor(tmp_path)
    whole = set(recorded_images(tmp_path))
    _processor(tmp_path, **changes)
    assert set(recorded_images(tmp_path)) == whole - lost


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"architectures": ["MyViT"], "auto_map": {"AutoModel": "evil.MyViT"}}, "'MyViT'.*does not have"),
        ({"architectures": ["__init__"]}, "does not have"),
        ({"architectures": [["a"]]}, "does not have"),
        ({"model_type": "no-such-kind"}, "no-such-kind"),
    ],
)
def test_a_class_that_transformers_does_not_have_is_refused(
    saved: Path, tmp_path: Path, changes: dict[str, Any], wanted: str
) -> None:
    save_file(_copy(saved, tmp_path), tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=wanted):
        read_model(tmp_path)


def test_a_folder_of_timm_is_read_with_its_classes(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from bcos_fx.conversion.recorded import recorded_classes

    torch.manual_seed(0)
    own = timm.create_model("resnet10t", num_classes=3).eval()
    save_file(own.state_dict(), tmp_path / "model.safetensors")
    recorded = {"tag": "mine", "mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 64, 64], "num_classes": 3}
    config: dict[str, Any] = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": recorded}
    config["label_names"] = ["cat", "dog", "owl"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found: Any = read_model(tmp_path)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(found(x), own(x), rtol=0, atol=0)
    assert found.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert found.pretrained_cfg["input_size"] == (3, 64, 64)
    assert recorded_classes(found, 3) == ("cat", "dog", "owl")
    for changes in ({"architecture": "resnet10x"}, {"model_args": {"block": "evil"}}):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(CheckpointError, match=r"config\.json names"):
            read_model(tmp_path)
