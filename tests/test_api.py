"""The API used rightly, in the ways that people use an ordinary network; its misuse is in test_api_misuse.py."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.nn import BcosLayer
from tests.small_networks import MEAN, STD, Calls, Pair, Scaled, cnn, images, mlp, vectors


def normalised(x: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    return (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def equivalent(module: nn.Module, **arguments: Any) -> nn.Module:
    return bcos_fx.bcosify(module, recipe="equivalent", **arguments)


def pressures(network: nn.Module) -> dict[str, float]:
    return {name: layer.b for name, layer in network.named_modules() if isinstance(layer, BcosLayer)}


@pytest.fixture
def converted() -> nn.Module:
    """A small classifier at B = 2, with the norm statistics of some data."""
    network = cnn().train()
    network(normalised(images(16)))
    return bcos_fx.bcosify(network.eval(), example_inputs=images(), mean=MEAN, std=STD)


# ---------------------------------------------------------------- networks of many kinds


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(4, 3, 3), nn.Conv1d(4, 3, 1, bias=False)], ids=repr)
def test_a_layer_alone(layer: nn.Module) -> None:
    x = {2: vectors(), 3: torch.rand(2, 4, 5), 4: torch.rand(2, 4, 5, 5)}[layer.weight.dim()]
    converted = equivalent(layer, example_inputs=x)
    torch.testing.assert_close(converted(x), layer(x))
    assert isinstance(converted.layer, BcosLayer)
    assert set(converted.state_dict()) == {f"layer.{name}" for name in layer.state_dict()}
    if layer.weight.dim() != 3:
        assert converted.report.figures.verification["ok"]


def test_an_attention_layer_alone_takes_its_inputs_by_name() -> None:
    layer, x = nn.MultiheadAttention(4, 2, batch_first=True).eval(), torch.randn(2, 3, 4)
    converted = equivalent(layer, example_inputs={"query": x, "key": x + 1, "value": x - 1}, output_key=0)
    y = torch.randn(2, 3, 4)
    torch.testing.assert_close(converted(x, value=y, key=2 * x), layer(x, value=y, key=2 * x)[0])


def test_a_hooked_layer_alone_leaves_no_tensor_behind() -> None:
    layer, x = nn.Linear(4, 3), vectors()
    layer.register_forward_hook(lambda module, given, result: 2 * result)
    converted = equivalent(layer)
    torch.testing.assert_close(converted(x), layer(x))
    assert sum(p.numel() for p in converted.parameters()) == 15
    assert len(converted.state_dict()) == 2


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sequential(nn.AvgPool2d(2), nn.Flatten())], ids=["layer", "image"])
def test_a_module_without_parameters(module: nn.Module) -> None:
    x = images()
    converted = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    torch.testing.assert_close(converted(x), module(x))
    assert converted.report.coverage.share == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shown", [True, False], ids=["with example", "guessed"])
def test_other_precisions(dtype: torch.dtype, shown: bool) -> None:
    network, x = cnn().to(dtype), images(size=32).to(dtype)
    converted = equivalent(network, mean=MEAN, std=STD, example_inputs=x if shown else None)
    assert {p.dtype for p in converted.parameters()} == {dtype}
    assert converted.report.figures.verification["error"] < 1e-9
    expected = network.double()(normalised(x.double()))
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float64: 1e-6}[dtype]
    torch.testing.assert_close(converted(x).double(), expected, rtol=tolerance, atol=tolerance)


def test_strided_inputs_and_inputs_that_want_a_gradient() -> None:
    network, x = cnn(), torch.rand(2, 8, 8, 3).permute(0, 3, 1, 2).requires_grad_()
    assert not x.is_contiguous()
    converted = equivalent(network, example_inputs=x)
    torch.testing.assert_close(converted(x), network(x))
    assert x.requires_grad
    assert x.grad is None


def test_a_single_sample_as_example_serves_batches_of_any_size() -> None:
    network = cnn()
    converted = equivalent(network, example_inputs=images(1))
    for count in (0, 1, 5):
        x = images(count)
        torch.testing.assert_close(converted(x), network(x))


def test_arguments_that_are_no_tensors_are_built_in() -> None:
    module, x = Scaled(), vectors()
    for example in ((x, 3.0), {"x": x, "factor": 3.0}):
        torch.testing.assert_close(equivalent(module, example_inputs=example)(x), module(x, 3.0))


def test_a_network_in_train_mode_comes_back_in_eval_mode() -> None:
    network = cnn().train()
    converted = bcos_fx.bcosify(network, example_inputs=images())
    assert network.training
    assert not any(part.training for part in converted.modules())
    assert "the module was in train mode" in " ".join(converted.report.notes)


def test_wrapped_networks() -> None:
    network, x = mlp(), vectors()
    for wrapped in (nn.DataParallel(network), torch.fx.symbolic_trace(network)):
        torch.testing.assert_close(equivalent(wrapped, example_inputs=x)(x), network(x))


def test_two_images_are_both_encoded() -> None:
    module, x, y = Pair(), images(), images()
    converted = equivalent(module, example_inputs={"y": y, "x": x}, mean=MEAN, std=STD)
    expected = module(normalised(x), normalised(y))
    torch.testing.assert_close(converted(x, y), expected)
    torch.testing.assert_close(converted(y=y, x=x), expected)
    torch.testing.assert_close(converted(x, y=y), expected)
    assert all("encoded inside" in text for text in converted.report.inputs.values())


# ---------------------------------------------------------------- options


def test_channels_in_reverse_and_in_bytes() -> None:
    network, x = cnn(), images()
    mean, std = (104.0, 117.0, 123.0), (57.0, 58.0, 59.0)  # blue, green, red; of 0 to 255
    converted = equivalent(network, example_inputs=x, channels="bgr", pixel_max=255, mean=mean, std=std)
    expected = network(normalised(255 * x.flip(1), mean, std))
    torch.testing.assert_close(converted(x), expected)
    torch.testing.assert_close(network(converted.original_input(x)), expected)


@pytest.mark.parametrize("mean", [0.5, [0.5], torch.tensor([0.5]), np.array([0.5])], ids=lambda m: type(m).__name__)
def test_greyscale_and_every_way_to_give_a_mean(mean: Any) -> None:
    network, x = cnn(channels=1), images(channels=1)
    converted = equivalent(network, example_inputs=x, mean=mean, std=0.25)
    torch.testing.assert_close(converted(x), network((x - 0.5) / 0.25))


def test_a_record_of_the_normalisation_is_read_on_demand() -> None:
    network, x = cnn(), images()
    network.pretrained_cfg = {"mean": MEAN, "std": STD}
    torch.testing.assert_close(equivalent(network, example_inputs=x, mean="auto")(x), network(normalised(x)))
    torch.testing.assert_close(equivalent(network, example_inputs=x)(x), network(x))


def test_an_input_that_is_taken_as_it_is() -> None:
    network, x = cnn(), 9 * images() - 5
    converted = equivalent(network, example_inputs=x, input="none")
    torch.testing.assert_close(converted(x), network(x))
    assert converted.report.inputs == {"input": "(N, 3, 8, 8), as the original takes it"}
    assert converted.get_submodule("0").in_channels == 3


def test_b_for_each_layer_by_name() -> None:
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    converted = bcos_fx.bcosify(network, b={"0": 1.5, "[01]": 1.25, "2": 3})
    assert pressures(converted) == {"0": 1.5, "1": 1.25, "2": 3.0, "3": 2.0}
    assert pressures(bcos_fx.bcosify(network, b=1.75)) == dict.fromkeys("0123", 1.75)


def test_shared_layers_stay_one() -> None:
    module = Calls(lambda self, x: self.again(torch.relu(self.layer(x))), layer=nn.Linear(4, 4))
    module.again = module.layer
    converted = bcos_fx.bcosify(module, b=2)
    assert pressures(converted) == {"layer": 2.0}
    assert [name for name, _ in converted.named_parameters(remove_duplicate=False)] == ["layer.weight"]
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    converted = bcos_fx.bcosify(tied)
    assert converted.get_parameter("0.weight") is converted.get_parameter("2.weight")


def test_images_of_the_caller_are_measured_on() -> None:
    stages: list[str] = []
    network, x = cnn(), images(6)
    converted = bcos_fx.bcosify(network, example_inputs=x[:2], images=x, progress=stages.append)
    assert converted.report.figures.drift
    assert stages[0] == "tracing"
    assert "verifying" in stages
    quick = bcos_fx.bcosify(network, example_inputs=x[:2], verified=False)
    assert quick.report.figures == bcos_fx.plan(network, example_inputs=x[:2]).figures
    assert quick.report.figures.verification is None


def test_a_converted_network_is_not_converted_again(converted: nn.Module) -> None:
    again, x = bcos_fx.bcosify(converted), images()
    assert again is not converted
    torch.testing.assert_close(again(x), converted(x), rtol=0, atol=0)
    assert "already converted" in again.report.notes[-1]
    assert bcos_fx.bcosify(again).report == again.report


# ---------------------------------------------------------------- an ordinary module

WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "compile": lambda model: torch.compile(model, fullgraph=True, backend="eager"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_computes_the_same(converted: nn.Module, way: str) -> None:
    x = images()
    twin = WAYS[way](converted)
    torch.testing.assert_close(twin(x), converted(x), rtol=0, atol=0)
    assert twin.report == converted.report


def test_precision_and_device_can_be_changed(converted: nn.Module) -> None:
    x = images()
    double = copy.deepcopy(converted).to(torch.float64)
    expected = double(x.double())
    torch.testing.assert_close(converted(x).double(), expected, rtol=1e-5, atol=1e-5)
    half = copy.deepcopy(converted).half()
    torch.testing.assert_close(half(x.half()).double(), expected, rtol=2e-2, atol=2e-2)
    assert copy.deepcopy(converted).to("meta")(x.to("meta")).shape == (2, 5)


def test_weights_travel_as_a_state_dict(converted: nn.Module) -> None:
    other, x = bcos_fx.bcosify(cnn(), example_inputs=images(), mean=MEAN, std=STD), images()
    assert not torch.equal(other(x), converted(x))
    other.load_state_dict(converted.state_dict())
    torch.testing.assert_close(other(x), converted(x), rtol=0, atol=0)


def test_repr_and_report_say_what_it_is(converted: nn.Module) -> None:
    assert "recipe=bcosification, B-cos coverage=100.0%" in repr(converted)
    assert "BcosConv2d(6, 4" in repr(converted)
    assert str(converted.report) == converted.report.to_text()


def test_converted_within_inference_mode_it_can_be_trained() -> None:
    with torch.inference_mode():
        network = cnn()
        converted = bcos_fx.bcosify(network, example_inputs=images())
        again = bcos_fx.bcosify(converted)
    for model in (converted, again):
        model.train()(images()).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_frozen_parameters_stay_frozen() -> None:
    network = cnn()
    network[0].requires_grad_(False)
    converted = bcos_fx.bcosify(network, example_inputs=images())
    trained = {name for name, p in converted.named_parameters() if p.requires_grad}
    assert "5.weight" in trained
    assert not any(name.startswith("0.") for name in trained)


# ---------------------------------------------------------------- the façade

_FRESH = """
import importlib, pkgutil
import bcos_fx
for found in pkgutil.walk_packages(bcos_fx.__path__, "bcos_fx."):
    if found.name != "bcos_fx.__main__":
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:  # an extra that is not installed
            assert error.name == "lightning", error
import pickle, torch
network = torch.nn.Linear(4, 3)
model = bcos_fx.bcosify(network, recipe="equivalent")
assert bcos_fx.verify(network, model, torch.randn(8, 4)).ok
assert bcos_fx.certify(model, torch.rand(3, 4)).ok
assert isinstance(bcos_fx.explain(model, torch.rand(3, 4)), bcos_fx.Explanation)
assert bcos_fx.explain(model, torch.rand(3, 4)).complete
assert bcos_fx.optimize(model, torch.rand(3, 4)).report.train_difference
assert isinstance(model, bcos_fx.BcosNetwork) and isinstance(model.report, bcos_fx.Report)
try:
    bcos_fx.evaluate(model, [], metrics="acuracy")
except bcos_fx.errors.UsageError as error:
    assert "accuracy" in str(error)
assert bcos_fx.plan(network, recipe="equivalent") == model.report.without_figures()
path = bcos_fx.save(model, "model.safetensors")
assert torch.equal(bcos_fx.load(path).get_parameter("layer.weight"), network.weight)
assert issubclass(bcos_fx.errors.UsageError, bcos_fx.BcosFxError)
assert bcos_fx.__version__
try:
    run = bcos_fx.RunSettings(folder="run")
    bcos_fx.finetune(model, 3, recipe=bcos_fx.Training(epochs=1), run=run)
except bcos_fx.errors.BcosFxError as error:
    assert "int" in str(error) or "lightning" in str(error), error
assert bcos_fx.calibrate(model, torch.randn(8, 4)).report.figures.calibration is not None
try:
    bcos_fx.export(model, "model.onx")
except bcos_fx.errors.UsageError as error:
    assert ".onnx" in str(error)
folder = bcos_fx.save_pretrained(model, "folder")
assert torch.equal(bcos_fx.from_pretrained(folder).get_parameter("layer.weight"), network.weight)
try:
    bcos_fx.push_to_hub(model, "no/such/name")
except bcos_fx.errors.BcosFxError as error:
    assert "user/name" in str(error) or "huggingface_hub" in str(error), error
print(sorted(bcos_fx.__all__))
"""
_CALLED = """
    BcosFxError BcosNetwork Explanation Report RunSettings Training __version__ bcosify calibrate certify evaluate
    example_network explain export finetune from_pretrained load optimize plan push_to_hub save save_pretrained verify
    why_not
""".split()


def fresh(code: str, *, folder: Path) -> str:
    """Run code in a process of its own; return what it printed."""
    words = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(words, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}


def test_every_name_of_the_facade_works_after_every_import(tmp_path: Path) -> None:
    """A package named like a façade function would hide it; a new name must be called in the code above."""
    assert sorted(bcos_fx.__all__) == _CALLED == dir(bcos_fx)
    assert fresh(_FRESH, folder=tmp_path).strip() == str(_CALLED)


def test_a_pickle_opens_where_only_converting_was_imported(tmp_path: Path) -> None:
    code = (
        "import pickle, torch, bcos_fx\nm = bcos_fx.bcosify(torch.nn.Linear(4, 3))\nprint(len(pickle.dumps(m)) > 999)"
    )
    assert fresh(code, folder=tmp_path).strip() == "True"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        _ = bcos_fx.explian


def test_a_documented_function_is_found_under_its_former_name_too() -> None:
    from bcos_fx.verification import copies
    from bcos_fx.verification.parameter_coverage import parameter_coverage

    with pytest.warns(DeprecationWarning, match=r"copies.find_copies is now .*parameter_coverage.parameter_coverage"):
        assert copies.find_copies is parameter_coverage
    with pytest.raises(AttributeError):
        _ = copies.no_such_name


def test_importing_and_converting_import_no_library_for_graphs_terminals_or_pictures(tmp_path: Path) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import bcos_fx
bcos_fx.bcosify(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)))
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(names & {"networkx", "rich", "typer", "matplotlib", "torchvision", "timm", "transformers", "pandas"}))
"""
    assert fresh(code, folder=tmp_path).strip() == "[]"
