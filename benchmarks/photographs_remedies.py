"""What brings the fine-tuned network's explanations nearer to what they explain, tried on held-back photographs.

python benchmarks/photographs_remedies.py DATA NETWORK [--photographs 500] [--grids 20] [--folder DIR] [--out FILE.md]

DATA holds imagenette_train.npz; NETWORK is what benchmarks/photographs.py trained. Grids are explained in windows of
the network's size for every class, and the maps are then scored in different ways. No test photograph is read. With
--folder the maps are kept, and a further run scores them again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from measuring import Page, parser
from photographs import HELD, archive
from photographs_pointing import less_the_others
from torch import Tensor

import bcos_fx
from bcos_fx.evaluation import dynamic_linear, open_source
from bcos_fx.evaluation.localisation import grid_image, windowed
from bcos_fx.evaluation.predictions import predict
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.scoring import SMOOTH, gridpg_score
from bcos_fx.evaluation.selection import Grid, published, select
from bcos_fx.evaluation.tasks import task_of


def parsed() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("data", type=Path)
    made.add_argument("network", type=Path)
    made.add_argument("--photographs", type=int, default=500, help="the first so many of those that are held back")
    made.add_argument("--grids", type=int, default=20, help="at most, of each size")
    made.add_argument("--folder", type=Path, help="where maps are kept")
    made.add_argument("--threads", type=int, default=1)
    return made.parse_args()


def maps_of(options: argparse.Namespace, folder: Path, side: int) -> tuple[Tensor, Tensor]:
    """Contributions of every place to every class (grids, classes, H, W), and the classes in the cells (grids, n)."""
    kept = folder / f"held-{side}.pt"
    if not kept.exists():
        source = options.data / "imagenette_train.npz"
        first = len(open_source(source)) - HELD
        shown = open_source(archive(source, folder, "pointed", range(first, first + options.photographs)))
        network = bcos_fx.load(options.network)
        task, protocol = task_of(network, shown), published(side=side, grids=options.grids, windows=True)
        method = windowed(dynamic_linear(network), *network.input_shape[-2:])
        grids: tuple[Grid, ...] = select(predict(task, Runner()).predictions, protocol)
        every = torch.arange(len(shown.classes))[None]
        maps = torch.cat([method.maps(grid_image(task, grid, protocol), every).detach() for grid in grids])
        torch.save({"maps": maps, "labels": [grid.labels for grid in grids]}, kept)
    found = torch.load(kept)
    return found["maps"].double(), torch.tensor(found["labels"])


def own(maps: Tensor, labels: Tensor) -> Tensor:
    """Of maps of all classes (grids, classes, H, W) those of the classes in the cells (grids, n, H, W)."""
    return maps.gather(1, labels[:, :, None, None].expand(-1, -1, *maps.shape[2:]))


def tell(options: argparse.Namespace, folder: Path) -> None:
    page = Page("What brings explanations of photographs nearer to what they explain", options)
    page.text(
        "- The network of [Localization on photographs](photographs_pointing.md), in windows of its size, on "
        f"{options.photographs} photographs that are held back from training; at most {options.grids} grids of each "
        f"size\n- *As published*: contributions to a class's output, averaged over boxes of {SMOOTH} pixels, cut at 0. "
        "Each row changes one thing. *Apart*: contributions to the class's output less the mean of the other "
        "classes' outputs, which `bcos-fx explain --against others` draws"
    )
    rows = []
    for side in (2, 3):
        maps, labels = maps_of(options, folder, side)
        plain, apart = own(maps, labels), own(less_the_others(maps), labels)
        tried = {"as published": (plain, SMOOTH)}
        tried |= {f"boxes of {width} x {width}": (plain, width) for width in (1, 9, 31)}
        tried |= {
            "apart": (apart, SMOOTH),
            "apart, boxes of 1 x 1": (apart, 1),
            "apart, boxes of 31 x 31": (apart, 31),
        }
        for name, (found, width) in tried.items():
            scores = gridpg_score(found, side * side, smooth=width)
            tenth = scores.flatten().sort().values[: max(1, scores.numel() // 10)]
            rows.append((f"{side}x{side}", name, f"{scores.mean():.3f}", f"{tenth.mean():.3f}", str(len(scores))))
    page.table(("grid", "explained", "GridPG", "its worst tenth", "grids"), rows)
    page.close()


def main() -> None:
    options = parsed()
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.photographs, options.grids = 120, 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.folder is None else options.folder
        folder.mkdir(parents=True, exist_ok=True)
        tell(options, folder)


if __name__ == "__main__":
    main()
