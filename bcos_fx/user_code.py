"""Importing a Python file that the user named: it runs, as any import does.

Only a path that the user typed comes here (``--arch FILE.py:factory``, ``--import FILE.py``); none that a file holds.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_OURS: dict[str, int] = {}  # name of a module that was imported here -> when its file was last changed then


def import_file(path: Path) -> ModuleType:
    """Import a Python file; or return its module if it has been imported, so that its classes are the same objects.

    A file that was imported here and has changed since is run again. Other files find the module under the name of the
    file, unless another module has that name.

    Raises:
        ImportError: it is not a Python file; or whatever the file's own code raises.
    """
    changed = path.stat().st_mtime_ns
    known = _imported(path.resolve())
    if known is not None and _OURS.get(known.__name__, changed) == changed:
        return known
    name = known.__name__ if known is not None else _free_name(path.resolve())
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name while it is being run.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _OURS[name] = changed
    return module


def _imported(path: Path) -> ModuleType | None:
    for module in list(sys.modules.values()):
        place = getattr(module, "__file__", None)
        if isinstance(place, str) and Path(place).name == path.name and Path(place).resolve() == path:
            return module
    return None


def _free_name(path: Path) -> str:
    """Return the name by which an import statement would find the file; another name if that one is taken."""
    try:
        spec = None if path.stem in sys.modules else importlib.util.find_spec(path.stem)
        taken = path.stem in sys.modules or (spec is not None and Path(spec.origin or "").resolve() != path)
    except (ImportError, ValueError):
        taken = True
    return f"bcos_fx_user_{path.stem}" if taken or not path.stem.isidentifier() else path.stem
