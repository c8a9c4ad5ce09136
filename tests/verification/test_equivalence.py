from __future__ import annotations

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bcos_fx.errors import UsageError
from bcos_fx.testing import randomise_
from bcos_fx.verification import verify
from tests.verification.subject import After, Before, Subject, made, some_photos, verdicts

DTYPES = [torch.float64, torch.float32]


@pytest.fixture
def subject() -> Subject:
    return made()


@pytest.fixture
def photos() -> Tensor:
    return some_photos()


def louder(network: Subject) -> Subject:
    """A copy that is wrong by a hundredth in one norm."""
    wrong = copy.deepcopy(network)
    wrong.norm.weight.data *= 1.01
    return wrong


@pytest.mark.parametrize("preserves", ["eval", "always"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_network_equals_itself(subject: Subject, photos: Tensor, dtype: torch.dtype, preserves: str) -> None:
    result = verify(subject, copy.deepcopy(subject), photos, dtype=dtype, preserves=preserves)
    assert result
    assert result.tested
    assert result.error == 0
    assert set(verdicts(result).values()) == {"equal"}
    names = {"eval, batch 1", "eval, batch 2", "eval, batch 5", "eval, sample 9"}
    names |= {"size 15x12", "size 13x10", "input gradient"}
    train = {"train, seed 0", "train, input gradient", "eval after train"}
    assert set(verdicts(result)) == (names | train if preserves == "always" else names)


def test_fused_norm_is_equal_in_eval_only(subject: Subject, photos: Tensor) -> None:
    original = subject.double()
    fused = copy.deepcopy(original)
    fused.first = fuse_conv_bn_eval(fused.first, fused.norm)
    fused.norm = nn.Identity()
    result = verify(original, fused, photos)
    assert result
    assert 0 < result.error < 1e-12
    assert not verify(original, fused, photos, preserves="always")
    assert verify(original, fused, photos, preserves="always", train=False)
    assert not verify(original, fused, photos, train=True)


def test_flat_pictures_do_not_break_gradients_at_ties(subject: Subject) -> None:
    """On a flat picture every max pool ties, and the smallest round-off moves the gradient elsewhere."""
    noise = torch.randn(3, 12, 10, dtype=torch.float64)
    rounded = Before(copy.deepcopy(subject), lambda x: x * (1 + 1e-15 * noise) if x.shape[2:] == noise.shape[1:] else x)
    pictures = torch.tensor([0.1, 0.2, 0.3, 0.7, 0.4, 0.9, 0.6, 0.5]).reshape(8, 1, 1, 1).repeat(1, 3, 12, 10)
    pictures[1:, :, 6:] = 0.25
    assert verify(subject, rounded, pictures)


def test_error_at_another_size_only(subject: Subject, photos: Tensor) -> None:
    class FixedSize(nn.Module):
        def __init__(self, network: Subject) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.network(x)
            return y * (x.shape[2] * x.shape[3] / 120)

    wrong = FixedSize(copy.deepcopy(subject))
    result = verify(subject, wrong, photos)
    assert {name for name, verdict in verdicts(result).items() if verdict == "different"} == {
        "size 15x12",
        "size 13x10",
    }
    assert verify(subject, wrong, photos, sizes=())
    assert verdicts(verify(subject, wrong, photos, sizes=[(20, 20)]))["size 20x20"] == "different"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_error_at_one_batch_size_only(subject: Subject, photos: Tensor, batch: int) -> None:
    wrong = After(copy.deepcopy(subject), lambda y: y * 1.001 if len(y) == batch else y)
    assert verdicts(verify(subject, wrong, photos))[f"eval, batch {batch}"] == "different"


def test_every_given_sample_counts(subject: Subject) -> None:
    """An error on one picture of many is found wherever it stands."""
    many = torch.rand(20, 3, 12, 10, generator=torch.Generator().manual_seed(5))
    marked = float(many[17].double().sum())
    wrong = Before(
        copy.deepcopy(subject),
        lambda x: x * (1 + 1e-3 * ((x.sum((1, 2, 3)) - marked).abs() < 1e-9))[:, None, None, None],
    )
    result = verify(subject, wrong, many, gradients=False, sizes=())
    assert [n for n, v in verdicts(result).items() if v == "different"] == ["eval, samples 14 to 18"]


def test_sizes_that_the_original_does_not_take_are_left_out() -> None:
    fixed = randomise_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)), 0)
    result = verify(fixed, copy.deepcopy(fixed), torch.rand(8, 3, 8, 8))
    assert result
    assert "size" not in " ".join(verdicts(result))
    assert "left out: size 10x10 (the original fails" in result.detail
    with pytest.raises(UsageError, match="cannot run"):
        verify(fixed, fixed, torch.rand(8, 3, 8, 8), sizes=[(9, 9)])


def test_other_sizes_of_large_images_are_smaller() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert {"size 84x72", "size 98x96"} <= set(verdicts(verify(network, network, torch.rand(2, 3, 112, 96))))
    assert {"size 20x118", "size 18x95"} <= set(verdicts(verify(network, network, torch.rand(2, 3, 16, 95))))


def test_refusing_another_size_is_no_fault_but_failing_is(subject: Subject, photos: Tensor) -> None:
    def guarded(error: Exception) -> nn.Module:
        def check(x: Tensor) -> Tensor:
            if x.shape[2] != 12:
                raise error
            return x

        return Before(copy.deepcopy(subject), check)

    result = verify(subject, guarded(UsageError("made for 12x10")), photos)
    assert result
    assert "refused: made for 12x10" in result.detail
    assert not verify(subject, guarded(RuntimeError("made for 12x10")), photos)
    assert not verify(subject, guarded(UsageError("made for 12x10")), photos, sizes=[(20, 20)])


def test_batch_sizes_that_the_original_does_not_take_are_left_out(subject: Subject, photos: Tensor) -> None:
    pairs = Before(subject, lambda x: x.reshape(2, 3, 12, 10))
    result = verify(pairs, copy.deepcopy(pairs), photos)
    assert result
    assert set(verdicts(result)) == {"eval, batch 2", "input gradient"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearly_constant_network_is_not_tested(subject: Subject, photos: Tensor, dtype: torch.dtype) -> None:
    constant = After(subject, lambda y: 1 + 1e-7 * y)
    result = verify(constant, copy.deepcopy(constant), photos, dtype=dtype, gradients=False)
    assert not result.ok
    assert not result.tested
    assert set(verdicts(result).values()) == {"not tested"}
    assert result.detail.startswith("not tested: ")
    other = After(copy.deepcopy(subject), lambda y: 2 - 1e-7 * y)
    assert set(verdicts(verify(constant, other, photos, dtype=dtype, gradients=False)).values()) == {"different"}


def test_error_hidden_in_a_constant_is_found(subject: Subject, photos: Tensor) -> None:
    """Judged by scale alone this error is 1e-10; a thousandth of all that varies."""
    original = After(subject, lambda y: 1e4 + y)
    wrong = After(copy.deepcopy(subject), lambda y: 1e4 + y + 1e-6 * y)
    result = verify(original, wrong, photos, gradients=False)
    assert result.tested
    assert not result
    row = result.comparisons[0]
    assert row.error / row.scale < 1e-9 < row.relative
    assert row.spread < row.scale / 100


def test_zero_output_is_not_tested(subject: Subject, photos: Tensor) -> None:
    dead = After(subject, lambda y: 0 * y)
    assert set(verdicts(verify(dead, copy.deepcopy(dead), photos, gradients=False)).values()) == {"not tested"}
    assert not verify(dead, subject, photos)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_equal_but_not_finite_is_not_tested(subject: Subject, photos: Tensor, value: float) -> None:
    broken = After(subject, lambda y: y.masked_fill(torch.arange(4) == 1, value))
    result = verify(broken, copy.deepcopy(broken), photos, gradients=False)
    assert set(verdicts(result).values()) == {"not tested"}
    assert not result
    other = After(copy.deepcopy(broken), lambda y: y * 1.01)
    assert set(verdicts(verify(broken, other, photos, gradients=False)).values()) == {"different"}


def test_nan_weights_are_never_equal(subject: Subject, photos: Tensor) -> None:
    subject.first.weight.data[0, 0, 0, 0] = math.nan
    assert not verify(subject, copy.deepcopy(subject), photos)


def test_train_mode_is_compared_from_the_same_seed(subject: Subject, photos: Tensor) -> None:
    other = copy.deepcopy(subject)
    other.drop.p = 0.3
    assert verify(subject, other, photos)
    result = verify(subject, other, photos, preserves="always")
    assert verdicts(result)["train, seed 0"] == "different"


def test_statistics_left_by_training_are_compared(subject: Subject, photos: Tensor) -> None:
    other = copy.deepcopy(subject)
    other.norm.momentum = 0.2
    result = verify(subject, other, photos, preserves="always")
    assert [n for n, v in verdicts(result).items() if v == "different"] == ["eval after train"]


def test_wrong_gradient_in_train_mode_only(subject: Subject, photos: Tensor) -> None:
    class Cut(Subject):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + (x.detach() - x) * 0.5 if self.training else x)

    other = Cut()
    other.load_state_dict(subject.state_dict())
    result = verify(subject, other, photos, preserves="always")
    assert [n for n, v in verdicts(result).items() if v == "different"] == ["train, input gradient"]


def test_transform_is_what_the_original_expects(subject: Subject, photos: Tensor) -> None:
    def standardize(x: Tensor) -> Tensor:
        return (x - 0.4) / 0.2

    converted = Before(copy.deepcopy(subject), standardize)
    assert not verify(subject, converted, photos)
    assert verify(subject, converted, photos, transform=standardize)
    converted.original_input = standardize  # type: ignore[assignment]
    assert verify(subject, converted, photos)
    assert not verify(subject, converted, photos, transform=lambda x: (x - 0.4) / 0.21)


def test_nested_outputs_are_compared_by_place(subject: Subject, photos: Tensor) -> None:
    original = After(subject, lambda y: {"a": y, "b": [y * 2, None]})
    assert verify(original, copy.deepcopy(original), photos)
    assert not verify(original, After(subject, lambda y: {"a": y * 2, "b": [y, None]}), photos)
    assert not verify(original, After(subject, lambda y: {"a": y}), photos)
    assert not verify(original, After(subject, lambda y: {"a": y, "b": [y * 2, y]}), photos)


class TokensAndScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)).mean(1) * scale)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_several_inputs_positional_and_by_name(count: int) -> None:
    original = randomise_(TokensAndScale(), 0)
    wrong = copy.deepcopy(original)
    wrong.embedding.weight.data[:3] *= 1.01
    tokens, scale = torch.arange(count * 5).reshape(count, 5) % 7, torch.rand(count, 6)
    for inputs in ((tokens, scale), [tokens, scale], {"scale": scale, "tokens": tokens}):
        assert verify(original, copy.deepcopy(original), inputs)
        assert not verify(original, wrong, inputs)


def test_outputs_and_gradients_come_from_one_run(subject: Subject, photos: Tensor) -> None:
    """Passes are what a proof costs: each batch of the nine samples goes through each network once."""
    runs: list[int] = []
    counting = Before(subject, lambda x: (runs.append(len(x)), x)[1])
    result = verify(counting, copy.deepcopy(counting), photos, sizes=(), train=False)
    assert runs == 2 * [1, 2, 5, 1]
    assert len(result.comparisons) == 5


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise RuntimeError("no way back")


def test_outputs_are_compared_where_the_way_back_fails(subject: Subject, photos: Tensor) -> None:
    blocked = After(subject, NoWayBack.apply)
    outputs = {"eval, batch 1", "eval, batch 2", "eval, batch 5", "eval, sample 9"}
    for original, converted, verdict, who in (
        (blocked, blocked, "not tested", "the original fails"),
        (subject, blocked, "different", "the converted network fails"),
    ):
        result = verify(original, copy.deepcopy(converted), photos, sizes=(), train=False)
        assert verdicts(result) == {name: "equal" for name in outputs} | {"input gradient": verdict}
        assert f"input gradient ({who}: no way back)" in result.detail


def test_integer_inputs_alone_have_no_gradient() -> None:
    original = randomise_(nn.Sequential(nn.Embedding(7, 6), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)), 0)
    result = verify(original, copy.deepcopy(original), torch.arange(20).reshape(4, 5) % 7)
    assert result
    assert "input gradient" not in verdicts(result)


def test_in_place_networks_are_run_on_a_copy_of_the_inputs(subject: Subject, photos: Tensor) -> None:
    spoiler = Before(subject, lambda x: x.mul_(2).sub_(0.5))
    before = photos.clone()
    assert verify(spoiler, copy.deepcopy(spoiler), photos)
    assert torch.equal(photos, before)


def test_nothing_of_the_callers_is_changed(subject: Subject, photos: Tensor) -> None:
    converted = copy.deepcopy(subject)
    converted.first.weight = subject.first.weight  # shared with the original, as rewrites leave it
    subject.train()
    subject.norm.eval()
    subject.head.weight.requires_grad_(False)
    subject(photos).sum().backward()
    photos.requires_grad_()
    networks = (subject, converted)

    def state() -> list[object]:
        tensors = [t for n in networks for t in (*n.state_dict().values(), *(p.grad for p in n.parameters()))]
        flags = [(m.training, sorted(vars(m))) for n in networks for m in n.modules()]
        wants = [p.requires_grad for n in networks for p in n.parameters()]
        numbers = [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]
        copies = [None if t is None else t.tolist() for t in (*tensors, photos)]
        return [copies, flags, wants, numbers, photos.grad, torch.is_grad_enabled(), torch.get_default_dtype()]

    random.random(), np.random.rand(), torch.rand(1)
    before = state()
    verify(subject, converted, photos, preserves="always")
    assert state() == before


def test_random_numbers_of_python_and_numpy_are_seeded(subject: Subject, photos: Tensor) -> None:
    noisy = After(subject, lambda y: y + random.random() + np.random.rand())
    result = verify(noisy, copy.deepcopy(noisy), photos)
    assert result
    random.seed(7), np.random.seed(7)
    assert verify(noisy, copy.deepcopy(noisy), photos) == result


def test_the_callers_surroundings_do_not_matter(subject: Subject, photos: Tensor) -> None:
    wrong = Before(copy.deepcopy(subject), lambda x: x + (x.detach() - x) * 0.5)
    with torch.inference_mode():
        assert not verify(subject, wrong, photos.clone())
        assert verify(subject, copy.deepcopy(subject), photos.clone())
    with torch.no_grad():
        assert not verify(subject, wrong, photos)
    plain = verify(subject, wrong, photos, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert verify(subject, wrong, photos, dtype=torch.float32) == plain


@pytest.mark.parametrize("what", ["itself", "parameter", "buffer", "attribute"])
def test_shared_tensors_are_refused(subject: Subject, photos: Tensor, what: str) -> None:
    class Sharing(Subject):
        def __deepcopy__(self, memo: dict[int, object]) -> Subject:
            if what == "itself":
                return self
            twin = copy.deepcopy(subject)
            if what == "parameter":
                twin.first.weight.data = self.first.weight.data
            elif what == "buffer":
                twin.norm.running_mean = self.norm.running_mean
            else:
                twin.remembered = self.head.weight.detach()
            return twin

    sharing = Sharing()
    sharing.load_state_dict(subject.state_dict())
    for pair in ((subject, sharing), (sharing, subject)):
        with pytest.raises(UsageError, match="shares tensors"):
            verify(*pair, photos)


def test_blame_names_the_node(subject: Subject, photos: Tensor) -> None:
    original, converted = fx.symbolic_trace(subject), fx.symbolic_trace(louder(subject))
    result = verify(original, converted, photos)
    assert result.node == "norm"
    assert "first differs at node 'norm'" in result.detail
    assert verify(original, copy.deepcopy(original), photos).node is None
    changing = [fx.symbolic_trace(Before(net, lambda x: x.mul_(2))) for net in (subject, louder(subject))]
    assert verify(*changing, photos.double()).node == "network_norm"


def test_report_is_plain_json(subject: Subject, photos: Tensor) -> None:
    report = verify(subject, After(copy.deepcopy(subject), lambda y: y * math.inf), photos).to_dict()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["dtype"] == "float64"
    assert report["comparisons"][0]["error"] is None
    assert list(report) == ["ok", "tested", "error", "tolerance", "dtype", "comparisons", "node", "detail", "method"]


def test_same_seed_same_result(subject: Subject) -> None:
    first, second, other = (verify(subject, louder(subject), seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert first != other
