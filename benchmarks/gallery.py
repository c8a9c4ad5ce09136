"""Draw the picture of docs/gallery.md that no page of results has: what the shipped network makes of the unknown.

python benchmarks/gallery.py [FILE.png]

The photographs are those of the package foolbox, and show none of the network's ten classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from measuring import ROOT
from PIL import Image, ImageDraw, ImageFont

import bcos_fx
from bcos_fx.cli.demo import photographs
from bcos_fx.explanation import difference

SHOWN = {6: "jeep", 7: "jeep", 5: "thatched roof", 8: "yurt", 16: "dalmatian", 10: "drum"}
CELL, LINE = 160, 20


def main(path: Path) -> None:
    network = bcos_fx.example_network()
    images = photographs(network.input_shape)[0][list(SHOWN)]
    answers = bcos_fx.explain(network, images).in_blocks(2)
    font = ImageFont.load_default(13)
    whole = Image.new("RGB", (2 * (4 * CELL + 10), len(SHOWN) // 2 * (CELL + LINE + 6)), "white")
    words = ImageDraw.Draw(whole)
    for n, (image, shown) in enumerate(zip(images, SHOWN.values(), strict=True)):
        first, second = network(image[None])[0].topk(2).indices.tolist()
        why = bcos_fx.explain(network, image[None], difference(first, second)).in_blocks(2)
        left, top = n % 2 * (4 * CELL + 10), n // 2 * (CELL + LINE + 6)
        texts = (shown, f"W(x): {network.record.classes[first]}", "over the photograph")
        against = f"not {network.record.classes[second]}"
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        cells = Image.fromarray(pixels), answers[n].image(), answers[n].image(overlay=True), why.image(overlay=True)
        for place, (cell, text) in enumerate(zip(cells, (*texts, against), strict=True)):
            small = cell.convert("RGBA").resize((CELL, CELL), Image.Resampling.LANCZOS)
            words.text((left + place * CELL + 2, top + 1), text, fill="black", font=font)
            whole.paste(small, (left + place * CELL, top + LINE), small)
    whole.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "unknown.png")
