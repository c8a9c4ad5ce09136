"""What layers read, compared with the original's: against loops, against itself at B = 1, and as a loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.network import BcosNetwork
from bcos_fx.training.finetune import finetune
from bcos_fx.training.matching import LayerMatching, layer_distance, moments, read_by_layers
from bcos_fx.training.schedule import Course, LossDecay
from bcos_fx.training.settings import RunSettings
from tests.training.small_runs import converted, images, original, plain, without_batch_statistics

# Lightning and torchvision come with the extras.
pytestmark = pytest.mark.vision


def slow_distance(ours: Tensor, theirs: Tensor) -> float:
    a, b = ours.flatten().tolist(), theirs.flatten().tolist()
    mean = sum(b) / len(b)
    spread = sum((y - mean) ** 2 for y in b) / len(b) + 1e-4 * sum(y * y for y in b) / len(b)
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(b) / spread


def test_the_distance_is_that_of_a_loop() -> None:
    ours, theirs = torch.randn(4, 3, 2), 5 * torch.randn(4, 3, 2) + 1
    assert layer_distance(ours, theirs, moments(theirs)).item() == pytest.approx(slow_distance(ours, theirs), rel=1e-5)
    assert layer_distance(theirs, theirs, moments(theirs)).item() == 0
    mean = theirs.mean().expand_as(theirs)
    assert layer_distance(mean, theirs, moments(theirs)).item() == pytest.approx(1, abs=2e-4)


def test_an_original_that_says_nothing_gives_finite_gradients() -> None:
    ours = torch.randn(4, 3, requires_grad=True)
    layer_distance(ours, torch.zeros(4, 3), torch.zeros(2)).backward()
    assert ours.grad is not None
    assert not bool(ours.grad.isnan().any())


def linear_pair(**options: Any) -> tuple[BcosNetwork, nn.Module]:
    reference = without_batch_statistics()
    network = bcos_fx.bcosify(reference, example_inputs=images()[0][:2], mean=(0.4,) * 3, std=(0.3,) * 3, **options)
    return network, reference


def test_it_is_the_mean_over_what_layers_read() -> None:
    """By hooks on the layers whose outputs others read: the padded ReLU before a dropout, and the last ReLU."""
    network, reference, batch = converted(b=2.0).eval(), original(), images()[0][:6]
    assert read_by_layers(network) == ["pad", "_5"]
    matching = LayerMatching(network, reference)
    seen: dict[str, Tensor] = {}
    for side, module in (("ours", network), ("theirs", reference)):
        for path in ("4", "5"):
            module.get_submodule(path).register_forward_hook(
                lambda module, inputs, output, key=side + path: seen.update({key: output, key + "in": inputs[0]})
            )
    outputs, wanted, loss = matching(batch)
    assert torch.equal(wanted, reference(network.original_input(batch)))
    assert torch.equal(outputs, network(batch))
    expected = [slow_distance(seen["ours4in"], seen["theirs4in"]), slow_distance(seen["ours5"], seen["theirs5"])]
    assert min(expected) > 0.01
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_nothing_differs_where_nothing_was_changed() -> None:
    network, reference = linear_pair(recipe="equivalent")
    batch = images()[0].double()
    _, _, loss = LayerMatching(network.double(), reference.double())(batch)
    assert loss.item() < 1e-12
    _, _, changed = LayerMatching(linear_pair(recipe="bcosification")[0], reference)(batch.float())
    assert changed.item() > 1e-3


def test_a_conversion_at_b_1_teaches_what_the_original_does() -> None:
    network, reference = linear_pair(recipe="bcosification")
    same, batch = linear_pair(recipe="equivalent")[0], images()[0]
    found = [LayerMatching(network, teacher)(batch) for teacher in (reference, same)]
    assert found[0][2].item() == pytest.approx(found[1][2].item(), rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_it_teaches_layers_without_labels() -> None:
    network, reference = linear_pair(recipe="bcosification")
    pixels = images(60)[0]
    recipe = plain(epochs=8, loss="distil-layers", rises=(), lr=0.02)
    found = finetune(network, pixels, recipe=recipe, validation=pixels, original=reference)
    losses = [row.loss for row in found.history if row.loss is not None]
    assert losses[-1] < 0.5 * losses[0]
    before, after = (LayerMatching(n, reference)(pixels)[2].detach() for n in (network, found.network))
    assert after.item() < 0.5 * before.item()


def test_all_layers_but_the_last_learn_from_it() -> None:
    network = converted(b=2.0)
    _, _, loss = LayerMatching(network, original())(images()[0])
    loss.backward()
    learning = {name for name, p in network.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    assert {"0.weight", "1.weight", "4.weight"} <= learning
    assert not any(name.startswith("8") for name in learning)


def test_a_run_that_is_taken_up_again_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    recipe = plain(epochs=4, loss={"distil-layers": 3.0, "off-label-bce": 1.0}, augment="flip-and-shift")
    given = {"recipe": recipe, "validation": images(9), "original": original()}
    whole = finetune(converted(), images(), run=tmp_path / "whole", **given)

    class Stopped(Exception):
        pass

    def stop(row: Any) -> None:
        if row.epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        finetune(converted(), images(), run=RunSettings(folder=tmp_path / "part", on_epoch=stop), **given)
    again = finetune(converted(), images(), run=RunSettings(folder=tmp_path / "part", resume=True), **given)
    assert [dataclasses.replace(row, seconds=0.0) for row in again.history] == [
        dataclasses.replace(row, seconds=0.0) for row in whole.history
    ]
    for (name, a), b in zip(whole.network.named_parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_loss_that_has_tapered_off_costs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four epochs of six steps: with half of the weight left after three of them, and nothing from the seventh on."""
    ran: list[Tensor] = []
    real = LayerMatching.__call__
    monkeypatch.setattr(LayerMatching, "__call__", lambda self, x: ran.append(x) or real(self, x))
    losses, taper = {"distil-layers": 3.0, "off-label-bce": 1.0}, LossDecay("distil-layers", Course("linear", end=0.25))
    recipe = plain(epochs=4, loss=losses, tapers=(taper,), rises=())
    found = finetune(converted(b=2.0), images(), recipe=recipe, original=original())
    assert len(ran) == 6
    kept = finetune(converted(b=2.0), images(), recipe=plain(epochs=1, loss=losses, rises=()), original=original())
    assert found.history[1].loss < kept.history[1].loss


@pytest.mark.slow
def test_a_compiled_step_compares_the_same() -> None:
    recipe = plain(epochs=2, loss={"distil-layers": 3.0, "off-label-bce": 1.0}, batch_size=8)
    found = [
        finetune(
            linear_pair(recipe="gradual")[0],
            images(),
            recipe=recipe,
            original=without_batch_statistics(),
            compiled=compiled,
        )
        for compiled in (False, True)
    ]
    losses = [[row.loss for row in f.history[1:]] for f in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    recipe = plain(epochs=1, loss="distil-layers", rises=())
    with pytest.raises(UsageError, match="there is no original to distil from"):
        finetune(converted(), images(), recipe=recipe)
    told: list[Any] = []  # it is refused before any test is made
    given = {"recipe": recipe, "validation": images()}
    run = RunSettings(folder=tmp_path / "a" / "run", on_epoch=told.append)
    with pytest.raises(UsageError, match="the original given is not the network that was converted"):
        finetune(converted(), images(), original=without_batch_statistics(), run=run, **given)
    assert not told
    assert not (tmp_path / "a" / "run").exists()
    with pytest.raises(UsageError, match="distil-layers compares a converted network with its original"):
        finetune(original(), images(), recipe=recipe, original=original())
    for wrong, reason in (
        (converted(b=2.0), "its B is 2"),
        (converted(b=1.0, bias="strip"), "its biases were removed"),
    ):
        with pytest.raises(UsageError, match=f"does not compute what the original does: {reason}"):
            finetune(converted(), images(), recipe=recipe, original=wrong)

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., : x.shape[-1] // 2] if x.shape[-1] > 4 else x

    sized = nn.Sequential(nn.Conv2d(3, 4, 1), Cut(), nn.Conv2d(4, 2, 1)).eval()
    network = bcos_fx.bcosify(sized, example_inputs=images()[0][:2], recipe="matched", keep_source=True)
    matching = LayerMatching(network, sized)
    assert matching(images()[0])[2].item() > 0
    with pytest.raises(UsageError, match=r"at the size that .* and images have \(3, 4, 4\)"):
        matching(images()[0][..., :4, :4])
    single = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    network = bcos_fx.bcosify(single, example_inputs=torch.rand(2, 3, 2, 2), recipe="bcosification", input="none")
    with pytest.raises(UsageError, match="no B-cos layer reads anything"):
        finetune(network, (torch.rand(6, 3, 2, 2), torch.arange(6) % 3), recipe=recipe, original=single)
