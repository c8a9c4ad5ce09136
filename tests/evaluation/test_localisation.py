"""The Grid Pointing Game from images to scores."""

from __future__ import annotations

import dataclasses
import importlib
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset, TensorDataset

import bcos_fx
from bcos_fx import evaluation
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import Method, accuracy, dynamic_linear, fair, gridpg, gridpg_reference, published
from bcos_fx.evaluation.measured import bootstrap
from bcos_fx.network import BcosNetwork
from tests.evaluation.toy import CLASSES, Colours, images


@pytest.mark.parametrize("protocol", ["published", "fair"])
def test_scores_are_those_of_explanations_made_one_by_one(network: BcosNetwork, protocol: str) -> None:
    data = images(40)
    found = gridpg(network, data, side=2, protocol=protocol, grids=4)
    assert found.per_grid.shape == (4, 4)
    for grid, scores in zip(found.grids, found.per_grid, strict=True):
        picture = torch.zeros(1, 3, 16, 16)
        for k, index in enumerate(grid.images):
            top, left = 8 * (k % 2), 8 * (k // 2)
            picture[0, :, top : top + 8, left : left + 8] = data[index][0]
        maps = [bcos_fx.explain(network, picture, label).contributions for label in grid.labels]
        expected = gridpg_reference(torch.cat(maps).unsqueeze(0), 4)[0]
        np.testing.assert_allclose(scores, expected.numpy(), atol=1e-6)
    assert found.mean == pytest.approx(found.per_grid.mean())
    low, high = found.interval
    assert low < found.mean < high
    assert found.mean > 0.5


class Counter(TorchDispatchMode):
    """Counts convolutions, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = self.backwards = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.forwards += func is torch.ops.aten.convolution.default
        self.backwards += func is torch.ops.aten.convolution_backward.default
        return func(*args, **(kwargs or {}))


def test_all_targets_of_a_grid_cost_one_forward_pass(network: BcosNetwork) -> None:
    picture = torch.rand(1, 3, 16, 16)
    maps = dynamic_linear(network).maps
    maps(picture, torch.tensor([[0]]))  # the view is built once
    counts = {}
    for targets in ([0], [0, 1, 2, 3]):
        with Counter() as counter:
            maps(picture, torch.tensor([targets]))
        counts[len(targets)] = counter.forwards
    assert counts[4] == counts[1] > 0


def test_another_method_plays_on_the_same_grids(network: BcosNetwork) -> None:
    data = images(40)
    seen: list[tuple[int, ...]] = []

    def uniform(pictures: Tensor, targets: Tensor) -> Tensor:
        seen.append(tuple(targets[0].tolist()))
        return torch.ones(*targets.shape, *pictures.shape[2:])

    own = gridpg(network, data, side=2)
    other = gridpg(network, data, side=2, method=Method("uniform", {"height": 1}, uniform))
    assert other.grids == own.grids
    assert seen == [grid.labels for grid in own.grids]
    assert other.mean == pytest.approx(1 / 4, abs=1e-12)
    assert other.interval == pytest.approx((1 / 4, 1 / 4))
    assert other.to_dict()["method_settings"] == {"height": "1"}


def test_rescaled_cells_make_a_grid_as_large_as_an_image(network: BcosNetwork) -> None:
    sizes: list[tuple[int, ...]] = []

    def note(pictures: Tensor, targets: Tensor) -> Tensor:
        sizes.append(tuple(pictures.shape))
        return torch.ones(*targets.shape, *pictures.shape[2:])

    data, method = images(40), Method("noting", {}, note)
    gridpg(network, data, method=method, protocol=fair(side=2, grids=1, rescaled=True))
    gridpg(network, data, method=method, protocol=fair(side=2, grids=1))
    gridpg(network, data, method=method, protocol=fair(side=2, grids=1, windows=True))
    assert sizes == [(1, 3, 8, 8), (1, 3, 16, 16), (25, 3, 8, 8)]


def test_a_network_of_one_size_plays_in_windows() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.colors = Colours()

        def forward(self, x: Tensor) -> Tensor:
            height, width = x.shape[2:]
            if (height, width) != (8, 8):
                raise ValueError("only 8x8")
            return self.colors(x)

    fixed = bcos_fx.bcosify(Fixed().eval(), recipe="equivalent", example_inputs=torch.rand(2, 3, 8, 8))
    with pytest.raises(UsageError, match="takes no image as large as a grid") as caught:
        gridpg(fixed, images(40), side=2)
    assert "windows=True" in str(caught.value)
    found = gridpg(fixed, images(40), protocol=published(side=2, windows=True))
    assert found.mean > 0.5
    assert found.settings["windows"] == "8x8, stride half"


def test_results_are_kept_and_gone_on_with(network: BcosNetwork, tmp_path: Path) -> None:
    data = images(40)
    calls: list[int] = []

    def counted(pictures: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return dynamic_linear(network).maps(pictures, targets)

    method = Method("Counted 1", {}, counted)
    first = gridpg(network, data, side=2, method=method, folder=tmp_path)
    assert len(calls) == len(first.grids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gridpg-2x2-counted-1.jsonl", "predictions.jsonl"]
    again = gridpg(network, data, side=2, method=method, folder=tmp_path)
    assert len(calls) == len(first.grids)
    np.testing.assert_array_equal(first.per_grid, again.per_grid)
    with pytest.raises(UsageError, match=r"settings\.seed was 42 and is 1"):
        gridpg(network, data, method=method, protocol=fair(side=2, seed=1), folder=tmp_path)
    with pytest.raises(UsageError, match=r"data\.images was 40 and is 41"):
        gridpg(network, images(41), side=2, method=method, folder=tmp_path)
    other = bcos_fx.bcosify(Colours().eval(), recipe="bcosification", example_inputs=torch.rand(2, 3, 8, 8))
    with pytest.raises(UsageError, match="model was"):
        gridpg(other, data, side=2, method=method, folder=tmp_path)


def test_any_classifier_is_taken_and_told_apart_from_another(tmp_path: Path) -> None:
    plain, data = Colours().eval(), images(30)
    found = gridpg(plain, data, side=2, grids=2, folder=tmp_path)
    assert found.mean > 0.4
    with torch.no_grad():
        plain.conv.bias[0] += 1
    with pytest.raises(UsageError, match="model was"):
        gridpg(plain, data, side=2, grids=2, folder=tmp_path)


def test_a_result_reads_well_and_is_drawn(network: BcosNetwork) -> None:
    found = gridpg(network, images(40), side=2)
    assert repr(found).startswith("GridPG 2x2, fair: B-cos 0.")
    assert f"{len(found.grids)} of 500 grids" in repr(found)
    assert found.percentiles[0] <= found.percentiles[1] <= found.percentiles[2]
    pytest.importorskip("matplotlib")
    figure = found.plot()
    assert figure.axes[0].get_title() == f"GridPG 2x2, fair, {len(found.grids)} grids"
    median = next(line for line in figure.axes[0].lines if line.get_color() == "#2154ad" and len(line.get_xdata()) == 2
                  and line.get_linewidth() == 1.6)  # fmt: skip
    assert median.get_ydata()[0] == pytest.approx(found.percentiles[1])


def test_a_method_that_had_fewer_grids_says_so_in_a_plot(network: BcosNetwork) -> None:
    pytest.importorskip("matplotlib")
    from bcos_fx.evaluation.localisation import boxes

    whole = gridpg(network, images(40), side=2)
    few = dataclasses.replace(whole, method="Slow", grids=whole.grids[:1], per_grid=whole.per_grid[:1])
    axes = boxes([few, whole]).axes[0]
    assert len(whole.grids) > 1
    assert axes.get_title().endswith(f", {len(whole.grids)} grids")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["Slow (1 grid)", "B-cos"]


def test_the_interval_is_that_of_a_normal_mean_where_there_are_many() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=(400, 4))
    low, high = bootstrap(values)
    spread = 1.96 * values.mean(1).std() / 20
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.01)
    assert bootstrap(values) == (low, high)
    assert bootstrap(values, seed=1) != (low, high)


# ---------------------------------------------------------------- bad input


class Flawed(Dataset[Any]):
    """Some of its images cannot be read."""

    def __init__(self, data: TensorDataset, broken: set[int]) -> None:
        self.data, self.broken = data, broken

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        if index in self.broken:
            raise OSError("cut short")
        return self.data[index]


def test_unreadable_images_are_counted_and_listed(network: BcosNetwork) -> None:
    found = gridpg(network, Flawed(images(40), {3, 17}), side=2)
    assert found.unreadable == {f"image {n}": "the data set raised OSError: cut short" for n in (3, 17)}
    assert not {3, 17} & {index for grid in found.grids for index in grid.images}
    pytest.importorskip("torchmetrics")
    assert accuracy(network, Flawed(images(40), set(range(32)))).images == 8
    with pytest.raises(UsageError, match="of 40 images none can be read"):
        gridpg(network, Flawed(images(40), set(range(40))))


@pytest.mark.parametrize(
    ("labels", "said"),
    [(torch.arange(30) % 7, "label 6 is not one of the network's 6 classes"), (torch.arange(30) - 1, "label -1")],
)
def test_labels_outside_the_classes_are_refused(network: BcosNetwork, labels: Tensor, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        gridpg(network, TensorDataset(images(30).tensors[0], labels))
    assert caught.value.where in ("item 6 of TensorDataset", "item 0 of TensorDataset")


def test_too_few_correct_classes_are_refused(network: BcosNetwork) -> None:
    pixels, labels = images(30).tensors
    with pytest.raises(UsageError, match=r"needs more than 4 classes .* there are 4"):
        gridpg(network, TensorDataset(pixels, labels.clamp_max(3)), side=2)
    with pytest.raises(UsageError, match="no image is classified correctly"):
        gridpg(network, TensorDataset(pixels, (labels + 1) % CLASSES), side=2)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((nn.Conv2d(3, 4, 3),), r"gives \(30, 4, 6, 6\)"),
        ((nn.Flatten(), nn.Linear(192, 1)), r"gives \(30, 1\)"),
        ((nn.Flatten(), nn.LSTM(192, 4)), "gives tuple"),
    ],
    ids=["map", "one output", "tuple"],
)
def test_a_network_without_class_outputs_is_refused(layers: tuple[nn.Module, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        gridpg(nn.Sequential(*layers).eval(), images(30))


def test_images_of_mixed_sizes_are_named(network: BcosNetwork) -> None:
    items = [(torch.rand(3, 8, 8), 0), (torch.rand(3, 8, 9), 1)]
    with pytest.raises(UsageError, match=r"item 1 of list has the shape \(3, 8, 9\), and the network"):
        gridpg(network, items)


def test_other_arguments_without_sense(network: BcosNetwork) -> None:
    data = images(30)
    with pytest.raises(UsageError, match="did you mean 'published'"):
        gridpg(network, data, protocol="publishd")
    with pytest.raises(UsageError, match="batch_size is 0"):
        gridpg(network, data, batch_size=0)
    with pytest.raises(UsageError, match="train mode"):
        gridpg(Colours(), data)
    with pytest.raises(UsageError, match="no images to evaluate"):
        gridpg(network, [])
    with pytest.raises(UsageError, match="size"):
        gridpg(Colours().eval(), [])
    with pytest.raises(UsageError, match="not a photograph"):
        gridpg(network, data, shape=(2, 8, 8))
    with pytest.raises(UsageError, match=r"gave maps of \(1, 4, 1, 1\)"):
        gridpg(network, data, side=2, method=Method("small", {}, lambda x, t: torch.ones(*t.shape, 1, 1)))
    with pytest.raises(UsageError, match="gave NaN"):
        gridpg(network, data, side=2, method=Method("nan", {}, lambda x, t: torch.full((*t.shape, 16, 16), torch.nan)))


def test_outputs_that_are_no_numbers_are_refused() -> None:
    broken = Colours().eval()
    with torch.no_grad():
        broken.conv.weight[0] = torch.nan
    with pytest.raises(UsageError, match="NaN"):
        gridpg(broken, images(30))


def test_protocols_are_values() -> None:
    assert dataclasses.replace(fair(side=2), seed=1) == fair(side=2, seed=1)


class Watched(Dataset[Any]):
    """Knows how many of its images are in memory at once."""

    def __init__(self, data: TensorDataset) -> None:
        self.data, self.alive, self.most = data, 0, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        image, label = self.data[index]
        given = image.clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(given, self._gone)
        return given, label

    def _gone(self) -> None:
        self.alive -= 1


def test_no_more_images_are_in_memory_than_a_batch(network: BcosNetwork) -> None:
    data = Watched(images(90))
    found = gridpg(network, data, side=2, batch_size=8)
    assert len(found.grids) > 10
    assert data.most <= 9
    assert data.alive == 0


def test_every_public_name_is_there_whatever_was_imported_before() -> None:
    for path in Path(evaluation.__file__).parent.glob("[a-z]*.py"):
        importlib.import_module(f"bcos_fx.evaluation.{path.stem}")
    for name in evaluation.__all__:
        assert callable(getattr(evaluation, name)), name
    with pytest.raises(AttributeError, match="no attribute 'grid_pg'"):
        evaluation.grid_pg  # noqa: B018 - the attribute is what is asked for
