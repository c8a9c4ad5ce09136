"""A page that explains photographs in the browser: a folder for any static server, without a program behind it.

onnxruntime-web, which runs the explanation there, comes from the npm registry when the page is made.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from torch import Tensor

from bcos_fx.errors import UsageError
from bcos_fx.explanation.explain import explain
from bcos_fx.exporting.export import ExportedFile, export, made_up
from bcos_fx.files import nearest_path
from bcos_fx.network import BcosNetwork

RUNTIME = "onnxruntime-web@1.30.0"
_RUNTIME_FILES = (
    "package.json",
    "dist/ort.wasm.min.js",
    "dist/ort-wasm-simd-threaded.mjs",
    "dist/ort-wasm-simd-threaded.wasm",
)
_SECONDS, _FACTS = 300, "page.json"


def write_page(
    model: BcosNetwork, folder: str | Path, inputs: Tensor | None = None, *, overwrite: bool = False
) -> ExportedFile:
    """Write a page that explains photographs in the browser; nothing is sent anywhere.

    Serve the folder by anything that serves files: ``python -m http.server --directory FOLDER``.

    Args:
        model: a converted network of color photographs, in float32, in eval mode; classes that it has no names of are
            shown by their numbers.
        folder: of the page. It appears when all of it is written and checked.
        inputs: photographs to check the explanation on, as for :func:`bcos_fx.export`.
        overwrite: whether a page that is there is replaced; other folders never are.

    Returns:
        What :func:`bcos_fx.export` says of the explanation in it.

    Raises:
        UsageError: the folder exists, and is not a page or ``overwrite`` is false; the network takes no color
            photographs; or npm cannot fetch the runtime.
        MissingExtraError, TraceError, VerificationError: as for :func:`bcos_fx.export`.
    """
    folder = Path(folder)
    check_page(folder, overwrite=overwrite)
    preprocessing = model.preprocessing
    if preprocessing.channels != 3 or not model.record.inputs[0].encoded or len(model.record.inputs) != 1:
        raise UsageError("a page shows color photographs, and the network takes something else", hint="export a file")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".bcos-fx-page-") as temporary:
        page = Path(temporary) / "page"
        _fetch_runtime(page / "ort")
        exported = export(model, page / "explanation.onnx", inputs, explanation=True)
        for file in importlib.resources.files("bcos_fx.exporting").joinpath("page_files").iterdir():
            (page / file.name).write_bytes(file.read_bytes())
        height, width = preprocessing.size
        facts = {
            "height": height,
            "width": width,
            "crop": preprocessing.crop_pct,
            "names": list(model.record.classes),
            "constants": list(exported.constants),
            "colors": _has_colors(model),
        }
        (page / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        check_page(folder, overwrite=overwrite)
        if folder.exists():
            folder.rename(Path(temporary) / "before")
        page.rename(folder)
    return dataclasses.replace(exported, path=str(folder / "explanation.onnx"))


def check_page(folder: Path, *, overwrite: bool) -> None:
    """Check that a page can be written to a folder, before the work for it begins.

    Raises:
        UsageError: as for :func:`write_page`.
    """
    if not folder.parent.is_dir():
        hint = f"{nearest_path(folder.parent, folders=True)}; name one that exists"
        raise UsageError(f"there is no folder {folder.parent}", hint=hint)
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder} is there already", hint="replace it with overwrite=True, or choose another name")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / _FACTS).is_file()):
        raise UsageError(f"{folder} is not a page, so it is not replaced", hint="name a folder that does not exist yet")


def _has_colors(model: BcosNetwork) -> bool:
    """Return whether W(x) weights both x and 1 - x, so that it has a color."""
    return explain(model, made_up(model)[0][:1]).colors


def _fetch_runtime(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError("npm is not installed, which fetches onnxruntime-web for the page", hint="install Node.js")
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as fetched:
        command = [npm, "pack", RUNTIME, "--silent", "--pack-destination", fetched]
        try:
            npm_run = subprocess.run(
                command, cwd=fetched, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise UsageError(f"npm has not fetched {RUNTIME} in {_SECONDS} s", hint="try again later") from error
        archives = list(Path(fetched).glob("*.tgz"))
        if npm_run.returncode or not archives:
            problem = (npm_run.stderr.strip() or npm_run.stdout.strip() or "no message").splitlines()[-1]
            raise UsageError(f"npm cannot fetch {RUNTIME}: {problem}", hint="check npm's registry: npm ping")
        with tarfile.open(archives[0]) as archive:
            # By name, and not extractall(): nothing else of an archive from the network is written.
            for name in _RUNTIME_FILES:
                content = archive.extractfile(f"package/{name}") or io.BytesIO()
                (folder / Path(name).name).write_bytes(content.read())
