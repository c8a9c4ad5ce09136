"""Folders and repositories with a converted network: ``model.safetensors``, ``README.md`` and a picture.

Functions and not ``huggingface_hub.ModelHubMixin``, which writes the constructor's arguments into a ``config.json`` and
the state dict beside it: a converted network is a graph, and its own file holds all of it with a checksum.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bcos_fx.artifact import load, save
from bcos_fx.checkpoint.libraries import cache_alone_if_unreachable, no_connection
from bcos_fx.errors import ArtifactError, UsageError
from bcos_fx.explanation.explain import explain
from bcos_fx.files import replacing
from bcos_fx.hub.card import card
from bcos_fx.lazy import library
from bcos_fx.network import BcosNetwork

WEIGHTS, CARD, PICTURE = "model.safetensors", "README.md", "explanation.png"
PREFIX = "hf:"
"""What a name of the hub begins with where paths are taken too: ``hf:user/name`` or ``hf:user/name@revision``."""


def save_pretrained(
    model: BcosNetwork,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    example: object = None,
    measured: Mapping[str, float | str] | None = None,
) -> Path:
    """Write a network as a folder for the hub: its file, a model card, and a picture of an explanation.

    Files of these names in the folder are replaced; others are left alone.

    Args:
        model: a converted network; it is not changed.
        folder: is made where it does not exist.
        name: of the repository, for the card; None: the folder's.
        example: an image whose explanation is drawn, in any form that ``network.preprocess`` takes; None: no picture.
        measured: name -> figure, such as ``{"GridPG 3x3": 0.81}``, listed in the card.

    Returns:
        The folder.

    Raises:
        UsageError: the folder cannot be written to, or the example is not an image.
        ArtifactError: the network holds something that no file can.
        MissingExtraError: there is an example, and matplotlib is not installed.
    """
    place = Path(folder)
    if place.is_file():
        raise UsageError(
            f"{place} is a file, and a network is published as a folder",
            hint="name a folder, which is made where it does not exist, or hf:user/name to upload to",
        )
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder cannot be made: {error.strerror}", where=str(place)) from error
    if example is not None:
        explain(model, model.preprocess(example)).save(place / PICTURE)
    title = name or Path(os.path.abspath(place)).name
    text = card(model, title, picture=PICTURE if example is not None else None, measured=measured or {})
    save(model, place / WEIGHTS, overwrite=True)
    with replacing(place / CARD, "the model card") as stream:
        stream.write(text.encode())
    return place


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> BcosNetwork:
    """Read a network from the hub or from a folder that :func:`save_pretrained` wrote. Nothing in it is run.

    Args:
        source: ``user/name`` of the hub, or a folder or file. What exists as a path is one.
        revision: a branch, tag or commit of the hub's repository.
        device: where to put the tensors.
        options: for ``huggingface_hub.hf_hub_download``, such as ``token``, ``cache_dir`` and ``local_files_only``.

    Raises:
        ArtifactError: it is not available, or not a network that bcos_fx wrote.
        MissingExtraError: it is on the hub, and huggingface_hub is not installed.
    """
    path = Path(source)
    if not path.exists():
        path = weights_of(os.fspath(source).removeprefix(PREFIX), revision=revision, **options)
    return load(path / WEIGHTS if path.is_dir() else path, device=device)


def weights_of(name: str, *, revision: str | None = None, **options: Any) -> Path:
    """Return the file of a network on the hub, downloaded into its cache where it is not there.

    Args:
        name: ``user/name`` or ``user/name@revision``.
        revision: a branch, tag or commit.
        options: for ``huggingface_hub.hf_hub_download``.

    Raises:
        ArtifactError: there is no such repository, it holds no such file, or it cannot be reached.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = library("huggingface_hub", "hub", f"reading {name} from the hub")
    repository, at, named = name.partition("@")
    try:
        with cache_alone_if_unreachable():
            file = hub.hf_hub_download(repository, WEIGHTS, revision=named if at else revision, **options)
    except Exception as error:
        raise _unreachable(repository, error, options.get("cache_dir")) from error
    return Path(file)


def push_to_hub(
    model: BcosNetwork,
    repository: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload a B-cos network",
    example: object = None,
    measured: Mapping[str, float | str] | None = None,
) -> str:
    """Upload a network to the hub, with its card; return its address.

    Args:
        model: a converted network; it is not changed.
        repository: ``user/name``; it is made where it does not exist.
        private: of a new repository.
        token: of the hub; None: the one that ``hf auth login`` stored.
        message: of the commit.
        example: as for :func:`save_pretrained`.
        measured: as for :func:`save_pretrained`.

    Raises:
        ArtifactError: the hub cannot be reached, or does not allow it.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = library("huggingface_hub", "hub", f"uploading {repository} to the hub")
    utils = library("huggingface_hub.utils", "hub", "uploading to the hub")
    try:
        utils.validate_repo_id(repository)
    except utils.HFValidationError as error:
        raise _unreachable(repository, error) from error
    address = library("huggingface_hub.constants", "hub", "the hub").ENDPOINT
    if no_connection(address):
        what = f"{repository} cannot be uploaded: there is no connection to {address}"
        raise ArtifactError(what, where=f"{PREFIX}{repository}", hint="write a folder, and upload it later")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, name=repository, example=example, measured=measured)
        try:
            api = hub.HfApi(token=token, library_name="bcos_fx")
            # Written to a folder first, so that nothing is uploaded of a network that cannot be saved.
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except Exception as error:
            raise _unreachable(repository, error) from error
    return f"https://huggingface.co/{repository}"


def _unreachable(repository: str, error: Exception, cache: object = None) -> ArtifactError:
    """Return the error for a repository that is not available; the hub's library may raise any of its transport's."""
    errors = library("huggingface_hub.errors", "hub", "reaching the hub")
    hint = "without a connection only what is in the cache can be read (HF_HOME moves it), or a folder"
    if isinstance(error, errors.HFValidationError):
        hint = "write it as user/name, or give the path of a folder or file that exists"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        hint = f"a converted network is there as {WEIGHTS}; other networks are converted first: bcos-fx convert"
    elif isinstance(error, errors.RepositoryNotFoundError):
        hint = "look at the name again; private and gated ones need `hf auth login`"
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        constants = library("huggingface_hub.constants", "hub", "the hub")
        cache = constants.HF_HUB_CACHE if cache is None else cache
        reason = f"{WEIGHTS} is not in the cache {cache}, and {constants.ENDPOINT} is not reached"
    return ArtifactError(f"{repository} cannot be fetched from the hub: {reason}", where=f"hf:{repository}", hint=hint)
