"""explain(): every target, output and source adds up, batches equal singles, and the model stays as it was."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.explanation import Contributions, contributions_as_arrays, difference
from tests.explanation.networks import Embedded, Small, Tokens, converted, images, normalised, small

COUNT = 3


@pytest.fixture(scope="module")
def network() -> Any:
    return converted()


def adds_up(found: Any) -> bool:
    scale = found.output.abs().max().clamp_min(1e-3)
    return bool(found.residual.abs().max() <= 1e-9 * scale) and found.complete


TARGETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "none": (None, (COUNT,)),
    "index": (3, (COUNT,)),
    "one per sample": ([0, 4, 2], (COUNT,)),
    "tensor": (torch.tensor([0, 4, 2]), (COUNT,)),
    "several": ([[0, 1], [4, 3], [2, 2]], (COUNT, 2)),
    "tensor of several": (torch.tensor([[0, 1], [4, 3], [2, 2]]), (COUNT, 2)),
    "top": ("top3", (COUNT, 3)),
    "name": ("tabby", (COUNT,)),
    "difference": (difference(1, 3), (COUNT,)),
    "against the others": (difference(1), (COUNT,)),
    "predicted against the others": (difference(), (COUNT,)),
    "function": (lambda outputs: 2 * outputs[:, 1] - outputs.mean(1), (COUNT,)),
    "functions": (lambda outputs: outputs[:, :2], (COUNT, 2)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_adds_up_to_what_the_network_says(name: str, network: Any) -> None:
    target, shape = TARGETS[name]
    names = ("fish", "dog", "tabby, tabby cat", "car", "cup")
    found = bcos_fx.explain(network, images(), target, names=names)
    assert found.output.shape == shape
    assert found.weights.shape == (*shape, 6, 12, 12)
    assert found.contributions.shape == (*shape, 12, 12)
    assert adds_up(found)
    with torch.no_grad():
        outputs = network(images())
    torch.testing.assert_close(found.scores, outputs, rtol=1e-12, atol=1e-14)
    if found.target is not None:
        expected = outputs.gather(1, found.target.reshape(COUNT, -1)).reshape(shape)
        torch.testing.assert_close(found.output, expected, rtol=1e-12, atol=1e-14)
    if name == "name":
        assert found.target.tolist() == [2] * COUNT
    if name == "top":
        assert torch.equal(found.target, outputs.topk(3).indices)


@pytest.mark.parametrize("target", [2, None])
def test_what_sets_a_class_apart_is_its_contributions_less_the_mean_of_the_others(target: Any, network: Any) -> None:
    found, every = (bcos_fx.explain(network, images(), asked) for asked in (difference(target), "all"))
    own = every.output.argmax(1) if target is None else torch.full((COUNT,), target)
    for n, index in enumerate(own.tolist()):
        others = [k for k in range(every.output.shape[1]) if k != index]
        expected = every.contributions[n, index] - every.contributions[n, others].mean(0)
        torch.testing.assert_close(found.contributions[n], expected, rtol=1e-9, atol=1e-12)


def test_several_targets_equal_single_ones(network: Any) -> None:
    several = bcos_fx.explain(network, images(), [[0, 1, 4]] * COUNT)
    for place, index in enumerate((0, 1, 4)):
        one = bcos_fx.explain(network, images(), index)
        assert torch.equal(several.weights[:, place], one.weights)
        assert {name: values[:, place].tolist() for name, values in several.constants.items()} == {
            name: values.tolist() for name, values in one.constants.items()
        }


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_a_batch_equals_its_samples(batch_size: int | None, network: Any) -> None:
    whole = bcos_fx.explain(network, images(5), batch_size=batch_size)
    for n in range(5):
        one = bcos_fx.explain(network, images(5)[n : n + 1])
        torch.testing.assert_close(whole.weights[n], one.weights[0], rtol=1e-10, atol=1e-12)
        for source, values in one.constants.items():
            torch.testing.assert_close(whole.constants[source][n], values[0], rtol=1e-10, atol=1e-12)


def test_w_is_the_gradient_of_the_original_where_only_selections_occur(network: Any) -> None:
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(small()(normalised(x))[:, 2].sum(), x)
    found = bcos_fx.explain(network, images(), 2)
    torch.testing.assert_close(found.input_weights, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("output", "target"), [("stem", 3), ("stem", (3, 1, 2)), ("branch", 0), ("pool", (7,)), ("logits", 1)]
)
def test_inner_layers_can_be_explained(output: str, target: Any, network: Any) -> None:
    found = bcos_fx.explain(network, images(), target, output=output)
    assert found.where == output
    assert adds_up(found)


@pytest.mark.parametrize("source", ["stem", "pool", "branch", "stem.0"])
def test_outputs_can_be_explained_by_inner_layers(source: str, network: Any) -> None:
    """What reaches the output past the layer, here by the shortcut, is listed among the constants."""
    found = bcos_fx.explain(network, images(), 1, source=source)
    assert adds_up(found)
    assert found.encoded.shape[1] == 8
    assert ("the input x" in found.constants) == (source == "branch")


def test_tokens_are_explained_by_their_embeddings() -> None:
    torch.manual_seed(0)
    tokens = Tokens().double().eval()
    ids = torch.randint(0, 10, (COUNT, 5))
    found = bcos_fx.explain(tokens, ids, source="embedding")
    assert adds_up(found)
    assert found.weights.shape == (COUNT, 5, 6)
    assert found.contributions.shape == (COUNT, 5)
    assert {"positions", "values.bias", "norm.bias", "head.bias"} == set(found.constants)
    with pytest.raises(bcos_fx.BcosFxError, match="integers"):
        bcos_fx.explain(tokens, ids)


def test_embeddings_and_features_are_inputs_like_images() -> None:
    torch.manual_seed(0)
    embedded = Embedded(Tokens()).double().eval()
    found = bcos_fx.explain(embedded, torch.randn(COUNT, 5, 6).double())
    assert found.contributions.shape == (COUNT, 5)
    assert adds_up(found)
    table = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).double().eval()
    found = bcos_fx.explain(table, torch.randn(COUNT, 4).double())
    assert found.contributions.shape == (COUNT, 4)
    assert adds_up(found)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.first(x) + self.second(y)


def test_further_inputs_count_among_the_constants() -> None:
    torch.manual_seed(0)
    found = bcos_fx.explain(
        Two().double().eval(), torch.randn(COUNT, 4).double(), 1, others=[torch.randn(COUNT, 2).double()]
    )
    assert adds_up(found)
    assert "the input y" in found.constants


def test_the_model_and_the_callers_tensors_stay_as_they_are(network: Any) -> None:
    x = images().requires_grad_()
    flags = [p.requires_grad for p in network.parameters()]
    first = bcos_fx.explain(network, x)
    second = bcos_fx.explain(network, x)
    assert torch.equal(first.weights, second.weights)
    assert x.grad is None
    assert not first.weights.requires_grad
    assert all(p.grad is None for p in network.parameters())
    assert flags == [p.requires_grad for p in network.parameters()]


def test_callers_may_be_in_any_grad_mode(network: Any) -> None:
    expected = bcos_fx.explain(network, images()).weights
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(bcos_fx.explain(network, images()).weights, expected)


def test_two_threads_do_not_disturb_each_other(network: Any) -> None:
    expected = {k: bcos_fx.explain(network, images(), k).weights for k in range(4)}
    found: dict[int, Tensor] = {}

    def work(k: int) -> None:
        found[k] = bcos_fx.explain(network, images(), k).weights

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[k], expected[k]) for k in range(4))


def test_an_explanation_follows_training_and_moves() -> None:
    network = converted()
    bcos_fx.explain(network, images())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1).add_(0.01)
    found = bcos_fx.explain(network, images())
    with torch.no_grad():
        torch.testing.assert_close(found.scores, network(images()), rtol=1e-12, atol=1e-14)
    assert adds_up(found)
    single = bcos_fx.explain(network.float(), images().float())
    assert single.weights.dtype == torch.float32
    assert single.complete


@pytest.mark.parametrize(("scale", "b"), [("cosine", 1.5), ("raw", 2.0), ("unit", 2.0), ("cosine", 1.25)])
def test_raised_networks_add_up(scale: str, b: float) -> None:
    network = converted("bcosification", b=b, scale=scale, bias="keep")
    found = bcos_fx.explain(network, images())
    assert adds_up(found)
    with torch.no_grad():
        torch.testing.assert_close(found.scores, network(images()), rtol=1e-10, atol=1e-13)


def test_a_network_as_published_has_one_constant() -> None:
    found = bcos_fx.explain(converted("bcosification"), images())
    assert list(found.constants) == ["output.bias"]
    stripped = bcos_fx.explain(converted("bcosification", head="keep"), images())
    assert not stripped.constants
    assert stripped.constants.total().tolist() == [0.0] * COUNT


def test_what_is_not_dynamic_linear_is_refused_or_labelled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 3)).double().eval()
    x = torch.randn(COUNT, 4).double()
    with pytest.raises(bcos_fx.errors.VerificationError) as caught:
        bcos_fx.explain(model, x)
    assert "softmax" in str(caught.value)
    assert 'output="_0"' in str(caught.value)
    found = bcos_fx.explain(model, x, allow_incomplete=True)
    assert not found.complete
    assert "INCOMPLETE" in repr(found)
    assert found.residual.abs().max() > 1e-3
    ending = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)).double().eval()
    with pytest.raises(bcos_fx.errors.VerificationError, match='output="logits"'):
        bcos_fx.explain(ending, x)
    assert adds_up(bcos_fx.explain(ending, x, output="logits"))


def test_contributions_serve_captum(network: Any) -> None:
    metrics = pytest.importorskip("captum.metrics")
    method = Contributions(network)
    x = 0.1 + 0.8 * images()  # captum's metric disturbs them a little
    attributed, left_over = method.attribute(x, target=2, return_convergence_delta=True)
    assert attributed.shape == x.shape
    assert method.has_convergence_delta()
    found = bcos_fx.explain(network, x, 2)
    torch.testing.assert_close(
        attributed.flatten(1).sum(1) + found.constants.total() + left_over, found.output, rtol=1e-10, atol=1e-12
    )
    (alone,) = method.attribute((x,), target=torch.tensor([2, 2, 2]))
    assert torch.equal(alone, attributed)
    arrays = contributions_as_arrays(network, x.numpy(), np.full(COUNT, 2), device="cpu")
    np.testing.assert_array_equal(arrays, attributed.numpy())
    sensitivity = metrics.sensitivity_max(method.attribute, x, target=2, perturb_radius=1e-3, n_perturb_samples=2)
    assert sensitivity.shape == (COUNT,)
    with pytest.raises(bcos_fx.BcosFxError, match="2 inputs"):
        method.attribute((x, x))
    with pytest.raises(bcos_fx.BcosFxError, match="2 outputs of each sample"):
        method.attribute(x, target=[[0, 1]] * COUNT)


NAN = images()
NAN[1, 0, 0, 0] = float("nan")
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "channels": ({"images": images()[:, :1]}, "shape (3, 1, 12, 12)"),
    "one sample": ({"images": images()[0]}, "unsqueeze(0)"),
    "nan": ({"images": NAN}, "1 of 3 images hold NaN or infinity, the first is number 1"),
    "empty": ({"images": images()[:0]}, "no images"),
    "no tensor": ({"images": [1, 2]}, "is a list"),
    "precision": ({"images": images().float()}, "images.to(torch.float64)"),
    "index": ({"target": 5}, "has 5"),
    "negative": ({"target": -1}, "counted from 0 to 4"),
    "length": ({"target": [1, 2]}, "2 entries for 3 samples"),
    "float": ({"target": 1.5}, "no indices"),
    "bool": ({"target": torch.tensor([True, False, True])}, "no indices"),
    "nothing": ({"target": torch.zeros(3, 0, dtype=torch.long)}, "names no output"),
    "ragged": ({"target": [[1], [2, 3], [4]]}, "cannot be read"),
    "name": ({"target": "tabbi", "names": ("tabby", "dog")}, "did you mean 'tabby'"),
    "no names": ({"target": "tabby"}, "no class names are known"),
    "function": ({"target": lambda outputs: outputs.sum()}, "one number per sample"),
    "detached": ({"target": lambda outputs: outputs[:, 0].detach()}, "does not depend"),
    "layer": ({"output": "branhc"}, "branch"),
    "unit": ({"output": "stem", "target": (99,)}, "no unit"),
    "no unit": ({"output": "stem"}, "no predicted class"),
    "source after output": ({"output": "stem", "source": "fc", "target": 1}, "'fc'"),
    "batch size": ({"batch_size": 0}, "batch_size is 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_a_clear_error(name: str, network: Any) -> None:
    given, words = BAD[name]
    arguments = {"images": images(), **given}
    with pytest.raises(bcos_fx.BcosFxError) as caught:
        bcos_fx.explain(network, **arguments)
    assert words in str(caught.value)


def test_train_mode_is_refused() -> None:
    network = converted(train="eval-graph").train()
    with pytest.raises(bcos_fx.BcosFxError, match=r"network.eval\(\)"):
        bcos_fx.explain(network, images())
    with pytest.raises(bcos_fx.BcosFxError, match=r"network.eval\(\)"):
        bcos_fx.explain(Small().train(), images().float())


def test_values_out_of_range_are_said_aloud_and_kept(network: Any) -> None:
    with pytest.warns(UserWarning, match="values from -0.5"):
        found = bcos_fx.explain(network, images() - 0.5)
    assert any("[0, 1]" in note for note in found.notes)
