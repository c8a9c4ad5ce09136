"""Two graphs compared block by block: equal ones are, and no wrong block, wiring or order of blocks gets through."""

from __future__ import annotations

import gc
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import bcos_fx
from bcos_fx.conversion.records import LARGE, Conversion
from bcos_fx.conversion.stages import preserved, traced
from bcos_fx.errors import TraceError, UsageError, VerificationError
from bcos_fx.network import InputSpec
from bcos_fx.rewriting.core.build import Build
from bcos_fx.rewriting.core.recipe import load_recipe
from bcos_fx.rewriting.core.registry import BUILDERS
from bcos_fx.tracing import trace
from bcos_fx.verification import Verification
from bcos_fx.verification.blocks import verify_blocks
from bcos_fx.verification.cuts import block, find_cuts
from bcos_fx.verification.running import Case, Outcome, isolated_copy, run_cases

WIDTH, BLOCKS = 12, 6


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(self.norm(x))))  # type: ignore[no-any-return]


class Network(nn.Module):
    """Residual blocks of equal shapes, and a value (the mask) that all of them read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList([Residual() for _ in range(BLOCKS)])

    def forward(self, x: Tensor) -> Tensor:
        mask = (x[..., :1] > 0.2).to(x.dtype)
        x = self.stem(x)
        for part in self.blocks:
            x = part(x) * mask
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1))


def graphs(network: nn.Module, x: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    return trace(network, x).graph_module, trace(network, x).graph_module


def compared(network: nn.Module, x: Tensor, change: Callable[[fx.GraphModule], None]) -> Verification:
    """Compare a graph with a changed one; the whole is compared with the changed one's own twin, so blocks decide."""
    original, converted = graphs(network, x)
    change(converted)
    converted.graph.lint()
    converted.recompile()
    return verify_blocks(original, converted, (x,), [InputSpec("x", tuple(x.shape))], converted)


def node(graph_module: fx.GraphModule, name: str) -> fx.Node:
    return next(node for node in graph_module.graph.nodes if node.name == name)


def ends(graph_module: fx.GraphModule) -> list[str]:
    """The values after the residual blocks."""
    return [node.name for node in graph_module.graph.nodes if node.name.startswith("mul")]


def test_equal_graphs_are_equal_in_every_block(network: Network, x: Tensor) -> None:
    found = compared(network, x, lambda graph_module: None)
    assert found.ok
    assert found.method == "blocks"
    names = [row.name for row in found.comparisons]
    assert sum("gradient" in name for name in names) >= BLOCKS
    assert names[-1] == "whole network in float32, one sample"


def test_blocks_one_after_the_other_are_the_graph(network: Network, x: Tensor) -> None:
    graph_module, other = graphs(network, x)
    cuts = [None, *find_cuts(graph_module, other), None]
    values: tuple[Tensor, ...] = (x,)
    for before, after in pairwise(cuts):
        result = block(graph_module, before, after)(*values)
        values = result if isinstance(result, tuple) else (result,)
    assert torch.equal(values[0], graph_module(x))
    # The residual sum and the mask cross, and nothing else: no block begins in the middle of another.
    assert len(cuts) > BLOCKS
    assert all(len(cut) <= 2 for cut in cuts if cut is not None)


def wrong_rule(graph_module: fx.GraphModule) -> None:
    graph_module.get_submodule("blocks.3.norm").eps = 1e-3  # type: ignore[assignment]


def wrong_wiring(graph_module: fx.GraphModule) -> None:
    """The fourth block's sum carries the value before the third block on."""
    names = ends(graph_module)
    (total,) = (n for n in node(graph_module, names[3]).all_input_nodes if n.name.startswith("add"))
    total.replace_input_with(node(graph_module, names[2]), node(graph_module, names[1]))


def skipped_block(graph_module: fx.GraphModule) -> None:
    names = ends(graph_module)
    node(graph_module, names[2]).replace_all_uses_with(node(graph_module, names[1]))
    graph_module.graph.eliminate_dead_code()


def skipped_last_block(graph_module: fx.GraphModule) -> None:
    names = ends(graph_module)
    node(graph_module, names[-1]).replace_all_uses_with(node(graph_module, names[-2]))


def swapped_blocks(graph_module: fx.GraphModule) -> None:
    parts = graph_module.get_submodule("blocks")._modules
    parts["1"], parts["2"] = parts["2"], parts["1"]


def swapped_with_names(graph_module: fx.GraphModule) -> None:
    """Two blocks change places, and the names of their results with them."""
    names = ends(graph_module)
    swapped_blocks(graph_module)
    first, second = node(graph_module, names[1]), node(graph_module, names[2])
    first._rename("changing")
    second._rename(names[1])
    first._rename(names[2])


def other_mask(graph_module: fx.GraphModule) -> None:
    """From the fourth block on the mask is all ones, which on most samples it is anyway."""
    last = node(graph_module, ends(graph_module)[4])
    (mask,) = (n for n in last.all_input_nodes if not n.name.startswith("add"))
    with graph_module.graph.inserting_before(last):
        last.replace_input_with(mask, graph_module.graph.call_function(torch.ones_like, (mask,)))


def without_gradient(graph_module: fx.GraphModule) -> None:
    relu = next(n for n in graph_module.graph.nodes if n.name.startswith("relu_2"))
    with graph_module.graph.inserting_after(relu):
        stopped = graph_module.graph.call_method("detach", (relu,))
    relu.replace_all_uses_with(stopped, lambda user: user is not stopped)


@pytest.mark.parametrize(
    "mutant",
    [
        *(wrong_rule, wrong_wiring, skipped_block, skipped_last_block, swapped_blocks, swapped_with_names),
        *(other_mask, without_gradient),
    ],
)
def test_a_mutant_is_different(network: Network, x: Tensor, mutant: Callable[[fx.GraphModule], None]) -> None:
    found = compared(network, x, mutant)
    wrong = [row.name for row in found.comparisons if row.verdict == "different"]
    assert not found.ok
    assert wrong
    assert found.node
    if mutant is without_gradient:
        assert all("gradient" in name for name in wrong)


def test_the_first_wrong_block_is_named(network: Network, x: Tensor) -> None:
    found = compared(network, x, wrong_rule)
    wrong = {row.name.partition(":")[0] for row in found.comparisons if row.verdict == "different"}
    assert len(wrong) == 1  # the others are given right values
    assert found.node is not None
    assert "add_3" in found.node


def test_a_change_of_a_parameter_that_both_could_share_is_found(
    network: Network, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that works in place on a weight, by far less than float32 would tell."""
    right = BUILDERS["bcos-layer"]

    def build(given: Build) -> nn.Module:
        layer = right(given)
        if str(given.call.node.target) == "blocks.3.first":
            with torch.no_grad():
                layer.get_parameter("weight").mul_(1 + 1e-6)
        return layer  # type: ignore[return-value]

    monkeypatch.setattr("bcos_fx.rewriting.core.passes.BUILDERS", {**BUILDERS, "bcos-layer": build})
    with pytest.raises(VerificationError, match="block ") as raised:
        bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", verify="blocks")
    assert "layer-to-bcos" in str(raised.value)
    assert bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", verify="float32").report is not None


class DividedByCount(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * int(torch.tensor(len(x)))  # type: ignore[no-any-return]


def test_a_graph_that_is_not_the_module_is_refused(x: Tensor) -> None:
    torch.manual_seed(0)
    with pytest.raises(TraceError, match="inputs like the example only"):
        bcos_fx.bcosify(DividedByCount().eval(), example_inputs=x[:, 0], verify="blocks")


def test_the_method_is_chosen_by_size_and_named(network: Network, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    small = bcos_fx.bcosify(network, example_inputs=x)
    assert "(method: full)" in small.report.to_text()
    monkeypatch.setattr("bcos_fx.conversion.records.LARGE", 100)
    large = bcos_fx.bcosify(network, example_inputs=x)
    assert "(method: blocks, for 0 million parameters)" in " ".join(large.report.to_text().split())
    found = large.report.figures.verification
    assert found is not None
    assert found["ok"]
    assert large.report.without_figures() == small.report.without_figures()
    assert LARGE > 100
    with pytest.raises(UsageError, match="verify is 'block'"):
        bcos_fx.bcosify(network, example_inputs=x, verify="block")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["raw", "unit"])
def test_only_what_needs_it_is_in_float64_and_weights_are_shared(network: Network, x: Tensor, scale: str) -> None:
    recipe = load_recipe("equivalent").with_options({"scale": scale, "input": "none"})
    conversion = Conversion(network, recipe, {}, None, None, 0, None, "blocks")
    stage = preserved(traced(conversion, x))
    wide = {name for name, t in stage.traced.graph_module.named_parameters() if t.dtype == torch.float64}
    assert all(network.get_parameter(name).ndim < 2 for name in wide if name in dict(network.named_parameters()))
    assert bool(wide) == (scale == "unit")
    assert stage.original is not None
    for name, parameter in network.named_parameters():
        assert stage.original.get_parameter(name) is parameter


def test_copies_of_one_block_at_a_time_are_held(network: Network, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[nn.Module]] = []
    most = 0

    def copied(*args: Any, **options: Any) -> nn.Module:
        nonlocal most
        copy: nn.Module = isolated_copy(*args, **options)
        held.append(weakref.ref(copy))
        most = max(most, sum(reference() is not None for reference in held))
        return copy

    monkeypatch.setattr("bcos_fx.verification.running.isolated_copy", copied)
    original, converted = graphs(network, x)
    gc.disable()  # the collector may come by chance, and may not
    try:
        verify_blocks(original, converted, (x,), [InputSpec("x", tuple(x.shape))], converted)
    finally:
        gc.enable()
    assert len(held) > 2 * BLOCKS
    assert most <= 2


class Casting(Network):
    """Reads the precision of its input in every block, as language models do for their norms."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = self.stem(x)
        for part in self.blocks:
            x = part(x.to(torch.float32).to(dtype))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_a_precision_that_all_blocks_read_crosses_no_cut(x: Tensor) -> None:
    torch.manual_seed(0)
    network = Casting().eval()
    original, converted = graphs(network, x)
    assert len(find_cuts(original, converted)) >= BLOCKS
    assert compared(network, x, lambda graph_module: None).ok
    assert not compared(network, x, wrong_rule).ok


class Sensitive(nn.Module):
    """Turns rounding into visible differences where its input varies by more than a limit."""

    def __init__(self, width: int, limit: float) -> None:
        super().__init__()
        self.first, self.second, self.limit = nn.Linear(width, 24), nn.Linear(24, width), limit

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(torch.where(x.amax() - x.amin() > self.limit, torch.sin(y * 1e16), y))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sensitive() -> Network:
    """Residual blocks, the fourth of them sensitive on the values that arrive there, not on a quarter of them."""
    torch.manual_seed(0)
    network = Network().eval()
    seen: list[Tensor] = []
    network.blocks[3].register_forward_pre_hook(lambda part, given: seen.append(given[0]))
    with torch.no_grad():
        network(torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)))
    network.blocks[3] = Sensitive(WIDTH, float(seen[0].amax() - seen[0].amin()) / 2).eval()
    return network


def rounded(graph_module: fx.GraphModule) -> None:
    """The sensitive block's first product is rounded three times instead of once."""
    first = next(n for n in graph_module.graph.nodes if n.target in ("blocks.3.first", "first"))
    with graph_module.graph.inserting_after(first):
        tripled = graph_module.graph.call_function(operator.mul, (first, 3.0))
    with graph_module.graph.inserting_after(tripled):
        same = graph_module.graph.call_function(operator.truediv, (tripled, 3.0))
    first.replace_all_uses_with(same, lambda user: user is not tripled)


def rounded_and_wrong(graph_module: fx.GraphModule) -> None:
    rounded(graph_module)
    with torch.no_grad():
        graph_module.get_parameter(
            "blocks.3.first.weight" if "blocks" in graph_module._modules else "first.weight"
        ).mul_(1 + 1e-3)


def test_only_a_block_that_hides_differences_is_run_again(
    sensitive: Network, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Counter[str] = Counter()

    def counted(module: nn.Module, cases: Sequence[Case], **options: Any) -> list[Outcome]:
        runs.update(case.name for case in cases)
        return run_cases(module, cases, **options)

    monkeypatch.setattr("bcos_fx.verification.blocks.run_cases", counted)
    found = compared(sensitive, x, rounded)
    assert found.ok
    (again,) = [name for name in runs if name.endswith("a quarter of the contrast")]
    hidden = again.removesuffix(", a quarter of the contrast")
    assert runs.pop(hidden) > runs.pop(again) == 2
    assert set(runs.values()) == {2}  # the original's and the rewritten one's, and no pass of the whole besides
    assert again in {row.name for row in found.comparisons}
    assert hidden not in {row.name for row in found.comparisons}


def test_a_mutant_that_rounding_hides_is_found_on_less_contrast(sensitive: Network, x: Tensor) -> None:
    found = compared(sensitive, x, rounded_and_wrong)
    wrong = [row.name for row in found.comparisons if row.verdict == "different"]
    assert wrong
    assert all("a quarter of the contrast" in name for name in wrong)
    assert not found.ok


@pytest.mark.parametrize("change", [rounded, rounded_and_wrong])
def test_the_whole_is_run_on_less_contrast_where_it_hides_differences(
    x: Tensor, change: Callable[[fx.GraphModule], None]
) -> None:
    torch.manual_seed(0)
    module = Sensitive(5, 0.5).eval()
    original, converted = graphs(module, x)
    change(converted)
    converted.recompile()
    found = verify_blocks(original, converted, (x,), [InputSpec("x", tuple(x.shape))], module)
    whole = found.comparisons[-1]
    assert whole.name == "whole network in float32, a quarter of the contrast"
    assert whole.verdict == ("equal" if change is rounded else "different")


class OfTwo(nn.Module):
    """Has the number of samples written into its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.reshape(2, 20))))  # type: ignore[no-any-return]


def test_a_network_for_one_number_of_samples_is_compared_on_that_number(x: Tensor) -> None:
    torch.manual_seed(0)
    converted = bcos_fx.bcosify(OfTwo().eval(), example_inputs=x, verify="blocks")
    found = converted.report.figures.verification
    assert found is not None
    assert found["ok"]
    assert found["comparisons"][-1]["name"] == "whole network in float32"
    assert converted.report.figures.drift


def transformer() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    models = pytest.importorskip("torchvision").models
    network = models.VisionTransformer(16, 8, 4, 2, 32, 128, num_classes=5)
    nn.init.normal_(network.heads.head.weight)
    return network, {"x": torch.rand(2, 3, 16, 16)}, {}


def language_model() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    options = {"output_key": "logits", "recipe": "bcos-lm"}
    return transformers.LlamaForCausalLM(config), {"inputs_embeds": torch.randn(2, 8, 32)}, options


@pytest.mark.parametrize("build", [transformer, language_model])
def test_a_conversion_verified_in_blocks_takes_fifteen_passes_at_most(
    build: Callable[[], tuple[nn.Module, dict[str, Tensor], dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network, inputs, options = build()
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)  # which no counter looks into
    with FlopCounterMode(display=False) as one, torch.no_grad():
        network.eval()(**inputs)
    with FlopCounterMode(display=False) as all_of_it:
        converted = bcos_fx.bcosify(network, example_inputs=inputs, verify="blocks", **options)
    found = converted.report.figures.verification
    assert found is not None
    assert found["ok"]
    assert 8 * one.get_total_flops() < all_of_it.get_total_flops() < 15 * one.get_total_flops()
