"""Zero-shot classification, linear probes, Text2Concept: against plain computations, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import accuracy, dynamic_linear, fair, gridpg
from bcos_fx.evaluation.clip_benchmark import rates, record
from bcos_fx.evaluation.concept_map import text2concept
from bcos_fx.evaluation.probing import Embedded, linear_probe
from bcos_fx.methods.zero_shot import ZeroShot
from bcos_fx.text import TextEmbeddings
from tests.evaluation import toy


@pytest.fixture(scope="module")
def classifier() -> ZeroShot:
    network = toy.embedder()
    return ZeroShot(network, toy.texts_of_colours(network)).eval()


def test_outputs_are_cosines(classifier: ZeroShot) -> None:
    images = torch.rand(3, 3, 8, 8)
    embeddings = classifier.tower(images).detach()
    slow = [[float(nn.functional.cosine_similarity(z, t, dim=0)) for t in classifier.texts.vectors] for z in embeddings]
    torch.testing.assert_close(classifier(images).detach(), 100 * torch.tensor(slow))
    assert classifier.input_shape == (3, 8, 8)


def test_contributions_are_those_of_the_cosines(classifier: ZeroShot) -> None:
    images, targets = torch.rand(3, 3, 8, 8), torch.tensor([[0, 3], [1, 2], [5, 0]])
    maps = dynamic_linear(classifier).maps(images, targets)
    assert maps.shape == (3, 2, 8, 8)
    for n in range(3):
        e = bcos_fx.explain(classifier.tower, images[n : n + 1], classifier.likeness)
        torch.testing.assert_close(maps[n], 100 * e.contributions[0, targets[n]])


def test_it_is_measured_as_any_classifier_is(classifier: ZeroShot) -> None:
    pytest.importorskip("torchmetrics")
    data = toy.images(60)
    found = accuracy(classifier, data)
    slow = sum(int(classifier(x.unsqueeze(0)).argmax()) == int(y) for x, y in data) / 60
    assert found.top1 == pytest.approx(slow)
    assert slow > 0.9
    played = gridpg(classifier, data, protocol=fair(side=2, smooth=1))
    assert played.mean > 0.4  # by chance a quarter


def test_rates_are_those_of_clip_benchmark() -> None:
    labels, predicted = [0, 0, 0, 1, 2], [0, 0, 1, 1, 0]
    found = rates(labels, predicted, [True] * 4 + [False], classes=6)
    assert found == {"acc1": 3 / 5, "acc5": 4 / 5, "mean_per_class_recall": pytest.approx((2 / 3 + 1 + 0) / 3)}
    assert rates(labels, predicted, [True] * 5, classes=3)["acc5"] is None
    assert rates(labels, predicted, [True] * 5, classes=3)["mean_per_class_recall"] == pytest.approx(
        _balanced(labels, predicted)
    )
    made = record("zeroshot_classification", found, dataset="d", model="m", pretrained="p")
    assert list(made) == ["dataset", "model", "pretrained", "task", "metrics", "language"]


def _balanced(labels: list[int], predicted: list[int]) -> float:
    sklearn = pytest.importorskip("sklearn.metrics")
    return float(sklearn.balanced_accuracy_score(labels, predicted))


# ---------------------------------------------------------------- linear probe


def clusters(count: int, seed: int, noise: float = 0.3) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 6
    centres = torch.randn(6, 10, generator=torch.Generator().manual_seed(99)).double()
    features = centres[labels] + noise * torch.randn(count, 10, generator=generator).double()
    return Embedded(nn.functional.normalize(features, dim=1), labels, {})


def test_a_probe_is_the_minimum_of_what_it_says() -> None:
    """The gradient of mean cross-entropy + weight_decay/2 ‖W‖² vanishes where the solver stops."""
    pytest.importorskip("sklearn")
    from bcos_fx.evaluation.probing import _fitted

    train = clusters(120, 0)
    fitted, converged = _fitted(train.features.numpy(), train.labels.numpy(), 1e-2)
    assert converged
    weight, bias = (torch.tensor(values, requires_grad=True) for values in (fitted.coef_, fitted.intercept_))
    loss = nn.functional.cross_entropy(train.features @ weight.T + bias, train.labels)
    (loss + 1e-2 / 2 * weight.square().sum()).backward()
    assert float(weight.grad.abs().max()) < 1e-4  # type: ignore[union-attr]


def test_a_probe_tells_clusters_apart_and_sweeps() -> None:
    pytest.importorskip("sklearn")
    found = linear_probe(clusters(180, 0), clusters(90, 1))
    assert found.metrics["acc1"] > 0.9  # type: ignore[operator]
    assert found.metrics["acc5"] >= found.metrics["acc1"]  # type: ignore[operator]
    assert found.weight_decay in found.sweep
    assert found.sweep[found.weight_decay] == max(found.sweep.values())
    assert len(found.sweep) > 9  # the halves beside the best
    assert (found.train_images, found.images) == (180, 90)
    again = linear_probe(clusters(180, 0), clusters(90, 1))
    assert again == found
    json.dumps(found.to_dict())


def test_a_probe_of_noise_is_at_chance() -> None:
    pytest.importorskip("sklearn")
    noise = clusters(240, 0)
    shuffled = Embedded(noise.features, noise.labels[torch.randperm(240)], {})
    found = linear_probe(shuffled, clusters(120, 1), weight_decays=(1e-2, 1.0))
    assert found.metrics["acc1"] < 0.5  # type: ignore[operator]


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (clusters(1, 0), clusters(6, 1), "cannot be fitted"),
        (clusters(6, 0), clusters(6, 1), "cannot be fitted to 6 images of 6 classes"),
        (Embedded(torch.rand(12, 4), torch.arange(12) % 6, {}), clusters(6, 1), "4 numbers were trained on, 10"),
        (Embedded(torch.rand(8, 10), torch.arange(8) % 2, {}), clusters(6, 1), "class 2 is tested and was not trained"),
    ],
)
def test_probes_that_cannot_be_fitted(train: Embedded, test: Embedded, said: str) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(UsageError, match=said):
        linear_probe(train, test)


# ---------------------------------------------------------------- Text2Concept


def test_text2concept_is_least_squares() -> None:
    features, embeddings = torch.randn(50, 8).double(), torch.randn(50, 3).double()
    layer = text2concept(features, embeddings).double()
    assert layer.bias is None
    left = embeddings - layer(features)
    # what is left over is at right angles to every feature
    torch.testing.assert_close(features.T @ left, torch.zeros(8, 3).double(), atol=1e-3, rtol=0)


def test_text2concept_finds_a_linear_relation_and_takes_dependent_features() -> None:
    features = torch.randn(40, 4)
    wide = torch.cat([features, 2 * features], dim=1)  # no unique solution
    embeddings = features @ torch.randn(4, 6)
    layer = text2concept(wide, embeddings)
    torch.testing.assert_close(layer(wide), embeddings, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("features", "embeddings"),
    [
        (torch.rand(3, 2), torch.rand(4, 2)),
        (torch.rand(0, 2), torch.rand(0, 2)),
        (torch.rand(3), torch.rand(3, 2)),
        (torch.full((3, 2), float("nan")), torch.rand(3, 2)),
    ],
)
def test_text2concept_refuses(features: Tensor, embeddings: Tensor) -> None:
    with pytest.raises(UsageError):
        text2concept(features, embeddings)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    network = toy.write_embedder(tmp_path / "clip.safetensors")
    toy.texts_of_colours(network).save(tmp_path / "texts.safetensors")
    toy.write_images(tmp_path / "train.npz", 60)
    toy.write_images(tmp_path / "test.npz", 36)
    return tmp_path


def run(*words: str) -> Any:
    from typer.testing import CliRunner

    from bcos_fx.cli import app

    return CliRunner().invoke(app, ["evaluate", "clip.safetensors", "--data", "test.npz", *words], prog_name="bcos-fx")


def test_zero_shot_on_the_command_line(files: Path) -> None:
    pytest.importorskip("torchmetrics")
    done = run("--metric", "zeroshot,gridpg", "--grid", "2x2", "--text-embeddings", "texts.safetensors", "-o", "out")
    assert done.exit_code == 0, done.output
    made = json.loads((files / "out" / "clip_benchmark.json").read_text())
    assert made["task"] == "zeroshot_classification"
    assert made["dataset"] == "test"
    assert made["pretrained"] == "bcos-fx equivalent"
    results = json.loads((files / "out" / "results.json").read_text())
    assert made["metrics"]["acc1"] == pytest.approx(results["accuracy"]["top1"])
    assert results["gridpg"][0]["mean"] > 0.3


def test_a_linear_probe_on_the_command_line(files: Path) -> None:
    pytest.importorskip("sklearn")
    done = run("--metric", "linear-probe", "--train-data", "train.npz", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "linear probe on 36 images: acc1" in done.stdout
    made = json.loads((files / "out" / "clip_benchmark.json").read_text())
    assert made["task"] == "linear_probe"
    assert set(made["metrics"]) == {"lp_acc1", "lp_acc5", "lp_mean_per_class_recall", "weight_decay"}
    assert made["metrics"]["lp_acc1"] > 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--metric", "zeroshot"), "needs class names"),
        (("--metric", "zeroshot", "--classes", "empty.txt", "--text-tower", "minilm"), "no class names"),
        (("--metric", "linear-probe"), "name them with --train-data"),
        (("--metric", "linear-probe,accuracy", "--train-data", "train.npz"), "ask for it alone"),
        (("--metric", "zeroshot", "--text-embeddings", "wide.safetensors"), "have 7 numbers"),
        (("--metric", "zeroshot", "--text-embeddings", "few.safetensors"), "is not one of the network's 2 classes"),
    ],
)
def test_what_cannot_be_evaluated(files: Path, words: tuple[str, ...], said: str) -> None:
    pytest.importorskip("torchmetrics")
    (files / "empty.txt").write_text("")
    TextEmbeddings(("a", "b"), torch.ones(2, 7), "made-up").save(files / "wide.safetensors")
    TextEmbeddings(("a", "b"), torch.ones(2, toy.WIDTH), "made-up").save(files / "few.safetensors")
    done = run(*words, "-o", "out")
    assert done.exit_code == 2, done.output
    assert said in done.stderr
