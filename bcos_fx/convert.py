"""bcosify(): the whole pipeline on one page.

trace -> rewrite what preserves the function -> verify -> rewrite what changes it, with its drift -> report -> calibrate
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, get_args

from torch import Tensor, nn

from bcos_fx import artifact as artifact  # registers how a converted network is pickled
from bcos_fx import example
from bcos_fx.calibration import calibrate_
from bcos_fx.checkpoint import published
from bcos_fx.conversion.assembly import assembled
from bcos_fx.conversion.inputs import example_for_original
from bcos_fx.conversion.proof import prove
from bcos_fx.conversion.recorded import recorded_classes, recorded_origin
from bcos_fx.conversion.records import Conversion, ProofMethod
from bcos_fx.conversion.stages import changed, preserved, traced
from bcos_fx.deprecation import formerly
from bcos_fx.errors import UsageError, check_choice
from bcos_fx.heads.layers import with_classes
from bcos_fx.network import BcosNetwork
from bcos_fx.network.size_cache import SizeCache
from bcos_fx.nn import Scale
from bcos_fx.report import Report
from bcos_fx.rewriting.core.options import FROM_RECIPE, FromRecipe
from bcos_fx.rewriting.core.recipe import DEFAULT_RECIPE, load_recipe
from bcos_fx.tracing import own_modes
from bcos_fx.tracing.exported import as_module
from bcos_fx.tracing.inputs import BatchAxis, ExampleInputs
from bcos_fx.validation import check_module

P = ParamSpec("P")


@formerly(output="output_key")
def bcosify(
    module: nn.Module,
    *,
    example_inputs: ExampleInputs | None = None,
    recipe: str | Path = DEFAULT_RECIPE,
    b: float | Mapping[str, float] | None = None,
    mean: Sequence[float] | float | str | None = None,
    std: Sequence[float] | float | None = None,
    rules: Sequence[str | Path] = (),
    images: Tensor | None = None,
    calibration_images: object = None,
    output_key: int | str | None = None,
    classes: Sequence[int | str] | None = None,
    class_names: Sequence[str] | None = None,
    train: Literal["refuse", "eval-graph"] = "refuse",
    verified: bool = True,
    verify: ProofMethod | None = None,
    batch_axis: BatchAxis = 0,
    keep_source: bool = False,
    progress: Callable[[str], None] | None = None,
    scale: Scale | None = None,
    eps: float | Literal["published"] | FromRecipe | None = FROM_RECIPE,
    input: Literal["normalised", "folded", "none"] | None = None,
    channels: Literal["rgb", "bgr"] | None = None,
    pixel_max: float | None = None,
    pool: Literal["keep", "average"] | None = None,
    activation: Literal["keep", "remove"] | None = None,
    bias: Literal["keep", "strip", "strip-all"] | None = None,
    projections: Literal["value-and-output", "output"] | None = None,
    classifier: Literal["pooled", "per-token"] | None = None,
    positions: Literal["keep", "strip", "strip-in-pool"] | None = None,
    head: Literal["keep", "logit"] | None = None,
    logit_bias: float | FromRecipe | None = FROM_RECIPE,
    temperature: float | None = None,
    leaf_modules: Sequence[str] | None = None,
) -> BcosNetwork:
    """Turn a trained network into a B-cos network.

    Args:
        module: any network, or what ``torch.export.export`` made of one; it is not changed.
        example_inputs: what it takes: a tensor (N, ...) with N >= 2, positional or named arguments. None: images
            of 224, 64 or 32 pixels with as many channels as the first convolution reads, whichever runs first.
        recipe: name of a shipped recipe, or path of a TOML file.
        b: alignment pressure B >= 1, one for all layers, or module-name pattern or family (``depthwise``, ``grouped``,
            ``pointwise``) -> B, where the first that fits a layer decides. None, and other layers: the recipe's.
        mean: what the module expects to be subtracted from its images, per channel. The result takes images in
            [0, 1] and computes what the module computes for (x - mean) / std. None: 0. ``"auto"`` reads mean and std
            from the module's ``pretrained_cfg``, as timm keeps it.
        std: what the module expects its images to be divided by afterwards. None: 1.
        rules: more rule files.
        images: (N, C, H, W) in [0, 1], to verify on besides made-up ones, and to measure drift on.
        calibration_images: a few hundred images, in any form that :func:`bcos_fx.calibrate` takes, to calibrate the
            result on with ``module`` as the original. A dry run leaves them unread.
        output_key: which part of the module's output to take, where that is not one tensor: a key, attribute or
            position.
        classes: which classes of a classifier to keep, in order: indices, names, or WordNet ids, as
            :func:`bcos_fx.heads.classes.find_classes` takes them. The original is converted, verified and calibrated
            with all of its classes. None: all.
        class_names: names of the module's classes, in order, kept with the network; None: those that the module
            records (``config.id2label``, ``pretrained_cfg``). For ``classes`` also those of ImageNet-1k where it has
            1,000.
        train: ``refuse`` (``.train()`` raises where the module's train graph is another than its eval graph) or
            ``eval-graph`` (train the eval graph).
        verified: prove that the preserving rules preserved the function, and measure the drift of the others.
        verify: how: ``full`` (both networks as a whole in float64), ``blocks`` (in float64 block by block, and as a
            whole in their own precision) or ``float32`` (as a whole in float32, no gradients). None: ``blocks`` from
            100 million parameters on, else ``full``; docs/verification.md compares them.
        batch_axis: where inputs hold their samples, as for :func:`bcos_fx.explain`; with None (one sample as a whole: a
            graph's nodes, say) or another dimension than 0 the proof runs on whole inputs of the example's shape, and
            on no other numbers of samples.
        keep_source: keep a reference to ``module``, and convert it again for inputs of a size for which the graph does
            not hold, over the same parameters; otherwise such inputs are refused. A file holds the first graph only.
        progress: called with a short text at the start of each stage.
        scale: how the norm of the weights enters the B-cos transform: ``cosine``, ``raw`` or ``unit``. None, here and
            below: the recipe's.
        eps: of the B-cos transform's norm: a number > 0, ``published`` (that of each layer as published), or None
            (each layer's own, by dtype).
        input: how an image is taken: ``normalised`` (encoding, then a fixed map), ``folded`` (the map inside the first
            kernel) or ``none`` (as it is).
        channels: order of the color channels that ``module`` expects: ``rgb`` or ``bgr``.
        pixel_max: the value of a white pixel in the units of mean and std: 1, or 255.
        pool: ``keep``, or ``average`` in place of max pooling.
        activation: ``keep``, or ``remove`` activations on value paths, as in B-cos v2.
        bias: ``keep``; ``strip`` the biases of layers and the shifts of norms on value paths; ``strip-all`` those that
            feed gates alone too.
        projections: layers of attention that become B-cos: ``value-and-output``, or the ``output`` alone.
        classifier: ``pooled``, or ``per-token``: norm and classifier of a vision transformer before the mean over
            its tokens.
        positions: ``keep``, ``strip`` positional embeddings, or ``strip-in-pool`` those of attention pools.
        head: ``keep``, or ``logit``: add a logit layer at the output.
        logit_bias: of that layer; None: log(1 / (C - 1)) for C classes.
        temperature: of that layer, > 0.
        leaf_modules: patterns of the names of modules that stay one operation each; no certificate covers them.

    Returns:
        The converted network, in eval mode, with its ``report``. A network that is already converted comes back as
        an equal copy, and the report says so.

    Raises:
        UsageError: an argument makes no sense.
        TraceError: the module cannot be turned into a graph.
        RuleError, RewriteError: a rule file is wrong, or rules undo each other.
        VerificationError: a preserving rule did not preserve the function; names the rule and the node.

    Example:
        >>> import torch, bcos_fx
        >>> module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> network = bcos_fx.bcosify(module, recipe="equivalent", example_inputs=torch.rand(1, 3, 8, 8))
        >>> images = torch.rand(5, 3, 8, 8)
        >>> torch.allclose(network(images), module(images), atol=1e-5)
        True
    """
    options = _options(
        scale=scale,
        eps=eps,
        input=input,
        channels=channels,
        pixel_max=pixel_max,
        pool=pool,
        activation=activation,
        bias=bias,
        projections=projections,
        classifier=classifier,
        positions=positions,
        head=head,
        logit_bias=logit_bias,
        temperature=temperature,
        leaf_modules=leaf_modules,
    )
    check_module(module := as_module(module))
    check_choice("train", train, ("refuse", "eval-graph"))
    check_choice("verify", "full" if verify is None else verify, get_args(ProofMethod))
    # Parameters that are made in the caller's inference mode could never be trained.
    with own_modes():
        if isinstance(module, BcosNetwork):
            same = example.equal_copy(module)
            known = same.record.classes if class_names is None else tuple(class_names)
            return with_classes(same.with_record(classes=known), classes)
        if batch_axis != 0:
            example.check_whole(example_inputs, has_images=images is not None or calibration_images is not None)
        chosen = example.chosen_options(module, b, mean, std, options)
        loaded = load_recipe(recipe, extra_rules=rules)
        if "mean" not in chosen:
            example.check_statistics(module, loaded.options.mean, loaded.options.std, recipe=loaded.name)
        configured = loaded.with_options(published.options_of(module, loaded, chosen))
        conversion = Conversion(module, configured, chosen, images, output_key, batch_axis, progress, verify)
        preserving = preserved(traced(conversion, example_inputs))
        proof = prove(preserving) if verified else None
        changing = changed(preserving, measured=verified)
        network = published.settled(module, assembled(changing, proof, train))
        known = recorded_classes(module, network.outputs) if class_names is None else tuple(class_names)
        network.with_record(classes=known, origin=recorded_origin(module))
        if calibration_images is not None:
            conversion.begin("calibrating")
            calibrate_(network, calibration_images, module, output_key=output_key, measured=verified, progress=progress)
        if classes is not None:
            if keep_source:
                raise UsageError("keep_source converts the module again, with all of its classes", hint="leave it out")
            network = with_classes(network, classes)
        if keep_source:
            settings: dict[str, Any] = {"recipe": recipe, "b": b, "mean": mean, "std": std, "rules": rules, **options}
            settings |= {"output_key": output_key, "batch_axis": batch_axis, "verify": verify}

            def again(inputs: Sequence[Tensor]) -> BcosNetwork:
                return bcosify(
                    module, example_inputs=example_for_original(preserving, inputs), verified=verified, **settings
                )

            network.keep_source(SizeCache(module, again))
        return network


def _options(**given: Any) -> dict[str, Any]:
    """Return the options that the caller chose; None means the recipe's value for most of them."""
    unset: dict[str, object] = {"eps": FROM_RECIPE, "logit_bias": FROM_RECIPE}
    chosen = {name: value for name, value in given.items() if value is not unset.get(name)}
    leaves = chosen.get("leaf_modules")
    return chosen if leaves is None or isinstance(leaves, str) else chosen | {"leaf_modules": tuple(leaves)}


def _dry_run(convert: Callable[P, BcosNetwork]) -> Callable[P, Report]:
    def plan(*args: P.args, **kwargs: P.kwargs) -> Report:
        """Return what :func:`bcosify` would do, as the report of a dry run.

        Takes the arguments of :func:`bcosify`. The report equals that of the real run, figures apart.
        """
        without: Any = {**kwargs, "verified": False, "calibration_images": None}
        return convert(*args, **without).report

    signature = inspect.signature(convert)
    plan.__dict__["__signature__"] = signature.replace(return_annotation="Report")
    plan.__qualname__ = "plan"
    return plan


plan = _dry_run(bcosify)
"""Return what :func:`bcosify` would do, from the same arguments: the :class:`bcos_fx.Report` of a dry run."""
