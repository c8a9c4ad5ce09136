"""Exported programs are traced under the names and lines of what they were made from; both ways into a graph agree."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.nn import BcosLayer
from bcos_fx.testing import norm_statistics_from_data_, randomise_
from bcos_fx.tracing import trace
from bcos_fx.tracing.exported import Exported


class Mixed(nn.Module):
    """A convolution, a norm, attention, an activation that is a function, and a tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4))
        self.attention, self.fc = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 5)

    def forward(self, image: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = self.stem(image).relu().flatten(2).mT
        y = self.attention(y, y, y, need_weights=False)[0]
        y = y if scale is None else y * scale.sigmoid()
        return self.fc(torch.nn.functional.gelu(y).mean(1)), y


def images(side: int = 16, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def exported(module: nn.Module, inputs: tuple[Any, ...], *, free: bool = True) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs) if free else None)


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return norm_statistics_from_data_(randomise_(Mixed()), images()).eval()


def resnet() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    return norm_statistics_from_data_(models.resnet18(num_classes=5), images(32)).eval()


def transformer() -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return randomise_(timm.create_model("test_vit", num_classes=5, img_size=32)).eval()


@pytest.mark.parametrize("make", [mixed, resnet, transformer])
def test_both_ways_into_a_graph_agree(make: Any) -> None:
    """The same function, the same B-cos layers under the same names but for those of attention, both certified."""
    module, x = make(), images(32)
    options: dict[str, Any] = {"recipe": "equivalent", "example_inputs": x}
    options |= {"output_key": 0} if make is mixed else {}
    direct = bcos_fx.bcosify(module, **options)
    through = bcos_fx.bcosify(exported(module, (x,)), **options)
    assert not through.report.unknown
    assert through.report.coverage.share == 1
    layers = [
        {path for path, part in network.named_modules() if isinstance(part, BcosLayer) and "att" not in path}
        for network in (direct, through)
    ]
    assert layers[0] == {path for path in layers[1] if path != "linear"}
    more = torch.cat([x, x.flip(3)]).double()
    with torch.no_grad():
        torch.testing.assert_close(through.double()(more), direct.double()(more), rtol=1e-9, atol=1e-9)
    certification = bcos_fx.certify(through, more)
    assert certification.ok, certification.to_text()
    assert certification.completeness is not None
    assert certification.completeness.worst <= 1e-9


def test_nodes_bear_the_names_and_lines_of_the_module() -> None:
    graph_module = trace(Exported(exported(mixed(), (images(),))), images(), output=0).graph_module
    found = {
        (node.meta["module_path"], node.meta["module_type"], node.meta["text"])
        for node in graph_module.graph.nodes
        if node.op == "call_function"
    }
    assert ("stem.0", "Conv2d", "y = self.stem(image).relu().flatten(2).mT") in found
    assert ("attention", "MultiheadAttention", "y = self.attention(y, y, y, need_weights=False)[0]") in found
    assert {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"} >= {"stem.0.weight"}


def test_inputs_have_the_names_of_the_module() -> None:
    module, scale = mixed(), torch.rand(2, 1, 1)
    program = exported(module, (images(), scale))
    network = bcos_fx.bcosify(
        program, example_inputs={"scale": scale, "image": images()}, recipe="equivalent", output_key=0
    )
    torch.testing.assert_close(network(scale=scale, image=images()), module(images(), scale)[0])


def test_another_size_than_that_of_the_program_is_refused() -> None:
    program = exported(resnet(), (images(32),))
    network = bcos_fx.bcosify(program, recipe="equivalent")  # the program says what it takes
    with pytest.raises(UsageError, match="may be wrong for") as caught:
        network(images(48))
    assert "exported program" in str(caught.value.where)
    with pytest.raises(UsageError, match="is 48 long in dimension 2, the program takes 32"):
        bcos_fx.bcosify(program, example_inputs=images(48), recipe="equivalent")


def test_a_program_is_certified_and_explained_as_it_is() -> None:
    program = exported(resnet(), (images(32),))
    assert bcos_fx.certify(program, images(32)).ok
    found = bcos_fx.explain(program, images(32), 0)
    with torch.no_grad():
        torch.testing.assert_close(found.output, program.module()(images(32))[:, 0], rtol=1e-4, atol=1e-4)
