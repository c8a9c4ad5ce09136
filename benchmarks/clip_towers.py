"""Image towers of image-text models at full size with random weights: equal, certified, complete, copied; and how fast.

python benchmarks/clip_towers.py [--out FILE.md] [--quick] [--folder FOLDER]

Each tower runs in a process of its own; with --folder its rows are kept there, and a run that was cut off goes on.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measuring import Page, parser
from torch import Tensor, nn

import bcos_fx
from bcos_fx.explanation import cosine
from bcos_fx.network import BcosNetwork
from bcos_fx.testing import norm_statistics_from_data_, randomise_
from bcos_fx.verification.parameter_coverage import parameter_coverage
from bcos_fx.verification.samples import synthetic_images

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def open_clip(name: str) -> nn.Module:
    import open_clip as library

    return library.create_model(name).visual


def bias_free_siglip() -> nn.Module:
    """SigLIP's ViT-B-16 of timm without biases in its attention."""
    import timm

    return timm.create_model("vit_base_patch16_siglip_224", num_classes=0, qkv_bias=False, proj_bias=False)


def transformers(kind: str) -> nn.Module:
    import transformers as library

    made = getattr(library, kind)
    return made(made.config_class())


# What is converted, and which part of its output is the embedding.
TOWERS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "open_clip RN50": (lambda: open_clip("RN50"), None),
    "open_clip ViT-B-32": (lambda: open_clip("ViT-B-32"), None),
    "open_clip ViT-B-16": (lambda: open_clip("ViT-B-16"), None),
    "open_clip ViT-B-16-SigLIP": (lambda: open_clip("ViT-B-16-SigLIP"), None),
    "timm SigLIP, bias-free": (bias_free_siglip, None),
    "transformers CLIPVisionModelWithProjection": (
        lambda: transformers("CLIPVisionModelWithProjection"),
        "image_embeds",
    ),
    "transformers SiglipVisionModel": (lambda: transformers("SiglipVisionModel"), "pooler_output"),
}
QUICK = ("open_clip ViT-B-32",)


def forward_time(module: nn.Module, images: Tensor) -> float:
    """Median of 5 forward passes, in seconds; one is done before."""
    times = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            module(images)
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def converted(module: nn.Module, output: str | None, images: Tensor, recipe: str) -> tuple[BcosNetwork, float]:
    start = time.perf_counter()
    network = bcos_fx.bcosify(
        module, example_inputs=images[:2], recipe=recipe, mean=MEAN, std=STD, output_key=output, images=images
    )
    return network, time.perf_counter() - start


def gaps(network: BcosNetwork, images: Tensor) -> tuple[bool, float, float]:
    """Certified; largest relative gap; largest residual of the cosine to a random text. In float64, in place."""
    exact, two = network.double(), images[:2].double()
    found = bcos_fx.certify(exact, two)
    text = torch.randn(exact(two[:1]).shape[1], generator=torch.Generator().manual_seed(1))
    residual = float(bcos_fx.explain(exact, two, cosine(text)).residual.abs().max())
    return found.ok, float("nan") if found.completeness is None else found.completeness.worst, residual


def examine(name: str, side: int) -> tuple[list[str], list[str]]:
    """The rows of one tower: at B = 1, and by the recipe clip."""
    make, output = TOWERS[name]
    torch.manual_seed(0)
    (images,) = synthetic_images((3, side, side), 4, seed=0).map(lambda x: x.float()).tensors
    module = norm_statistics_from_data_(randomise_(make()), images).eval()
    own = forward_time(module, images)
    same, seconds = converted(module, output, images, "equivalent")
    verification = same.report.figures.verification or {}
    coverage = parameter_coverage(module, same)
    certified, gap, residual = gaps(same, images)
    count = sum(p.numel() for p in module.parameters()) / 1e6
    ways = ", ".join(f"{coverage.count(how)} {how}" for how in dict.fromkeys(row.how for row in coverage.rows))
    gone = sum(row.numbers for row in coverage.rows if row.how in ("missing", "removed"))
    verdict = str(verification["detail"]).partition(":")[0]
    equal = [
        name,
        f"{count:.1f}",
        f"{verification['error']:.0e}" + ("" if verification["ok"] else f" ({verdict})"),
        "yes" if certified else "no",
        f"{gap:.0e}",
        f"{residual:.0e}",
        f"{1 - gone / (count * 1e6):.0%}: {ways}",
        f"{seconds / own:.0f}",
    ]
    del same
    network, seconds = converted(module, output, images, "clip")
    coverage = parameter_coverage(module, network)
    drift = network.report.figures.total_drift
    certified, gap, residual = gaps(network, images)
    positions = network.report.rule_counts().get("positional-embedding-removed", 0)
    raised = [
        name,
        "yes" if certified else "no",
        f"{gap:.0e}",
        f"{residual:.0e}",
        "removed" if positions else "kept",
        f"{coverage.count('removed')}, {len(coverage.missing)}",
        "-" if drift is None else f"{drift.change:.0%}",
        f"{seconds / own:.0f}",
    ]
    return equal, raised


def rows_of(name: str, folder: Path) -> tuple[list[str], list[str]]:
    """The rows of one tower, from a process of its own: what a conversion takes of memory is given back."""
    path = folder / f"{name.replace(' ', '-').replace(',', '')}.json"
    if not path.exists():
        subprocess.run([sys.executable, __file__, "--only", name, "--write", str(path)], check=True)
    equal, raised = json.loads(path.read_text(encoding="utf-8"))
    return equal, raised


def main() -> None:
    taken = parser(__doc__)
    taken.add_argument("--folder", type=Path, help="keep the rows of each tower here")
    taken.add_argument("--only", choices=TOWERS, help="one tower, whose rows go to --write")
    taken.add_argument("--write", type=Path)
    options = taken.parse_args()
    torch.set_flush_denormal(True)
    if options.only is not None:
        options.write.write_text(json.dumps(examine(options.only, 224)), encoding="utf-8")
        return
    with TemporaryDirectory() as passing:
        folder = options.folder or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        report(options, folder)


def report(options: Namespace, folder: Path) -> None:
    page = Page("Image towers of image-text models", options)
    page.text(
        f"open_clip {version('open_clip_torch')}, timm {version('timm')}, transformers {version('transformers')}; "
        f"{torch.get_num_threads()} threads. The libraries' own architectures at full size (224 pixels) with random "
        "weights of order one and norm statistics taken from made-up images: pretrained weights were not at "
        "hand, so nothing here says how well an image is told from another."
    )
    rows = [rows_of(name, folder) for name in (QUICK if options.quick else TOWERS)]
    page.text(
        "## At B = 1\n\nTarget: error, gap and cosine at most 1e-9, all copied.\n\nRecipe `equivalent`. *error*: "
        "of the equivalence proof, outputs and input gradients, relative, float64. *gap*: of the completeness check, "
        "relative, float64. *cosine*: largest |residual| of the explained cosine to a random text, float64. *copied*: "
        "share of the tower's numbers that are found in the converted one, and how many parameters are there in which "
        "way (`bcos_fx.verification.parameter_coverage`). *time*: of the conversion, verified on 4 images, in the "
        "tower's own forward passes of a batch of 4."
    )
    page.table(
        ["tower", "million parameters", "error", "certified", "gap", "cosine", "copied", "time"],
        [equal for equal, _ in rows],
    )
    page.text(
        "## By the recipe clip\n\nB = 2, no biases. *positions*: of an attention pool. *gone*: parameters that a rule "
        "removed, and that are missing without a reason. *drift*: |after - before| / |before| of the embedding."
    )
    page.table(
        ["tower", "certified", "gap", "cosine", "positions", "gone", "drift", "time"], [raised for _, raised in rows]
    )
    page.close()


if __name__ == "__main__":
    main()
