"""The API used wrongly: every mistake is one of our errors, and says what, where and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import ArtifactError, BcosFxError, RuleError, TraceError, UsageError
from tests.small_networks import MEAN, STD, Calls, Pair, cnn, images, mlp, vectors


def refusal(call: Callable[[], Any], kind: type[BcosFxError] = UsageError) -> BcosFxError:
    with pytest.raises(kind) as caught:
        call()
    return caught.value


def check(error: BcosFxError, what: str, where: str | None = None, hint: str | None = None) -> None:
    """Patterns that the three parts of a message must hold."""
    for pattern, text in ((what, error.what), (where, error.where), (hint, error.hint)):
        assert pattern is None or re.search(pattern, text or ""), f"{pattern!r} is not in: {error}"


# ---------------------------------------------------------------- what is converted


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (None, "None"),
        ("model.pt", "a str"),
        (nn.ReLU, "the class ReLU"),
        (torch.relu, "a builtin_function_or_method"),
        (nn.Linear(2, 2).state_dict(), "an OrderedDict"),
    ],
    ids=["None", "path", "class", "function", "state dict"],
)
def test_what_is_no_module_is_refused(thing: Any, named: str) -> None:
    for call in (bcos_fx.bcosify, bcos_fx.plan):
        check(refusal(partial(call, thing)), f"^{named} is not a network", hint="instance of torch.nn.Module")


@pytest.mark.parametrize("name", ["graph", "record", "report", "original_input", "code", "meta"])
def test_a_part_named_like_an_attribute_of_the_result_is_refused(name: str) -> None:
    module = Calls(lambda self, x: getattr(self, name)(x), **{name: nn.Linear(4, 3)})
    check(refusal(lambda: bcos_fx.bcosify(module)), f"part named {name!r}", "Calls", r"nn.Sequential\(module\)")
    assert f"0.{name}.weight" in bcos_fx.bcosify(nn.Sequential(module)).state_dict()


def test_numbers_that_are_not_finite_are_named() -> None:
    network = cnn()
    network[0].weight.data[0, 0, 0, 0] = float("nan")
    network[1].running_var[0] = float("inf")
    error = refusal(lambda: bcos_fx.bcosify(network, example_inputs=images()))
    check(error, "NaN or infinite", r"^0\.weight, 1\.running_var$", "checkpoint")
    network = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(7)))
    for layer in network:
        layer.weight.data.fill_(float("inf"))
    check(refusal(lambda: bcos_fx.bcosify(network)), "NaN or infinite", r"4\.weight and 2 more$")


def test_weights_that_are_not_there_are_named() -> None:
    check(refusal(lambda: bcos_fx.bcosify(cnn().to("meta"))), "meta device", hint="load its weights")
    check(refusal(lambda: bcos_fx.bcosify(nn.Sequential(nn.LazyLinear(3)))), "'0.weight' is not init", hint="call")


def test_a_network_for_one_size_of_batch_is_no_fault_of_a_rule() -> None:
    module = Calls(lambda self, x: self.layer(x.reshape(int(x.shape[0]), 12)), layer=nn.Linear(12, 3))
    error = refusal(lambda: bcos_fx.bcosify(module, example_inputs=images(1, 3, 2)), TraceError)
    check(error, "like the example only.*batch 2", r"test_api_misuse\.py:\d+: .*int\(x\.shape\[0\]\)", "samples")
    module = Calls(lambda self, x: self.layer(x.reshape(16, 12)), layer=nn.Linear(12, 3))
    error = refusal(lambda: bcos_fx.bcosify(module, example_inputs=images(16, 3, 2)))
    check(error, "cannot run: .*reshape|cannot run: shape", r"\(\d, 3, 2, 2\)", "batch_sizes")


# ---------------------------------------------------------------- what it is shown


@dataclass(frozen=True)
class Example:
    """Example inputs that a module does not take, and what is said about them."""

    module: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    what: str
    where: str | None
    hint: str


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))


EXAMPLES = {
    "no image": Example(
        cnn, vectors, "does not run.*size: \\[2, 4\\]", r"arguments of shape \(2, 4\)", "shape of samples"
    ),
    "one channel": Example(
        cnn, partial(images, 2, 1), "3 channels, but got 1", r"\(2, 1, 8, 8\)", r"reads \(N, 3, H, W\)"
    ),
    "no batch": Example(cnn, lambda: images()[0], "expected 4D input", None, r"reads \(N, 3, H, W\)"),
    "bytes": Example(cnn, lambda: images().byte(), "unsigned char", None, r"x\.float\(\) / 255"),
    "half": Example(cnn, lambda: images().half(), "Half", None, r"x\.to\(torch\.float32\)"),
    "float in half": Example(lambda: cnn().half(), images, "Half", None, r"x\.to\(torch\.float16\)"),
    "floats as tokens": Example(embedding, vectors, "indices", None, "torch.int64"),
    "another device": Example(cnn, lambda: images().to("meta"), "'input' is on the meta device", None, "ordinary"),
    "numpy": Example(cnn, lambda: np.zeros((2, 3, 8, 8)), "is a ndarray", None, "a tensor, a tuple or a dict"),
    "nothing": Example(cnn, lambda: (), "missing a required argument: 'input'", "Sequential.forward", "by name"),
    "one too many": Example(cnn, lambda: (images(), 1), "too many positional", "Sequential.forward", "by name"),
    "wrong name": Example(cnn, lambda: {"pixels": images()}, "pixels|'input'", "Sequential.forward", "by name"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_inputs_that_do_not_fit(name: str) -> None:
    case = EXAMPLES[name]
    error = refusal(lambda: bcos_fx.bcosify(case.module(), example_inputs=case.inputs()))
    check(error, case.what, case.where, case.hint)


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()), r"first layer, 0 \(Conv1d\), does not say how long"),
        (embedding, r"first layer, 0 \(Embedding\), does not say how long"),
        (nn.ReLU, "no layer that says what it takes"),
        (Pair, "missing a required argument: 'y'"),
    ],
)
def test_without_example_inputs_nothing_is_guessed_that_the_module_does_not_say(
    module: Callable[[], nn.Module], what: str
) -> None:
    check(refusal(lambda: bcos_fx.bcosify(module())), what, hint="give")


def test_a_module_that_takes_no_guess_is_told_which_were_tried() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(99, 2))
    error = refusal(lambda: bcos_fx.bcosify(network))
    check(error, "224x224, 64x64, 32x32 pixels.*shapes cannot be multiplied", "Sequential", "example_inputs=")


@dataclass
class Scores:
    first: Tensor
    second: Tensor


OUTPUTS = {
    "dict": (lambda self, x: {"first": x, "second": self.layer(x)}, "a dict with 'first', 'second'", "second"),
    "tuple": (lambda self, x: (x, self.layer(x)), "a tuple with 0, 1", 1),
    "dataclass": (lambda self, x: Scores(x, self.layer(x)), "a Scores with 'first', 'second'", "second"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("shown", [True, False], ids=["with example", "guessed"])
def test_of_several_outputs_one_must_be_chosen(kind: str, shown: bool) -> None:
    forward, described, key = OUTPUTS[kind]
    module, x = Calls(forward, layer=nn.Linear(4, 3)), vectors()
    given: dict[str, Any] = {"example_inputs": x} if shown else {}
    check(refusal(lambda: bcos_fx.bcosify(module, **given)), described, hint="output_key=")
    error = refusal(lambda: bcos_fx.bcosify(module, output_key="third", **given))
    check(error, f"{described}; it has no 'third'", hint="output_key=")
    converted = bcos_fx.bcosify(module, output_key=key, recipe="equivalent", **given)
    torch.testing.assert_close(converted(x), module.layer(x))


def test_an_output_that_is_no_tensor_or_needs_no_choice() -> None:
    module = Calls(lambda self, x: {"a": None}, layer=nn.Linear(4, 3))
    check(refusal(lambda: bcos_fx.bcosify(module, output_key="a")), "'a' is a NoneType", hint="another")
    check(refusal(lambda: bcos_fx.bcosify(mlp(), output_key=0)), "returns one tensor", hint="leave output_key= out")


# ---------------------------------------------------------------- what is asked for

USUAL = r"usually mean=\(0\.485, 0\.456, 0\.406\)"
OPTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"scal": "unit"}, "no option is named 'scal'", "'scale'"),
    ({"scale": "cosin"}, "scale is 'cosin'", "'cosine'"),
    ({"input": "folde"}, "input is 'folde'", "'folded'"),
    ({"pool": "averag"}, "pool is 'averag'", "'average'"),
    ({"channels": "bgra"}, "channels is 'bgra'", "'bgr'"),
    ({"bias": True}, "bias is True", "keep, strip"),
    ({"train": "nonsense"}, "train is 'nonsense'", "known: eval-graph, refuse"),
    ({"b": 0.5}, "B is 0.5", "at least 1"),
    ({"b": float("nan")}, "B is nan", "at least 1"),
    ({"b": True}, "B is True", "at least 1"),
    ({"b": "2"}, "B is '2'", "at least 1"),
    ({"b": {"0": 0.5}}, "B is 0.5", "at least 1"),
    ({"b": {0: 2}}, "names layers by 0", "patterns of names"),
    ({"b": {"O": 2}}, "'O', and no B-cos layer", "known: 0, 5"),
    ({"b": {"1": 2}}, "'1', and no B-cos layer", "known: 0, 5"),
    ({"b": {"*": 2, "5": 3}}, r"'5', but earlier patterns name all its layers \(5\)", "before them"),
    ({"mean": MEAN}, "mean was given without std", USUAL),
    ({"std": STD}, "std was given without mean", USUAL),
    ({"mean": MEAN, "std": STD[:2]}, "mean has 3 values and std has 2", "one of each per channel"),
    ({"mean": MEAN, "std": (0, 1, 1)}, "std finite and positive", "for example"),
    ({"mean": "auto"}, "keeps no record", USUAL),
    ({"mean": "imagenet"}, "mean is 'imagenet'", '"auto"'),
    ({"mean": MEAN, "std": "0.5"}, "std is '0.5'", "one number per channel"),
    ({"mean": [None] * 3, "std": STD}, "mean is", "one number per channel"),
    ({"mean": {"r": 1}, "std": STD}, "mean is {'r': 1}", "one number per channel"),
    ({"pixel_max": 0}, "pixel_max is 0", "positive"),
    ({"eps": -1}, "eps is -1", "positive"),
    ({"temperature": "1"}, "temperature is '1'", "positive"),
    ({"logit_bias": float("nan")}, "logit_bias is nan", "a number"),
    ({"images": images().byte()}, "hold uint8 values", r"images\.float\(\) / 255"),
    ({"images": torch.arange(384.0).view(2, 3, 8, 8)}, r"from 0 to 383, not in \[0, 1\]", "divide bytes by 255"),
    ({"images": images(2, 1)}, r"shape \(2, 1, 8, 8\), the network takes \(N, 3, 8, 8\)", "number of images first"),
    ({"images": [images()]}, "images is a list", "torch.stack"),
]


@pytest.mark.parametrize(("options", "what", "hint"), OPTIONS, ids=lambda value: str(value)[:40])
def test_an_option_that_makes_no_sense(options: dict[str, Any], what: str, hint: str) -> None:
    for call in (bcos_fx.bcosify, bcos_fx.plan):
        check(refusal(partial(call, cnn(), example_inputs=images(), **options)), what, hint=hint)


@pytest.mark.parametrize("options", [{"channels": "bgr"}, {"pixel_max": 255}, {"mean": (0.5,) * 4, "std": (1,) * 4}])
def test_what_is_said_of_images_needs_one(options: dict[str, Any]) -> None:
    names = " and ".join(options)
    error = refusal(lambda: bcos_fx.bcosify(mlp(), **options))
    check(error, rf"^{names} (was|were) given, but no input is an image.*\(input \(2, 4\)\)", hint=f"leave {names} out")


def test_an_image_that_is_not_encoded_is_told_why() -> None:
    call = partial(bcos_fx.bcosify, cnn(), example_inputs=images())
    error = refusal(partial(call, mean=MEAN[:2], std=STD[:2]))
    check(error, "no input is an image", "mean and std have 2 values and the input has 3 channels")
    check(refusal(partial(call, mean=MEAN, std=STD, input="none")), "no input is an image", "input='none'")
    pair = partial(bcos_fx.bcosify, Pair(), example_inputs=(images(), images()), images=images())
    check(refusal(pair), r"2 inputs \(x, y\)", hint="leave images= out")


def test_recipes_and_rule_files_that_are_not_there(tmp_path: Path) -> None:
    call = partial(bcos_fx.bcosify, mlp())
    check(refusal(partial(call, recipe="bcosifcation"), RuleError), "'bcosifcation'", hint="'bcosification'")
    missing = str(tmp_path / "no.toml")
    for arguments in ({"recipe": missing}, {"rules": [missing]}, {"rules": missing}):
        check(refusal(partial(call, **arguments), RuleError), "cannot be read: No such file", re.escape(missing))
    check(refusal(partial(call, recipe="equivalent", b=2)), "fixes b=1.0", hint="another recipe")


# ---------------------------------------------------------------- what is done with the result


@pytest.fixture(scope="module")
def converted() -> bcos_fx.convert.BcosNetwork:
    torch.manual_seed(0)
    return bcos_fx.bcosify(cnn(), example_inputs=images())


CALLS: list[tuple[Callable[[], tuple[Any, ...]], str, str | None]] = [
    (lambda: (images(2, 4),), r"shape \(2, 4, 8, 8\), the network takes \(N, 3, 8, 8\)", None),
    (lambda: (images()[0],), r"shape \(3, 8, 8\)", r"x\.unsqueeze\(0\)"),
    (lambda: (images().byte(),), r"'input' holds uint8.*in \[0, 1\]", r"x\.float\(\) / 255"),
    (lambda: (None,), "'input' is a NoneType", "give a tensor"),
    (lambda: ([images()],), "'input' is a list", "give a tensor"),
    (lambda: (), r"0 inputs given, the network takes 1 \(input\)", None),
    (lambda: (images(), images()), "2 inputs given, the network takes 1", None),
]


@pytest.mark.parametrize(("inputs", "what", "hint"), CALLS)
def test_a_network_called_wrongly(
    converted: nn.Module, inputs: Callable[[], tuple[Any, ...]], what: str, hint: str | None
) -> None:
    check(refusal(lambda: converted(*inputs())), what, hint=hint)


def test_an_input_by_a_wrong_name(converted: nn.Module) -> None:
    check(refusal(lambda: converted(inptu=images())), "no input 'inptu'", hint="'input'")
    check(refusal(lambda: converted(images(), input=images())), "no input 'input' is left")


def test_another_size_where_the_graph_took_a_branch_from_it() -> None:
    module = Calls(lambda self, x: self.net(x * 2 if x.shape[2] > 4 else x), net=cnn())
    converted = bcos_fx.bcosify(module, example_inputs=images())
    assert converted(images(3)).shape == (3, 5)
    error = refusal(lambda: converted(images(2, 3, 4)))
    check(error, r"shape \(N, 3, 8, 8\).*wrong for \(2, 3, 4, 4\)", r"x\.shape\[2\] > 4.*bool was True", "again")


def test_training_where_the_original_does_something_else_in_training() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.main(x) + self.aux(x) if self.training else self.main(x)

    module = Calls(forward, main=nn.Linear(4, 3), aux=nn.Linear(4, 3))
    converted = bcos_fx.bcosify(module)
    assert not converted.train(False).training
    error = refusal(converted.train)
    check(error, "cannot be trained", r"train mode calls aux at test_api_misuse\.py", 'train="eval-graph"')
    assert bcos_fx.bcosify(module, train="eval-graph").train().training


def test_verify_on_what_is_no_module() -> None:
    check(refusal(lambda: bcos_fx.verify("a", mlp(), vectors())), "the original network is a str", hint="Module")
    check(refusal(lambda: bcos_fx.verify(mlp(), torch.relu, vectors())), "the converted network is a builtin")
    check(refusal(lambda: bcos_fx.verify(mlp(), mlp(), "x")), "expected a tensor, got str", "input 0")


def test_files_that_cannot_be(converted: nn.Module, tmp_path: Path) -> None:
    missing, text = tmp_path / "no" / "such.safetensors", tmp_path / "text"
    text.write_text("hello")
    check(
        refusal(partial(bcos_fx.save, converted, missing), ArtifactError),
        "there is no folder",
        "such",
        "existing folder",
    )
    check(refusal(partial(bcos_fx.save, cnn(), missing)), "Sequential is not a converted", hint="bcosify")
    check(refusal(partial(bcos_fx.load, missing), ArtifactError), "no such file", "such", "no folder")
    check(refusal(partial(bcos_fx.load, text), ArtifactError), "not a safetensors file", "text", "checkpoint")
    check(refusal(partial(bcos_fx.load, tmp_path), ArtifactError), "a directory", str(tmp_path))
    for call in (partial(bcos_fx.load, 5), partial(bcos_fx.save, converted, 5)):
        check(refusal(call), "5 is not the path", hint=r"pathlib\.Path")
