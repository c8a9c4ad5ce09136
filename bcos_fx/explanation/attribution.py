"""Contributions behind the interfaces of captum and Quantus, so that their tools and metrics take them."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.explanation.explain import explain
from bcos_fx.explanation.targets import Target


class Contributions:
    """What each input contributes to an output: W(x)·x, elementwise, in the input's own shape.

    An encoded image contributes through x and through 1 - x; the two are added up for each channel.

    Args:
        forward_func: a dynamic linear network in eval mode.
        output: what is explained, as for :func:`bcos_fx.explain`.
    """

    def __init__(self, forward_func: nn.Module, *, output: str | None = None) -> None:
        self.forward_func = forward_func
        self.output = output

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Tensor | tuple[Tensor, ...] | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Return the contributions of the first input.

        Args:
            inputs: (N, C, H, W) or whatever the network takes, or a tuple of one such tensor; not changed.
            target: an index, a tensor or list of one index per sample, or None for the predicted class.
            additional_forward_args: the network's further inputs: a tensor, or a tuple of them.
            return_convergence_delta: return what the contributions and constants leave over, too.

        Returns:
            A tensor in the input's shape (in a tuple where the inputs were in one); with
            ``return_convergence_delta`` a pair of it and the residual (N,).

        Raises:
            UsageError: several inputs, several targets per sample, or a target that does not fit.
            VerificationError: the network is not dynamic linear.
        """
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        if len(given) != 1:
            raise UsageError(
                f"{amount(len(given), 'input')} were given to explain at once",
                hint="give the first alone, the others as additional_forward_args",
            )
        more = additional_forward_args if additional_forward_args is not None else ()
        others = more if isinstance(more, tuple) else (more,)
        explanation = explain(self.forward_func, given[0], target, output=self.output, others=others)
        if explanation.several:
            raise UsageError(
                f"the target names {explanation.output.shape[1]} outputs of each sample",
                hint="give one index per sample; bcos_fx.explain takes several",
            )
        folded = explanation.channel_contributions
        if folded.shape != given[0].shape:  # an encoded image contributes by both halves of [x, 1 - x]
            folded = torch.stack(folded.chunk(2, dim=1)).sum(0)
        attributed = (folded,) if isinstance(inputs, tuple) else folded
        return (attributed, explanation.residual) if return_convergence_delta else attributed

    def has_convergence_delta(self) -> bool:
        """Return True: :meth:`attribute` can return what is left over."""
        return True


def contributions_as_arrays(
    model: nn.Module, inputs: npt.NDArray[Any], targets: npt.NDArray[Any], **options: Any
) -> npt.NDArray[Any]:
    """Return the contributions of images, as Quantus calls an explanation function.

    Args:
        model: a dynamic linear network in eval mode.
        inputs: (N, C, H, W), or whatever the network takes first; not changed.
        targets: (N,) indices of outputs.
        options: what Quantus passes besides, such as ``device``; not used.

    Returns:
        An array in the shape of ``inputs``.

    Raises:
        UsageError, VerificationError: as for :meth:`Contributions.attribute`.
    """
    # Quantus passes float32 arrays, whatever the precision of the model.
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    given, indices = torch.as_tensor(inputs).to(like), torch.as_tensor(targets).long().to(like.device)
    contributions: npt.NDArray[Any] = Contributions(model).attribute(given, indices).cpu().numpy()
    return contributions
