"""Running a network on test cases without touching it: on a copy, under its own random state.

Two networks are compared by running each alone, so that never more than one copy is in memory, and so
that neither can read what the other wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bcos_fx.errors import FORWARD_ERRORS, BcosFxError, UsageError
from bcos_fx.seeding import preserved, seed_all
from bcos_fx.tracing import own_modes
from bcos_fx.tracing.modules import deep_copy
from bcos_fx.verification.samples import CallInputs
from bcos_fx.verification.widening import Widened

M = TypeVar("M", bound=nn.Module)

FAILURES = (BcosFxError, *FORWARD_ERRORS)


@dataclass(frozen=True)
class Case:
    """One run of a network.

    Attributes:
        name: for people, such as "eval, batch 2".
        batch: the inputs.
        group: cases of one group are the same experiment on other samples; their outputs vary together.
        training: run in train mode, which may change the copy's buffers.
        gradient: name of the gradient with respect to the inputs, where that is wanted beside the outputs.
        optional: a network that refuses this input is not at fault.
    """

    name: str
    batch: CallInputs
    group: str
    training: bool = False
    gradient: str = ""
    optional: bool = False

    def results(self, outcome: Outcome) -> dict[str, Outcome]:
        """Return the outputs, and the gradient if the case asks for that, by name: what stops one stops the other."""
        gradient = {self.gradient: outcome.gradient or outcome} if self.gradient else {}
        return {self.name: outcome, **gradient}


@dataclass(frozen=True)
class Outcome:
    """The result of a run: tensors on the CPU by their place in the output, or the error that stopped it.

    Attributes:
        values: the tensors.
        failure: the error; there are no values then.
        gradient: the input gradients, where the case asks for them and the outputs were computed.
    """

    values: Mapping[str, Tensor]
    failure: Exception | None = None
    gradient: Outcome | None = None


def list_storages(module: nn.Module) -> frozenset[int]:
    """Return the memory addresses of all tensors that the module tree holds, registered or plain attributes."""
    addresses: set[int] = set()
    for part in module.modules():
        held = [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]
        tensors = [value for value in held if isinstance(value, Tensor) and not nn.parameter.is_lazy(value)]
        addresses.update(t.untyped_storage().data_ptr() for t in tensors if t.layout == torch.strided)
    return frozenset(addresses - {0})


def isolated_copy(module: M, *, dtype: torch.dtype, apart_from: frozenset[int], role: str, lean: bool = False) -> M:
    """Copy a module, in ``dtype`` and eval mode, and make sure that the copy shares no memory.

    Args:
        module: left as it is.
        dtype: of the copy's floating-point parameters and buffers.
        apart_from: addresses (see :func:`list_storages`) that the copy must not use.
        role: what the module is, for the message.
        lean: of a module in eval mode, share the parameters that are in ``dtype`` already: of one whose forward is
            known to leave them as they are, and to be run without gradients.

    Raises:
        UsageError: the module cannot be copied, or its copy shares memory with a module of the caller's.
    """
    hint = "a network under comparison must be copyable by copy.deepcopy, tensors included"
    lean = lean and not any(part.training for part in module.modules())
    shared = {id(p): p for p in module.parameters() if p.dtype == dtype} if lean else {}
    try:
        twin = deep_copy(module, shared)
    except FAILURES as error:
        raise UsageError(f"the {role} cannot be copied: {error}", where=type(module).__name__, hint=hint) from error
    allowed = {parameter.untyped_storage().data_ptr() for parameter in shared.values()}
    if twin is module or list_storages(twin) & apart_from - allowed:
        raise UsageError(f"the {role}'s copy shares tensors with it", where=type(module).__name__, hint=hint)
    if lean:  # its mode and its parameters are the caller's, and stay
        return twin.to(dtype)
    # No parameter gradients are wanted; not recording for them halves the memory of the gradient cases.
    twin.requires_grad_(False)
    # Some networks fold weights for inference when eval() is called: train() first makes them fold again.
    twin = twin.to(dtype)
    with suppress(BcosFxError):  # to train mode and back drops what an eval forward cached; one may refuse to train
        twin.train()
    return twin.eval()


def run_cases(
    module: nn.Module,
    cases: Sequence[Case],
    *,
    dtype: torch.dtype,
    apart_from: frozenset[int],
    role: str,
    seed: int,
    transform: Callable[[Tensor], Tensor] | None,
    widened: bool = False,
    prepare: Callable[[nn.Module], object] | None = None,
    lean: bool = False,
) -> list[Outcome]:
    """Run all cases, in order, on one copy of the module that is dropped afterwards.

    Args:
        module: left as it is.
        cases: their tensors are left as they are.
        dtype: floating-point precision of copy and inputs.
        apart_from: addresses that the copy must not use.
        role: what the module is, for messages.
        seed: of every random generator, before each case; also of the projection of gradient cases.
        transform: applied to the first tensor of each case, inside the gradient; None for none.
        widened: compute in float64 where the module says float32.
        prepare: changes the copy first, in place; None for nothing.
        lean: as for :func:`isolated_copy`; not beside ``prepare``.
    """
    with own_modes(), torch.enable_grad():
        lean = lean and prepare is None
        twin = isolated_copy(module, dtype=dtype, apart_from=apart_from, role=role, lean=lean)
        if prepare is not None:
            prepare(twin)
        outcomes = []
        for case in cases:
            if twin.training != case.training:
                twin.train(case.training)
            try:
                with preserved():
                    seed_all(seed)
                    run = _run(twin, case, dtype=dtype, seed=seed, transform=transform, widened=widened)
                    outcomes.append(run)
            except FAILURES as failure:
                outcomes.append(Outcome({}, failure))
        return outcomes


def coarsest_precision(
    module: nn.Module,
    case: Case,
    *,
    dtype: torch.dtype,
    apart_from: frozenset[int],
    seed: int,
    transform: Callable[[Tensor], Tensor] | None,
) -> torch.dtype:
    """Find the coarsest precision of all values that a network computes from its inputs and parameters.

    Args: as of :func:`run_cases`; the case is one that the network runs.
    """
    with own_modes(), torch.enable_grad():
        twin = isolated_copy(module, dtype=dtype, apart_from=apart_from, role="original network").requires_grad_()
        precisions = _Precisions(dtype)
        with preserved(), suppress(*FAILURES), precisions:
            seed_all(seed)
            # A gradient is asked for so that the values that depend on the inputs can be told from tables.
            with_gradient = dataclasses.replace(case, gradient="input gradient")
            _run(twin, with_gradient, dtype=dtype, seed=seed, transform=transform)
    return precisions.coarsest


class _Precisions(TorchFunctionMode):
    """Notes the coarsest precision of everything that depends on what requires a gradient."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.coarsest = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.requires_grad:
                self.coarsest = max(self.coarsest, value.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return result


def _run(
    module: nn.Module,
    case: Case,
    *,
    dtype: torch.dtype,
    seed: int,
    transform: Callable[[Tensor], Tensor] | None,
    widened: bool = False,
) -> Outcome:
    leaves = copy_to_device_of(case.batch, module, dtype=dtype)
    for tensor in leaves.tensors:
        tensor.requires_grad_(bool(case.gradient) and tensor.is_floating_point())
    # A network may work in place on what it is given, which a leaf with a gradient would forbid.
    arguments = transform_first(leaves.map(torch.clone), transform)
    reading = Widened(arguments.tensors) if widened else nullcontext()
    with torch.set_grad_enabled(bool(case.gradient)), reading:
        outputs = dict(_flat(arguments.call(module)))
    gradient = None
    if case.gradient:
        try:
            gradient = Outcome(_detached(_input_gradients(outputs, leaves, seed=seed)))
        except FAILURES as failure:  # the outputs can be compared all the same
            gradient = Outcome({}, failure)
    return Outcome(_detached(outputs), gradient=gradient)


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {place: value.detach().cpu() for place, value in values.items()}


def copy_to_device_of(batch: CallInputs, module: nn.Module, *, dtype: torch.dtype) -> CallInputs:
    """Copy a batch to the module's device, its floating-point tensors in ``dtype``."""
    device = (*module.parameters(), *module.buffers(), batch.tensors[0])[0].device

    def place(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    return batch.map(place)


def transform_first(batch: CallInputs, transform: Callable[[Tensor], Tensor] | None) -> CallInputs:
    """Apply ``transform`` to the first tensor of a batch."""
    if transform is None:
        return batch
    first, *others = batch.tensors
    return dataclasses.replace(batch, tensors=(transform(first), *others))


def _flat(value: object, place: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a nested output with their places, such as "output['boxes'][0]"."""
    if isinstance(value, Tensor):
        # Subclasses bring operations of their own, which a comparison must not depend on.
        plain = value if type(value) is Tensor else value.as_subclass(Tensor)
        yield place, torch.view_as_real(plain) if plain.is_complex() else plain
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(item, f"{place}[{index}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _flat(getattr(value, field.name), f"{place}.{field.name}")


def _input_gradients(outputs: Mapping[str, Tensor], leaves: CallInputs, *, seed: int) -> dict[str, Tensor]:
    """Return the gradient of a fixed random projection of all outputs by each floating-point input, or zeros."""
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    for value in outputs.values():
        # Drawn for every output, also one without a gradient, so that both networks' draws stay in step.
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.requires_grad:
            part = (value * direction.to(value)).sum()
            total = part if total is None else total + part
    inputs = [tensor for tensor in leaves.tensors if tensor.requires_grad]
    gradients = torch.autograd.grad(total, inputs, allow_unused=True) if total is not None else (None,) * len(inputs)
    return {
        f"input {index}": torch.zeros_like(tensor) if gradient is None else gradient
        for index, (tensor, gradient) in enumerate(zip(inputs, gradients, strict=True))
    }
