"""finetune() as a whole: what it does, leaves behind and refuses."""

from __future__ import annotations

import copy
import csv
import errno
import io
import os
import re
import shutil
import signal
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bcos_fx
from bcos_fx.calibration import calibrate_
from bcos_fx.errors import TrainingError, UsageError
from bcos_fx.nn import BatchNormUncentred2d, BcosLayer
from bcos_fx.training.calibrating import usual_calibration
from bcos_fx.training.finetune import finetune
from bcos_fx.training.recipe import Training
from bcos_fx.training.schedulable_layers import constants_of
from bcos_fx.training.schedule import BiasDecay, BSchedule, Course
from bcos_fx.training.settings import RunSettings
from tests.training.small_runs import (
    CLASSES,
    converted,
    full_run,
    images,
    original,
    plain,
    training,
)

pytestmark = pytest.mark.vision


def photographs(folder: Path, classes: int = CLASSES, each: int = 4, size: int = 8) -> Path:
    pixels, labels = images(classes * each)
    for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / f"class_{int(label) % classes}"
        place.mkdir(parents=True, exist_ok=True)
        array = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(array).resize((size, size)).save(place / f"{number}.png")
    return folder


def archive(path: Path, count: int = 12) -> Path:
    pixels, labels = images(count)
    files = []
    for picture in pixels:
        stream = io.BytesIO()
        Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(stream, "JPEG")
        files.append(stream.getvalue())
    np.savez(
        path,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=labels.numpy().astype(np.uint8),
        classes=np.array([f"class_{i}" for i in range(CLASSES)]),
    )
    return path


def test_a_run_leaves_history_gallery_logs_and_a_network_without_biases(tmp_path: Path) -> None:
    told: list[str] = []
    found = finetune(
        converted(),
        images(),
        recipe=training(),
        validation=images(12),
        run=RunSettings(
            folder=tmp_path / "run",
            loggers=("csv", "tensorboard"),
            measures={"always_three": lambda network: 3.0 if not network.training else 0.0},
            measure_every=2,
            on_epoch=lambda row: told.append(str(row)),
        ),
    )
    rows = found.history
    assert [row.epoch for row in rows] == [0, 1, 2, 3]
    assert [row.images for row in rows] == [0, 24, 48, 72]
    assert rows[0].loss is None
    assert rows[0].b == 1.0
    assert rows[-1].b > 1.6  # the first layer's is learned
    assert rows[-1].bias_share == 0
    assert rows[1].bias_share is not None
    assert rows[1].bias_share > 0
    assert all(row.residual is not None and row.residual < 1e-4 for row in rows)
    assert [dict(row.measures) for row in rows] == [
        {"always_three": 3.0},
        {},
        {"always_three": 3.0},
        {"always_three": 3.0},
    ]
    assert len(told) == 4
    assert "B 1, bias share" in told[0]
    with (tmp_path / "run" / "history.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [float(line["accuracy"]) for line in lines] == [row.accuracy for row in rows]
    pages = sorted((tmp_path / "run" / "gallery").iterdir())
    assert [page.name for page in pages] == [f"epoch_{i:04d}.html" for i in range(4)]
    assert list((tmp_path / "run" / "logs").rglob("metrics.csv"))
    assert list((tmp_path / "run" / "logs").rglob("events.out.*"))
    assert not found.network.training
    assert all(m.bias is None for m in found.network.modules() if isinstance(m, BcosLayer))
    assert "layer-bias-stripped" in found.network.report.rules
    assert any("fine-tuned for 3 epochs" in note for note in found.network.report.notes)
    assert "equal, worst relative error" in repr(found.network.report)
    assert "its weights were trained since" in repr(found.network.report)
    assert "no longer the original" in repr(found.network.report)
    assert "What next" not in found.network.report.to_text()
    bcos_fx.save(found.network, tmp_path / "out.safetensors")
    again = bcos_fx.load(tmp_path / "out.safetensors")
    assert torch.equal(again(images()[0]), found.network(images()[0]))
    assert bcos_fx.certify(again, images()[0]).ok


def test_training_teaches() -> None:
    found = finetune(converted(), images(60), recipe=plain(epochs=12, lr=0.02), validation=images(30))
    assert found.history[-1].accuracy is not None
    assert found.history[-1].accuracy > 0.9
    losses = [row.loss for row in found.history[1:] if row.loss is not None]
    assert losses[-1] < losses[0]


def test_a_learned_b_moves_and_one_that_drifts_ends_near_two() -> None:
    changes = {"rises": (BSchedule(layers="0", learned="layer", drift=50.0), BSchedule(learned="network")), "epochs": 3}
    found = finetune(converted(), images(), recipe=plain(**changes, schedule="constant"))
    values = [m.b for m in found.network.modules() if isinstance(m, BcosLayer)]
    assert values[0] == pytest.approx(2.0, abs=0.1)
    assert values[1] == values[2] != 1.0


def test_features_are_no_classes_where_no_label_is_read(tmp_path: Path) -> None:
    found = finetune(
        converted(),
        photographs(tmp_path, classes=CLASSES - 1),
        recipe=plain(epochs=1, loss="distil-cosine"),
        original=original(),
        validation=images(6),
    )
    assert found.history[-1].residual is not None
    assert found.classes == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"channels_last": True},
        {"accumulate": 2},
        {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        {"loss": "distil-kl"},
        {"loss": {"distil-cosine": 1.0, "distil-pairwise": 1.0}, "features": "4"},
        {"cutmix": 1.0, "augment": "trivial"},
        {"augment": "crop-and-flip"},
    ],
    ids=str,
)
def test_options_train_to_finite_weights(changes: dict[str, Any]) -> None:
    found = finetune(
        converted(), images(), recipe=plain(epochs=1, **changes), original=original(), validation=images(6)
    )
    assert all(bool(torch.isfinite(p).all()) for p in found.network.parameters())
    assert found.history[-1].loss is not None


def test_accumulating_two_batches_is_one_of_twice_the_size() -> None:
    """Without batch statistics, dropout and mixing, whose results depend on the batch."""
    network = bcos_fx.bcosify(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
        ).eval(),
        example_inputs=images()[0][:2],
        recipe="gradual",
    )
    small = finetune(network, images(), recipe=plain(batch_size=4, accumulate=2))
    large = finetune(network, images(), recipe=plain(batch_size=8))
    for (name, a), b in zip(small.network.named_parameters(), large.network.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), name


def test_a_compiled_step_is_not_compiled_for_every_b(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph_module: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph_module.forward

    before = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: before(network, backend=backend))
    torch.compiler.reset()
    eager = finetune(converted(), images(), recipe=plain(epochs=2))
    found = finetune(converted(), images(), recipe=plain(epochs=2, compiled=True))
    assert 0 < len(compiled) <= 3
    for a, b in zip(found.network.parameters(), eager.network.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-2, atol=1e-4)


def test_calibration_at_every_stair_on_images_as_they_are() -> None:
    seen: list[tuple[float, bool, int]] = []

    def calibrate(network: Any, batches: Any, constants: Any) -> None:
        b = next(m.b for m in network.modules() if isinstance(m, BcosLayer))
        seen.append((b, network.training, sum(map(len, batches))))

    stairs = (BSchedule(course=Course("steps", end=1.0, steps=2)),)
    finetune(converted(), images(), recipe=plain(rises=stairs, calibrate="steps"), calibration=calibrate)
    assert seen == [(1.0, False, 24), (1.5, False, 24), (2.0, False, 24)]
    seen.clear()
    finetune(converted(), images(), recipe=plain(calibrate="steps"), calibration=calibrate)  # smooth: at epochs' ends
    assert [b for b, _, _ in seen] == [1.0, 2.0]
    seen.clear()
    finetune(converted(), images(), recipe=plain(calibrate="start"), calibration=calibrate)
    assert len(seen) == 1


def test_the_usual_calibration_sets_statistics_and_matches_the_original() -> None:
    pixels, _ = images()
    network = converted()
    network.train()(pixels * 0.5)  # statistics of something else
    network.eval()
    alone, matched, expected = (copy.deepcopy(network) for _ in range(3))
    batches = torch.split(pixels, 8)
    usual_calibration(None)(alone, batches, {})
    assert any(not torch.equal(a, b) for a, b in zip(alone.buffers(), network.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), network.parameters(), strict=True))
    calibrate = usual_calibration(converted())
    for _ in range(2):  # the original is measured once
        calibrate(matched, batches, {})
    calibrate_(expected, batches, converted())
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(matched.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    found = finetune(network, images(), recipe=plain(calibrate="start", epochs=1))
    assert found.history


def test_only_what_was_not_trained_yet_is_matched_to_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    matched: list[bool] = []

    def spied(reference: nn.Module | None) -> Any:
        return lambda network, batches, constants: matched.append(reference is not None)

    monkeypatch.setattr("bcos_fx.training.finetune.usual_calibration", spied)
    stairs = (BSchedule(course=Course("steps", end=1.0, steps=2)),)
    finetune(converted(), images(), recipe=plain(rises=stairs, calibrate="steps"), original=original())
    assert matched == [True, False, False]


def test_a_calibration_leaves_constants_faded() -> None:
    """The last one comes after the last constant is gone: it must not bring them back."""
    pixels, _ = images()
    batches = torch.split(pixels, 8)
    whole, half, gone = (converted() for _ in range(3))
    (path,) = (path for path, module in whole.named_modules() if isinstance(module, BatchNormUncentred2d))
    for network, share in ((whole, 1.0), (half, 0.5), (gone, 0.0)):
        usual_calibration(converted())(network, batches, {path: share})
    means = [network.get_submodule(path).running_mean for network in (whole, half, gone)]
    assert bool(means[0].any())
    torch.testing.assert_close(means[1], means[0] / 2)
    assert not any(bool(constant.any()) for constant in constants_of(gone.get_submodule(path)))
    rises, fades = (BSchedule(course=Course("linear", end=1.0)),), (BiasDecay(course=Course("linear", end=0.6)),)
    recipe = plain(rises=rises, fades=fades, calibrate="steps")
    found = finetune(converted(), images(), recipe=recipe, validation=images(12), original=converted())
    assert [row.bias_share == 0 for row in found.history] == [False, False, True]


def test_every_source_of_images(tmp_path: Path) -> None:
    pixels, labels = images(12)
    recipe = plain(epochs=1)
    folder = photographs(tmp_path / "photographs", size=11)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for number, label in enumerate(labels.tolist()):
            (tmp_path / "label.cls").write_text(str(label))
            shard.add(folder / f"class_{label}" / f"{number}.png", f"{number}.png")
            shard.add(tmp_path / "label.cls", f"{number}.cls")
    sources = [folder, archive(tmp_path / "some.npz"), tmp_path / "shard.tar", (pixels, labels)]
    sources.append(TensorDataset(pixels, labels))
    for source in sources:
        assert finetune(converted(), source, recipe=recipe, validation=source).history[-1].accuracy is not None
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=4, shuffle=True)
    first, second = (finetune(converted(), loader, recipe=recipe, validation=loader) for _ in range(2))
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)  # whatever it draws follows from the seed
    bare = DataLoader(pixels, batch_size=4)  # type: ignore[arg-type]
    found = finetune(converted(), bare, recipe=plain(epochs=1, loss="distil-kl"), original=original(), validation=bare)
    assert found.history[0].accuracy is not None
    with pytest.raises(UsageError, match="the batches hold no labels"):
        finetune(converted(), bare, recipe=recipe)


def test_from_scratch_and_a_new_head(tmp_path: Path) -> None:
    network = converted()
    fresh = finetune(network, images(), recipe=plain(epochs=1, lr=1e-12), from_scratch=True).network
    for (name, a), b in zip(fresh.named_parameters(), network.parameters(), strict=True):
        if a.dim() > 1:
            assert (a - b).abs().max().item() > 1e-3, name
    assert torch.allclose(fresh.get_submodule("1").bias, torch.zeros(6), atol=1e-9)
    pixels, labels = images(20)[0], torch.arange(20) % 5
    with pytest.raises(UsageError, match="the data has 5 classes, and the network 3") as caught:
        finetune(network, (pixels, labels), recipe=plain(epochs=1))
    assert "head='new'" in str(caught.value)
    few = (pixels, torch.arange(20) % 2)  # bare labels may leave out a class
    assert finetune(network, few, recipe=plain(epochs=1)).network(pixels).shape == (20, 3)
    found = finetune(network, (pixels, labels), recipe=plain(epochs=1), head="new").network
    assert found(pixels).shape == (20, 5)
    bcos_fx.save(found, tmp_path / "five.safetensors")
    assert torch.equal(bcos_fx.load(tmp_path / "five.safetensors")(pixels), found(pixels))
    assert bcos_fx.certify(found, pixels).ok


def test_frozen_parameters_are_not_trained() -> None:
    network = converted()
    network.get_submodule("0").weight.requires_grad_(False)
    found = finetune(network, images(), recipe=plain(epochs=1, average=0.5)).network
    flags = {name: p.requires_grad for name, p in found.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in network.named_parameters()}
    assert torch.equal(found.get_submodule("0").weight, network.get_submodule("0").weight)
    assert not torch.equal(found.get_submodule("4").weight, network.get_submodule("4").weight)


def test_the_average_follows_closely_at_first() -> None:
    from bcos_fx.training.lightning_module import _averaged  # which needs the extra

    network, expected = nn.Linear(1, 1, bias=False), 100.0
    average = _averaged(network, 0.9)
    for step in range(200):
        nn.init.constant_(network.weight, 100.0 if step == 0 else step)
        average.update_parameters(network)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = 100.0 if step == 0 else decay * expected + (1 - decay) * step
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(199 - 9, rel=1e-3)


def test_norms_forget_the_network_that_training_began_with() -> None:
    """Their statistics are those of the last batches, however slowly they follow, and their momentum is their own."""
    slow = original()
    slow[1].momentum = 1e-4
    network = bcos_fx.bcosify(slow, example_inputs=images()[0][:2], recipe="bcosification")
    found = finetune(network, images(), recipe=plain(epochs=2, rises=(), lr=1e-6), validation=images())
    norm = found.network.get_submodule("1")
    assert norm.momentum == network.get_submodule("1").momentum == 1e-4
    seen: list[torch.Tensor] = []
    found.network.get_submodule("0").register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        found.network(images()[0])
    wanted = seen[0].movedim(1, 0).flatten(1).var(1)
    torch.testing.assert_close(norm.running_var, wanted, rtol=0.3, atol=0)
    before = network.get_submodule("1").running_var
    assert float(((wanted - before).abs() / before).max()) > 0.5


def test_frozen_statistics_stay_frozen() -> None:
    frozen = original()
    frozen[1].momentum = 0.0
    network = bcos_fx.bcosify(frozen, example_inputs=images()[0][:2], recipe="bcosification")
    found = finetune(network, images(), recipe=plain(epochs=1, rises=()))
    assert torch.equal(found.network.get_submodule("1").running_var, network.get_submodule("1").running_var)


def test_a_network_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(UsageError, match="all parameters of the network are frozen"):
        finetune(converted().requires_grad_(False), images(), recipe=plain())


def test_the_original_that_is_distilled_from_stays_as_it_is() -> None:
    reference = original().train()
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    finetune(converted(), images(), recipe=plain(epochs=1, loss="distil-kl"), original=reference)
    assert all(module.training for module in reference.modules())
    assert all(parameter.requires_grad for parameter in reference.parameters())
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())


def test_an_ordinary_module_is_trained_for_comparison() -> None:
    found = finetune(original(), images(), recipe=Training(epochs=1, loss="cross-entropy", batch_size=4))
    assert isinstance(found.network, nn.Sequential)
    with pytest.raises(UsageError, match="has no B to raise"):
        finetune(original(), images(), recipe=plain())


# ---------------------------------------------------------------- what goes wrong


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    (tmp_path / "empty" / "class_a").mkdir(parents=True)
    with pytest.raises(UsageError, match="there are no images in"):
        finetune(converted(), tmp_path / "empty", recipe=plain())
    with pytest.raises(UsageError, match="there is no data at") as caught:
        finetune(converted(), tmp_path / "emty", recipe=plain())
    assert "did you mean 'empty'" in str(caught.value)
    with pytest.raises(UsageError, match="all images are of one class"):
        finetune(converted(), photographs(tmp_path / "one", classes=1), recipe=plain())
    with pytest.raises(UsageError, match="other classes: class_2"):
        finetune(
            converted(),
            photographs(tmp_path / "three"),
            recipe=plain(),
            validation=photographs(tmp_path / "two", classes=2),
        )
    (tmp_path / "not.npz").write_text("not")
    with pytest.raises(UsageError, match="the file cannot be read"):
        finetune(converted(), tmp_path / "not.npz", recipe=plain())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named(workers: int, tmp_path: Path) -> None:
    folder = photographs(tmp_path / "photographs")
    broken = folder / "class_1" / "4.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UsageError, match="the image cannot be read") as caught:
        finetune(converted(), folder, recipe=plain(), run=RunSettings(workers=workers))
    assert caught.value.where == str(broken)
    assert "Traceback" not in str(caught.value)


def test_images_alone_are_distilled_on_whatever_they_come_in(tmp_path: Path) -> None:
    pixels, _ = images(12)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(folder / f"{number:02d}.png")
    read = torch.stack([(p * 255).byte().float() / 255 for p in pixels])
    recipe = plain(epochs=2, loss="distil-kl", augment="flip")
    ways = [finetune(converted(), data, recipe=recipe, original=original(), validation=data) for data in (read, folder)]
    for row in ways[0].history[1:]:
        assert row.train_accuracy is None
        assert 0 <= row.accuracy <= 1
    for a, b in zip(ways[0].network.parameters(), ways[1].network.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    for data in (read, folder):
        with pytest.raises(UsageError, match="the batches hold no labels"):
            finetune(converted(), data, recipe=plain())
    with pytest.raises(UsageError, match="there are no images in the tensor"):
        finetune(converted(), pixels[:0], recipe=recipe, original=original())


def test_embeddings_have_a_cosine_and_no_accuracy() -> None:
    pixels, _ = images(12)
    network, asked = original(), {"loss": "distil-pairwise", "epochs": 1}
    found = finetune(converted(), pixels, recipe=plain(**asked), original=network, validation=pixels)
    with torch.no_grad():
        theirs = network((pixels - 0.4) / 0.3)
        slow = torch.nn.functional.cosine_similarity(found.network(pixels), theirs, dim=1).mean()
    last = found.history[-1]
    assert last.cosine == pytest.approx(float(slow), rel=1e-5)
    assert last.accuracy is None
    assert f"cosine {last.cosine:.4f}" in str(last)


def test_a_loss_that_is_not_finite_stops_and_names_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bcos_fx.training.lightning_module import FineTuning

    before = FineTuning.on_train_batch_start

    def spoil(module: FineTuning, batch: Any, batch_idx: int) -> None:
        before(module, batch, batch_idx)
        if module.trainer.global_step == 8:
            with torch.no_grad():
                module.network.get_submodule("4").weight.fill_(3e38)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuning, "on_train_batch_start", spoil)
        with pytest.raises(TrainingError, match="the loss is not finite any more, at step 8") as caught:
            finetune(converted(), images(), recipe=plain(), run=tmp_path)
    assert str(caught.value.where).startswith("the layer 4 (BcosConv2d)")
    assert f"the last good checkpoint is {tmp_path / 'last.ckpt'}" in str(caught.value)
    found = finetune(converted(), images(), recipe=plain(), run=RunSettings(folder=tmp_path, resume=True))
    assert len(found.history) == 3


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    taken = 0

    def poison(network: nn.Module) -> float:
        nonlocal taken
        taken += 1
        if taken == 3:
            with torch.no_grad():
                next(network.parameters()).fill_(float("nan"))
        return 0.0

    with pytest.raises(TrainingError, match=r"0\.weight is not finite any more, at step 12") as caught:
        finetune(converted(), images(), recipe=plain(), run=RunSettings(folder=tmp_path, measures={"poison": poison}))
    assert "the last good checkpoint" in str(caught.value)
    found = finetune(converted(), images(), recipe=plain(), run=RunSettings(folder=tmp_path, resume=True))
    assert all(bool(torch.isfinite(p).all()) for p in found.network.parameters())


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = full_run(tmp_path / "whole")
    synced, before = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        before(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="cannot be written: No space left on device") as caught:
        full_run(tmp_path / "full")
    assert "go on with resume" in str(caught.value) or "last good checkpoint" in str(caught.value)
    monkeypatch.setattr(os, "fsync", before)
    assert not list((tmp_path / "full").rglob("*.tmp"))
    found = full_run(tmp_path / "full", resume=True)
    for a, b in zip(found.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    finetune(converted(), images(), recipe=plain(epochs=1), run=tmp_path)
    with pytest.raises(UsageError, match=r"of another run: recipe\.epochs was 1 and is 2"):
        finetune(converted(), images(), recipe=plain(epochs=2), run=RunSettings(folder=tmp_path, resume=True))
    with pytest.raises(UsageError, match="of another run: network was"):
        finetune(
            converted(scale="unit"), images(), recipe=plain(epochs=1), run=RunSettings(folder=tmp_path, resume=True)
        )
    with pytest.raises(UsageError, match=r"training images\.images was 24 and is 12"):
        finetune(converted(), images(12), recipe=plain(epochs=1), run=RunSettings(folder=tmp_path, resume=True))
    (tmp_path / "last.ckpt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(UsageError, match="the checkpoint cannot be read"):
        finetune(converted(), images(), recipe=plain(epochs=1), run=RunSettings(folder=tmp_path, resume=True))
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="it does not end in a checksum"):
        finetune(converted(), images(), recipe=plain(epochs=1), run=RunSettings(folder=tmp_path, resume=True))


def test_other_misuse(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(images()[0], images()[1] + 3), batch_size=24)
    with pytest.raises(UsageError, match="labels go from 3 to 5, and the network has 3 classes"):
        finetune(converted(), loader, recipe=plain())
    with pytest.raises(UsageError, match="Lightning cannot train like that"):
        finetune(
            converted(),
            images(),
            recipe=plain(),
            run=RunSettings(accelerator="gpu" if not torch.cuda.is_available() else "hpu"),
        )
    with pytest.raises(UsageError, match="without a folder"):
        finetune(converted(), images(), recipe=plain(), run=RunSettings(resume=True))
    with pytest.raises(UsageError, match="did you mean 'csv'"):
        finetune(converted(), images(), recipe=plain(), run=RunSettings(folder=tmp_path, loggers=["cvs"]))
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        finetune(converted(), images(), recipe=plain(), epoch=3)
    with pytest.raises(UsageError, match="there is no original to distil from"):
        finetune(converted(), images(), recipe=plain(loss="distil-kl"))
    with pytest.raises(UsageError, match="the test images have no labels, and there is no original"):
        finetune(converted(), images(), recipe=plain(), validation=images()[0])
    with pytest.raises(UsageError, match="no layer is named 'nine'"):
        finetune(converted(), images(), recipe=plain(loss="distil-cosine", features="nine"), original=original())
    with pytest.raises(UsageError, match="images cannot be taken from a int"):
        finetune(converted(), 3, recipe=plain())


@pytest.mark.parametrize("loss", ["distil-kl", "distil-bce", "cross-entropy"])
def test_an_original_of_other_classes_is_refused(loss: str) -> None:
    other = original()
    other[-1] = nn.Linear(6, CLASSES + 1)
    pixels = images()[0] if loss == "cross-entropy" else None  # answers like the original's are counted
    with pytest.raises(UsageError, match=f"the original has {CLASSES + 1} classes, and the network has {CLASSES}"):
        finetune(converted(), images(), recipe=plain(epochs=1, loss=loss), original=other, validation=pixels)


def test_ctrl_c_keeps_the_last_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    def interrupt(row: Any) -> None:
        if row.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        finetune(converted(), images(), recipe=plain(epochs=3), run=RunSettings(folder=tmp_path, on_epoch=interrupt))
    assert any("resume=True" in note for note in caught.value.__notes__)
    assert signal.getsignal(signal.SIGINT) is handler
    found = finetune(converted(), images(), recipe=plain(epochs=3), run=RunSettings(folder=tmp_path, resume=True))
    shutil.rmtree(tmp_path)
    whole = finetune(converted(), images(), recipe=plain(epochs=3))
    for a, b in zip(found.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fades_without_test_images_are_taken_out_too() -> None:
    found = finetune(converted(), images(), recipe=plain(fades=(BiasDecay(course=Course("linear", end=0.9)),)))
    assert not re.search(r"bias=True", str(found.network))
    assert found.network.get_submodule("8").bias is None
