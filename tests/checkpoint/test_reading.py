"""Weights come out of every wrapping that people save them in, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bcos_fx.checkpoint import inspect, load_into, read_model, read_state_dict
from bcos_fx.errors import CheckpointError
from tests.checkpoint.files import Net, arguments, optimizer_state, prefixed, save


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return dict(Net().state_dict())


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "net", "ema", "network_weights"])
def test_nesting_and_prefixes_come_off(
    tmp_path: Path, weights: dict[str, Tensor], key: str | None, prefix: str, legacy: bool
) -> None:
    wrapped = prefixed(weights, prefix)
    content = wrapped if key is None else {"epoch": 7, "best": torch.tensor(0.5), key: wrapped}
    state = read_state_dict(save(content, tmp_path / "a.pt", legacy=legacy))
    assert_same(state.tensors, weights)
    assert state.prefix == prefix
    assert state.nesting == (() if key is None else (key,))
    assert state.ignored == (() if key is None else ("epoch", "best"))


def test_deeper_nesting_is_followed(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    state = read_state_dict(save({"model": {"state_dict": weights, "args": 1}, "epoch": 1}, tmp_path / "a.pt"))
    assert_same(state.tensors, weights)
    assert state.nesting == ("model", "state_dict")


def test_of_several_sets_the_usual_one_is_taken_and_said(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    smoothed = {name: tensor + 1 for name, tensor in weights.items()}
    path = save({"ema": smoothed, "model": weights}, tmp_path / "a.pt")
    state = read_state_dict(path)
    assert_same(state.tensors, weights)
    assert state.alternatives == ("ema",)
    assert any("'model'" in said for said in state.unwrapped)
    assert any("ema" in said and "key=" in said for said in state.unwrapped)
    assert_same(read_state_dict(path, key="ema").tensors, smoothed)


def test_a_dotted_key_chooses_and_a_wrong_one_names_the_nearest(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = save({"teacher": {"weights": weights}, "student": {"weights": weights}}, tmp_path / "a.pt")
    assert_same(read_state_dict(path, key="teacher.weights").tensors, weights)
    with pytest.raises(CheckpointError, match="did you mean 'student'"):
        read_state_dict(path, key="studnet")


def test_several_unknown_sets_are_not_guessed_between(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = save({"teacher": weights, "student": weights}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="several sets of weights in one file: teacher, student"):
        read_state_dict(path)


def test_an_averaged_models_counter_is_dropped(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(Net())
    state = read_state_dict(save(averaged.state_dict(), tmp_path / "a.pt"))
    assert list(state.tensors) == list(weights)
    assert state.ignored == ("n_averaged",)


def test_half_precision_and_safetensors(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
    save_file(half, tmp_path / "a.safetensors")
    save(half, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        state = read_state_dict(tmp_path / name)
        assert state.tensors["conv.weight"].dtype == torch.float16
        net = Net()
        load_into(net, state)
        assert torch.equal(net.conv.weight, half["conv.weight"].float())


@pytest.mark.parametrize(
    "content", [{"epoch": 3, "lr": 0.1}, {}, [1, 2], torch.ones(3)], ids=["numbers", "empty", "list", "tensor"]
)
def test_files_without_weights_say_what_they_hold(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match=r"epoch, lr|empty dict|list|one Tensor"):
        read_state_dict(save(content, tmp_path / "a.pt"))


def test_an_optimizers_state_is_not_weights(tmp_path: Path) -> None:
    state = optimizer_state(Net())
    with pytest.raises(CheckpointError, match="no weights were found: its keys are state, param_groups"):
        read_state_dict(save(state, tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="its keys are optimizer, epoch"):
        read_state_dict(save({"optimizer": state, "epoch": 1}, tmp_path / "b.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(tmp_path: Path, weights: dict[str, Tensor], value: float) -> None:
    weights["conv.weight"][0, 0, 0] = value
    path = save(weights, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"conv\.weight \(3\)"):
        read_state_dict(path)
    assert inspect(path).nonfinite == 3


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantised"])
def test_tensors_without_plain_values_are_named(tmp_path: Path, weights: dict[str, Tensor], kind: str) -> None:
    if kind == "sparse":
        weights["fc.weight"] = weights["fc.weight"].to_sparse()
    elif kind == "meta":
        weights["fc.weight"] = weights["fc.weight"].to("meta")
    else:
        weights["fc.weight"] = torch.quantize_per_tensor(weights["fc.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"'fc\.weight'"):
        read_state_dict(save(weights, tmp_path / "a.pt"))


def test_weights_that_bring_other_classes_name_them(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = save({"args": arguments(), "state_dict": weights}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace") as caught:
        read_state_dict(path)
    assert "--trust-pickle" in str(caught.value)
    assert_same(read_state_dict(path, trust_pickle=True).tensors, weights)
    assert "argparse.Namespace" in (inspect(path).problem or "")


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_fit_or_the_names_are_listed(tmp_path: Path, weights: dict[str, Tensor], legacy: bool) -> None:
    del weights["bn.weight"]
    weights["head.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_into(Net(), read_state_dict(save(weights, tmp_path / "a.pt", legacy=legacy)))
    assert "1 missing from the file:\n    bn.weight" in str(caught.value)
    assert "1 not in the network:\n    head.weight" in str(caught.value)


@pytest.mark.parametrize("nesting", [(), ("state_dict",)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_part_of_a_larger_network_is_found_and_named(
    tmp_path: Path, weights: dict[str, Tensor], nesting: tuple[str, ...], prefix: str
) -> None:
    whole: dict[str, object] = {
        **prefixed(weights, f"{prefix}visual.trunk."),
        f"{prefix}text.weight": torch.zeros(3),
    }
    for name in nesting:
        whole = {name: whole, "epoch": 1}
    path = save(whole, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        load_into(Net(), read_state_dict(path))
    key = ".".join((*nesting, f"{prefix}visual.trunk"))
    assert f"--key {key} " in (caught.value.hint or "")
    load_into(net := Net(), read_state_dict(path, key=key))
    assert_same(dict(net.state_dict()), weights)


def test_a_part_of_other_shapes_is_not_offered(weights: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_into(Net(num_classes=7), prefixed(weights, "visual."))
    assert "--key" not in (caught.value.hint or "")


def test_a_part_that_is_not_there_is_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = save(prefixed(weights, "visual.") | {"text.weight": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no key 'visuel'") as caught:
        read_state_dict(path, key="visuel")
    assert "visual" in (caught.value.hint or "")


def test_another_class_count_is_told_apart_and_nothing_is_written(weights: dict[str, Tensor]) -> None:
    net = Net(num_classes=7)
    before = net.conv.weight.clone()
    with pytest.raises(CheckpointError, match=r"fc\.weight: \(5, 4\) in the file, \(7, 4\) in the network") as caught:
        load_into(net, weights)
    assert "class count" in (caught.value.hint or "")
    assert torch.equal(net.conv.weight, before)


def test_long_lists_are_cut_after_ten() -> None:
    with pytest.raises(CheckpointError, match=r"\.\.\. and 5 more"):
        load_into(Net(), {f"layer{i}": torch.zeros(1) for i in range(15)})


def test_a_network_that_bears_the_prefix_itself_gets_it_back(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    holder = torch.nn.Module()
    holder.model = Net()
    state = read_state_dict(save(prefixed(weights, "module.model."), tmp_path / "a.pt"))
    load_into(holder, state)
    assert torch.equal(holder.model.conv.weight, weights["conv.weight"])


def test_counters_missing_from_old_files_are_no_error(weights: dict[str, Tensor]) -> None:
    del weights["bn.num_batches_tracked"]
    net = Net()
    load_into(net, weights)
    assert torch.equal(net.fc.weight, weights["fc.weight"])


def test_a_real_checkpoint_loads_strictly(data_dir: Path, root: Path) -> None:
    path = data_dir / "cifar10_resnet20.th"
    assert inspect(path).kind == "nested-checkpoint"
    state = read_state_dict(path)
    assert (state.nesting, state.prefix, state.ignored) == (("state_dict",), "module.", ("best_prec1",))
    assert all(tensor.device.type == "cpu" for tensor in state.tensors.values())
    net = read_model(path, arch=f"{root}/examples/cifar_resnet.py:resnet20")
    assert torch.equal(net.get_parameter("linear.weight"), state.tensors["linear.weight"])
    assert not net.training
