"""What a trace says besides the graph, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import operator
import pickle
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bcos_fx.errors import TraceError, UsageError
from bcos_fx.tracing import copy_into, fill, set_item, trace
from bcos_fx.tracing.program import compile_graph


class Forward(nn.Module):
    """A module whose forward is given."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


def _if_positive(m: nn.Module, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


READS = {
    "branch": _if_positive,
    "item": lambda m, x: x * x.max().item(),
    "int": lambda m, x: x[: int(x[0, 0, 0, 0])],
    "tolist": lambda m, x: x + x.sum((1, 2, 3)).tolist()[0],
    "equal": lambda m, x: x if torch.equal(x, x + 1) else -x,
    "chance": lambda m, x: x if torch.rand(1) > 2 else -x,
}


@pytest.mark.parametrize("name", READS)
def test_reading_values_is_refused_with_the_line(name: str) -> None:
    with pytest.raises(TraceError, match=r"test_trace\.py:\d+: ") as caught:
        trace(Forward(READS[name]), X)
    assert caught.value.hint


def test_the_line_of_the_branch_is_named() -> None:
    with pytest.raises(TraceError, match=r"if x\.sum\(\) > 0:"):
        trace(Forward(_if_positive), X)


def test_parameters_and_constants_may_be_read() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x * float(torch.linspace(0, 1, 3)[1]) if m.conv.weight.shape[0] == 4 else x

    assert trace(Forward(forward), X).guards == ()


def test_guards() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if x.shape[2] > 7:
            x = x * 2
        for row in x:
            x = x + row.sum()
        return x.reshape(len(x), int(x.numel() / x.shape[0] ** 1.0))

    guards = trace(Forward(forward), X).guards
    assert [(guard.kind, guard.value) for guard in guards] == [("bool", True), ("iter", 2), ("int", 192.0)]
    assert guards[0].source.endswith(": if x.shape[2] > 7:")
    assert guards[0].source.startswith("test_trace.py:")


def test_asserts_stay_in_the_graph() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 3, "three channels")
        return x * 2

    traced = trace(Forward(forward), X)
    assert traced.guards == ()
    with pytest.raises(AssertionError, match="three channels"):
        traced.graph_module(torch.rand(1, 4, 2, 2))


@dataclass
class Result:
    logits: Tensor
    count: int


@pytest.mark.parametrize(
    ("function", "output"),
    [
        (lambda m, x: (x + 1, x * 2), 1),
        (lambda m, x: [x, x * 2], 1),
        (lambda m, x: {"a": x, "logits": x * 2}, "logits"),
        (lambda m, x: Result(x * 2, 3), "logits"),
    ],
)
def test_an_output_is_chosen(function: Callable[..., Any], output: int | str) -> None:
    assert torch.equal(trace(Forward(function), X, output=output).graph_module(X), X * 2)
    with pytest.raises(UsageError, match=r"returns a \w+ with .*" + str(output)) as caught:
        trace(Forward(function), X)
    assert "output_key=" in str(caught.value.hint)


def test_bad_outputs() -> None:
    with pytest.raises(UsageError, match="has no 'wrong'"):
        trace(Forward(lambda m, x: {"a": x}), X, output="wrong")
    with pytest.raises(UsageError, match="is a int, not a tensor"):
        trace(Forward(lambda m, x: Result(x, 3)), X, output="count")
    with pytest.raises(UsageError, match="returns one tensor"):
        trace(Forward(lambda m, x: x), X, output=0)
    with pytest.raises(TraceError, match="does not depend on any input"):
        trace(Forward(lambda m, x: m.conv.weight * 2), X)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((X, X), "do not fit"),
        ({"image": X}, "do not fit"),
        ("text", "is a str"),
        (X.to("meta"), "on the meta device"),
        (X.to_sparse(), "is sparse"),
        (X + 0j, "is complex"),
        ([[X]], "a list of tensors"),
        (((X, X),), "holds tensors in a tuple"),
        ((X * 100).byte(), "does not run"),
        (X[:, :2], "does not run"),
    ],
)
def test_bad_inputs(example: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        trace(Forward(lambda m, x: m.conv(x)), example)
    assert caught.value.hint
    if message == "does not run":
        assert "test_trace.py" in str(caught.value.where)
        assert str(tuple(example.shape)) in str(caught.value.where)


def test_integers_are_told_to_become_floats() -> None:
    with pytest.raises(UsageError, match="floating point"):
        trace(Forward(lambda m, x: m.conv(x)), (X * 100).byte())


def test_no_tensor_input() -> None:
    with pytest.raises(TraceError, match="no input"):
        trace(Forward(lambda m, x: m.conv.weight * x), (3,))


def test_lazy_layers_must_be_initialised() -> None:
    with pytest.raises(UsageError, match="not initialized"):
        trace(nn.Sequential(nn.LazyConv2d(4, 3)), X)


def test_devices_are_named() -> None:
    module = Forward(lambda m, x: m.conv(x))
    module.conv.to("meta")
    with pytest.raises(UsageError, match="meta device"):
        trace(module, X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_script_modules_are_refused() -> None:
    module = nn.Sequential(torch.jit.script(nn.ReLU()))
    with pytest.raises(TraceError, match="TorchScript"):
        trace(module, X)


def _foreign_parameter(m: Any, x: Tensor) -> Tensor:
    return nn.LayerNorm(8)(x)


def _partial_alias(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    first, _ = y.split(4, dim=2)
    first.mul_(2)
    return y


def _stateful(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return x * m.count


def _hidden_write(m: Any, x: Tensor) -> Tensor:
    table = torch.zeros(2, 8)
    row = table[0]
    row.copy_(x[0, 0, 0])
    return x + table.sum()


REFUSED = {
    "made at each call": _foreign_parameter,
    "changed in place": _partial_alias,
    "changes 'count'": _stateful,
    "shares memory": _hidden_write,
    "'uniform_' has no known": lambda m, x: x + torch.empty_like(x).uniform_(),
    "in place": lambda m, x: torch.add(x, x, out=torch.empty_like(x)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_no_graph_can_hold_is_refused_with_the_line(message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        trace(Forward(REFUSED[message]), X)
    assert "test_trace.py" in str(caught.value.where)


def test_a_buffer_that_only_counts_is_allowed() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.count.add_(1)
        return m.conv(x)

    module = Forward(forward)
    trace(module, X)
    assert module.count == 0


def test_a_leaf_that_counts_starts_where_it_was() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * 2

    assert trace(nn.Sequential(Counter()), X, leaf_modules=(Counter,)).graph_module.get_buffer("0.count") == 0


def test_random_generators_are_put_back() -> None:
    module = Forward(lambda m, x: x * random.random() + torch.rand_like(x) if m.training else x)
    state = random.getstate(), torch.get_rng_state()
    trace(module, X)
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])


def test_functional_dropout_follows_the_mode() -> None:
    traced = trace(Forward(lambda m, x: torch.dropout(F.dropout(x, 0.3, m.training), 0.2, m.training) * 2), X)
    marks = [n.meta["training_argument"] for n in traced.graph_module.graph.nodes if "training_argument" in n.meta]
    assert marks == ["training", 2]
    assert traced.train_difference is None


def test_functional_batch_norm_follows_the_mode() -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.num_batches_tracked.add_(1)
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)

    module = Norm(3)
    traced = trace(module, X)
    assert traced.train_difference is None
    assert [n.meta.get("training_argument") for n in traced.graph_module.graph.nodes][-2] == "training"
    assert torch.equal(module.running_mean, torch.zeros(3))
    assert torch.equal(traced.graph_module.running_mean, torch.zeros(3))


def test_a_structural_train_difference_names_the_line() -> None:
    def drop_path(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        if m.training:
            y = y * torch.rand(x.shape[0], 1, 1, 1)
        return F.relu(y)

    difference = trace(Forward(drop_path), X).train_difference
    assert difference is not None
    assert "torch.rand(x.shape[0], 1, 1, 1)" in difference


def test_a_changed_literal_is_a_train_difference() -> None:
    traced = trace(Forward(lambda m, x: F.leaky_relu(x, 0.2 if m.training else 0.1)), X)
    assert "leaky_relu differ in train mode" in str(traced.train_difference)
    assert trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)), X).train_difference is None


def test_a_train_mode_that_fails_is_reported() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    assert "Expected more than 1 value" in str(trace(module, X[:1]).train_difference)


def test_meta_of_every_node() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x)).view(x.size(0), -1)

    traced = trace(nn.Sequential(Block()), X)
    nodes = {node.name: node for node in traced.graph_module.graph.nodes}
    keys = {"source", "text", "module_path", "module_type", "shape", "dtype", "value", "origin", "type"}
    assert all(keys <= node.meta.keys() for node in nodes.values())
    meta = nodes["relu"].meta
    assert (meta["module_path"], meta["module_type"], meta["shape"]) == ("0", "Block", (2, 4, 6, 6))
    assert (meta["dtype"], meta["type"], meta["value"]) == (torch.float32, "tensor", None)
    assert meta["text"] == "return F.relu(self.conv(x)).view(x.size(0), -1)"
    assert meta["source"].startswith("test_trace.py:")
    assert meta["source"].endswith(meta["text"])
    assert (nodes["size"].meta["value"], nodes["size"].meta["type"]) == (2, "size")
    assert nodes["_0_conv"].meta["module_path"] == "0"
    assert pickle.loads(pickle.dumps(copy.deepcopy(meta))) == meta
    assert traced.input_names == ("input",)


def test_constants_become_buffers_that_move() -> None:
    graph_module = trace(Forward(lambda m, x: x * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)), X).graph_module
    assert [name for name, _ in graph_module.named_buffers()] == ["constant_0"]
    assert graph_module.double()(X.double()).dtype == torch.float64


def test_devices_read_from_tensors_stay_symbolic() -> None:
    graph_module = trace(Forward(lambda m, x: x + torch.ones(x.shape[3], device=x.device)), X).graph_module
    assert graph_module.to("meta")(X.to("meta")).is_meta


def test_leaf_modules() -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 1e9 else -x

    traced = trace(nn.Sequential(Whole()), X, leaf_modules=(Whole,))
    assert [node.op for node in traced.graph_module.graph.nodes] == ["placeholder", "call_module", "output"]


def test_optional_arguments_have_their_defaults() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
            return x * scale if mask is None else x * mask

    assert trace(Masked(), X).input_names == ("x",)
    assert trace(Masked(), {"mask": X, "x": X}).input_names == ("x", "mask")
    assert torch.equal(trace(Masked(), {"x": X, "scale": 3.0}).graph_module(X), X * 3)


def test_an_exception_leaves_no_trace() -> None:
    module = Forward(_if_positive)
    call, attribute = nn.Module.__call__, nn.Module.__getattr__
    attributes = set(vars(module)), set(vars(module.conv))
    with pytest.raises(TraceError):
        trace(module, X)
    assert (nn.Module.__call__, nn.Module.__getattr__) == (call, attribute)
    assert (set(vars(module)), set(vars(module.conv))) == attributes
    assert torch.overrides._get_current_function_mode_stack() == []
    assert isinstance(X.shape[0], int)


def test_two_threads_at_once() -> None:
    results: dict[int, Tensor] = {}

    def work(seed: int) -> None:
        module = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(8)])
        results[seed] = (trace(module, X).graph_module(X) - module(X)).detach()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [float(result.abs().max()) for result in results.values()] == [0.0] * 4


def test_unused_parameters_of_auxiliary_heads() -> None:
    models = pytest.importorskip("torchvision.models")
    traced = trace(models.googlenet(weights=None, init_weights=False), torch.rand(2, 3, 64, 64))
    assert {name.split(".")[0] for name in traced.unused} == {"aux1", "aux2"}
    assert "GoogLeNetOutputs" in str(traced.train_difference)


def test_swin_guards_its_windows() -> None:
    models = pytest.importorskip("torchvision.models")
    traced = trace(models.swin_v2_t(weights=None), torch.rand(2, 3, 64, 64))
    assert {guard.kind for guard in traced.guards} == {"bool"}
    assert any("window_size[0] >= pad_H" in guard.source for guard in traced.guards)


def test_functional_forms() -> None:
    x = torch.zeros(2, 3)
    assert torch.equal(set_item(x, (slice(None), 0), 5), torch.tensor([[5.0, 0, 0], [5, 0, 0]]))
    assert torch.equal(copy_into(x, torch.arange(3)), torch.tensor([[0.0, 1, 2], [0, 1, 2]]))
    assert torch.equal(fill(x, 4), torch.full((2, 3), 4.0))
    assert torch.equal(x, torch.zeros(2, 3))


def test_a_graph_is_compiled_when_it_runs_and_not_at_every_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    graph_module = trace(Forward(lambda m, x: x + 1), X).graph_module
    made: list[fx.Graph] = []

    def counted(graph: fx.Graph) -> Callable[..., Any]:
        made.append(graph)
        return compile_graph(graph)

    monkeypatch.setattr("bcos_fx.tracing.graph_module.compile_graph", counted)
    (add,) = (node for node in graph_module.graph.nodes if node.target is operator.add)
    for number in (2, 3):
        add.args = (add.args[0], number)
        graph_module.recompile()
    assert not made
    twin = copy.deepcopy(graph_module)
    for _ in range(2):
        assert torch.equal(graph_module(X), X + 3)
        assert torch.equal(twin(x=X), X + 3)
    assert made == [graph_module.graph, twin.graph]
