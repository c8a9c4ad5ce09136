"""B-cos layers: each is torch's layer of the same name with the B-cos transform in place of w.x.

    y = |cos(x, w)|^(B-1) * (w.x) + bias

The cosine is that of the product without bias. Source: Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022,
section 3.1; Böhle et al., "B-cos Alignment for Inherently Interpretable CNNs and Vision Transformers", TPAMI 2024;
for B = 1 as the plain layer, Arya et al., "B-cosification", NeurIPS 2024, section 3.

For a convolution x is the patch that the kernel sees, per group. Its |x|^2 is the convolution of the energy per
pixel with a kernel of ones: see :mod:`bcos_fx.nn.conv`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcos_fx.errors import UsageError
from bcos_fx.nn.dynamic import DynamicLayer, require_exactly
from bcos_fx.nn.functional import alignment, bcos_scale, bcos_scale_by, default_eps, energy, statistics_dtype

Scale = Literal["cosine", "raw", "unit"]
EpsAt = Literal["square", "norm"]
_SCALES = ("cosine", "raw", "unit")
PUBLISHED_CONVOLUTION_EPS = 1e-6
"""Added to |x|^2 by the convolutions of B-cos v2 and of B-cosification, as published."""
PUBLISHED_LINEAR_EPS = 1e-12
"""Added to |x| by their linear layers."""
_PLACES = ("square", "norm")


class BcosLayer(DynamicLayer):
    """What the B-cos layers share; used through its subclasses.

    Attributes:
        b: the alignment pressure B, finite and >= 1; may be assigned. At 1 the layer is the plain one.
        scale: how |w| enters. ``cosine``: |w.x| / (|w| |x|). ``raw``: |w.x| / |x|, so the output grows with |w|^B.
            ``unit``: the function of ``cosine`` with w = gain * w/|w|; the stored weight's own length is ignored.
        eps: |x| = sqrt(sum x^2 + eps); None for :func:`~bcos_fx.nn.functional.default_eps`.
        eps_at: ``square`` as above, or ``norm``: |x| = sqrt(sum x^2) + eps.
        pressure: B as a tensor of one number that training moves, in place of ``b``; None, unless :meth:`follow` was
            called. No part of the layer's state, and explanations read ``b``: whoever moves the one sets the other.
        gain: Parameter (outputs,) for ``unit``, unless the constructor is given ``gain=False``: then, as for the other
            scales, None, and w = w/|w|.

    A patch of zeros gives 0 (+ bias) and the gradient 0 there at every B > 1. Norms of 16-bit inputs are
    computed in float32, under autocast too. An output whose weight is all zeros stays 0 (+ bias).
    """

    plain_class: ClassVar[type[nn.Module]]
    plain_options: ClassVar[tuple[str, ...]]
    spatial: ClassVar[int] = 0

    weight: Tensor
    bias: Any  # a Parameter or None: torch's layers differ in how they declare it
    gain: nn.Parameter | None
    scale: Scale
    eps: float | None
    eps_at: EpsAt
    pressure: Tensor | None = None

    def _set_transform(
        self, b: float, scale: Scale, eps: float | None, gain: bool = True, eps_at: EpsAt = "square"
    ) -> None:
        """Validate and store the B-cos options; the plain layer has been initialized before."""
        for name, value, known in (("scale", scale, _SCALES), ("eps_at", eps_at, _PLACES)):
            if value not in known:
                raise UsageError(f"{name} is {value!r}", hint=f"choose one of {', '.join(known)}")
        if eps is not None and not (math.isfinite(eps) and eps > 0):
            raise UsageError(f"eps is {eps!r}, not a positive number", hint="leave it out for the dtype's own")
        self.b, self.scale, self.eps, self.eps_at = b, scale, eps, eps_at
        self.register_parameter("gain", self._initial_gain() if scale == "unit" and gain else None)

    def _initial_gain(self) -> nn.Parameter:
        return nn.Parameter(self._weight_norm().detach().flatten().to(self.weight.dtype))

    @property
    def b(self) -> float:
        """The alignment pressure B."""
        return self._b

    @b.setter
    def b(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 1):
            raise UsageError(f"b is {value!r}", where=type(self).__name__, hint="B is a finite number >= 1")
        self._b = float(value)

    def follow(self, pressure: Tensor | None) -> None:
        """Compute with B from a tensor of one number, >= 1, whose gradient is then computed too; None: with ``b``."""
        # Not through Module's own setting of attributes, which would make a Parameter part of the layer.
        self.__dict__["pressure"] = pressure

    @classmethod
    def published_eps(cls) -> dict[str, Any]:
        """Return ``eps`` and ``eps_at`` of such a layer as published: sqrt(sum x^2 + 1e-6), or |x| + 1e-12."""
        if cls.spatial:
            return {"eps": PUBLISHED_CONVOLUTION_EPS, "eps_at": "square"}
        return {"eps": PUBLISHED_LINEAR_EPS, "eps_at": "norm"}

    @classmethod
    def from_plain(
        cls,
        module: nn.Module,
        *,
        b: float = 1.0,
        scale: Scale = "cosine",
        eps: float | None = None,
        eps_at: EpsAt = "square",
    ) -> Self:
        """Build the B-cos layer of a plain one, which stays as it is.

        Args:
            module: a layer of exactly the torch.nn class that this class extends.
            b: alignment pressure; at 1 the result computes what ``module`` does.
            scale: how the weight's norm enters.
            eps: see the class.
            eps_at: see the class.

        Returns:
            A layer with every option of ``module`` and **the same Parameter objects**, training flag, dtype, device.

        Raises:
            UsageError: ``module`` is of another class (a subclass may compute something else).
        """
        require_exactly(module, cls.plain_class, cls)
        if not isinstance(module.weight, nn.Parameter):
            raise UsageError(
                f"the weight of {type(module).__name__} is computed, not a Parameter",
                hint="remove the hook or parametrisation that computes it first",
            )
        options: dict[str, Any] = {name: getattr(module, name) for name in cls.plain_options}
        # On the meta device nothing is allocated and no random numbers are drawn for weights that are replaced.
        layer = cls(**options, bias=module.bias is not None, device="meta", b=b, eps=eps)
        layer.weight, layer.bias = module.weight, module.bias
        layer._set_transform(b, scale, eps, eps_at=eps_at)
        return layer.train(module.training)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer; shapes as the plain layer's. ``output_size`` is for transposed convolutions."""
        if self.pressure is not None:
            x, norm = self._input_norm(x, output_size)
            product = self._product(x, output_size)
            return self._affine(bcos_scale_by(product, norm, self._cosine_weight_norm(), self.pressure))
        # At B = 1 torch's own forward runs, so that a conversion at B = 1 repeats the original to the last bit.
        if self.b == 1 and self.scale != "unit":
            return self._plain_forward(x, output_size)
        if self.b == 1:
            return self._affine(self._product(x, output_size))
        return self._affine(self._scaled_product(x, output_size))

    def _scaled_product(self, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
        """Compute the B-cos transform at B > 1, without gain and bias."""
        # Norms first: x is then read while in cache, and the product is scaled while in cache.
        x, norm = self._input_norm(x, output_size)
        weight_norm = self._cosine_weight_norm()
        return bcos_scale(self._product(x, output_size), norm, weight_norm, self.b)

    def decompose(self, x: Tensor, output_size: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Split into w.x and |cos(x, w)|^(B-1), both in the output's shape (the factor is a single 1 at B = 1)."""
        linear = self._product(x, output_size)
        if self.b == 1:
            return linear, linear.new_ones(())
        return linear, alignment(linear, *self._norms(x, output_size), self.b)

    def recompose(self, linear: Tensor, factor: Tensor) -> Tensor:
        """Multiply, then apply gain and bias."""
        return self._affine(linear * factor)

    def frozen(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the layer's value with |cos|^(B-1) and all parameters detached: its gradient is the dynamic weight."""
        linear = self._map(x, self._held_weight(), output_size)
        if self.b > 1:
            with torch.no_grad():
                factor = alignment(linear, *self._norms(x, output_size), self.b)
            linear = linear.mul_(factor)  # a product does not keep its result for the backward pass
        return self._affine(linear, held=True)

    @torch.no_grad()
    def scale_output_(self, factors: Tensor) -> None:
        """Multiply the layer's output, bias apart, by a factor per channel (outputs,), in place.

        The factor goes into the gain or, where there is none, into the weight: the cosine does not depend on |w|, so
        the output of ``cosine`` grows with w; that of ``raw`` with w^B.

        Raises:
            UsageError: ``unit`` without a gain, where nothing in the layer sets its output's size.
        """
        if self.gain is not None:
            self.gain.mul_(factors)
        elif self.scale == "unit":
            raise UsageError("the weight's length has no effect, and there is no gain", where=type(self).__name__)
        else:
            root = factors.sign() * factors.abs() ** (1 / self.b)
            self.weight.mul_(self._per_output(root if self.scale == "raw" else factors))

    def _per_output(self, values: Tensor) -> Tensor:
        """Shape values (outputs,) to broadcast to the weight."""
        return values.view(-1, *[1] * (self.weight.dim() - 1))

    def constant_like(self, y: Tensor) -> Tensor:
        """Return the bias, detached, in y's dtype and shaped to broadcast to it."""
        constant: Tensor = self.bias.detach().to(y.dtype).view(-1, *[1] * self.spatial)
        return constant

    def _held_weight(self) -> Tensor:
        return self._effective_weight().detach()

    def _plain_forward(self, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
        """Call the plain class's own forward, which at B = 1 keeps every bit of its result."""
        y: Tensor = self.plain_class.forward(self, x)
        return y

    def _map(self, x: Tensor, weight: Tensor, output_size: Sequence[int] | None) -> Tensor:
        """Return the plain layer's product with any weight, without bias."""
        raise NotImplementedError

    def _pool(self, energies: Tensor, output_size: Sequence[int] | None) -> Tensor:
        """Sum the energies that each output position sees; never negative."""
        return energies

    def _groups(self) -> int:
        return 1

    def _steps(self, output_size: Sequence[int] | None) -> Sequence[int]:
        """Return the spacing of the only pixels that the layer reads, by spatial dimension; empty if it reads all."""
        return ()

    def _weight_norm(self) -> Tensor:
        """Return |w| per output channel and group, never 0, shaped (outputs, 1, ...) to broadcast to an output."""
        return self._floored_norm(self.weight, tuple(range(1, self.weight.dim())))

    def _floored_norm(self, weight: Tensor, dim: tuple[int, ...]) -> Tensor:
        dtype = statistics_dtype(weight.dtype)
        norm: Tensor = torch.linalg.vector_norm(weight, dim=dim, dtype=dtype)
        return norm.clamp_min(math.sqrt(default_eps(dtype))).view(-1, *[1] * self.spatial)

    def _unit_weight(self) -> Tensor:
        """Return w/|w|, each output's slice divided by its norm; 0, with gradient 0, for a weight of zeros."""
        return (self.weight * self._inverse_weight_norm().unsqueeze(1)).to(self.weight.dtype)

    def _inverse_weight_norm(self) -> Tensor:
        norm = self._weight_norm()
        # The norm was clamped from below, so a weight of zeros is found by the bound itself.
        return torch.where(norm > math.sqrt(default_eps(norm.dtype)), norm.reciprocal(), 0)

    def _product(self, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
        """Return w.x, without bias and gain."""
        return self._map(x, self._effective_weight(), output_size)

    def _effective_weight(self) -> Tensor:
        return self._unit_weight() if self.scale == "unit" else self.weight

    def _norms(self, x: Tensor, output_size: Sequence[int] | None) -> tuple[Tensor, Tensor | None]:
        """Return |x|, and |w| where the product is still to be divided by it."""
        return self._input_norm(x, output_size)[1], self._cosine_weight_norm()

    def _cosine_weight_norm(self) -> Tensor | None:
        return self._weight_norm() if self.scale == "cosine" else None

    def _input_norm(self, x: Tensor, output_size: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """Return x to multiply (see :func:`energy`) and |x| per output position and group, in float32 or wider."""
        # Where there is nothing to compute (the meta device) there is no autocast, and asking for it fails.
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._input_norm(x, output_size)
        x, energies = energy(x, dim=-1 - self.spatial, groups=self._groups(), steps=self._steps(output_size))
        total = self._pool(energies, output_size)  # newly allocated, so it becomes the norm in place
        square_eps, norm_eps = self._stabilizers(x.dtype)
        root = total.add_(square_eps).sqrt_()
        return x, root + norm_eps if norm_eps else root

    def _stabilizers(self, dtype: torch.dtype) -> tuple[float, float]:
        """Return what is added to |x|^2 and what to its root, for inputs of a dtype."""
        eps = default_eps(dtype) if self.eps is None else self.eps
        # Under the root too, where it changes nothing but the gradient at 0.
        return (default_eps(dtype), eps) if self.eps_at == "norm" else (eps, 0.0)

    def _affine(self, y: Tensor, *, held: bool = False) -> Tensor:
        """Apply gain and bias, detached if ``held``, in y's dtype as autocast would."""
        if self.gain is not None:
            gain = self.gain.detach() if held else self.gain
            y = y * gain.to(y.dtype).view(-1, *[1] * self.spatial)
        if self.bias is not None:
            bias = self.bias.detach() if held else self.bias
            y = y + bias.to(y.dtype).view(-1, *[1] * self.spatial)
        return y

    def extra_repr(self) -> str:
        """Return the plain layer's options, then b and scale."""
        return f"{super().extra_repr()}, b={self.b:g}, scale={self.scale}"


class BcosLinear(BcosLayer, nn.Linear):
    """B-cos form of :class:`torch.nn.Linear`: (..., in_features) to (..., out_features)."""

    plain_class = nn.Linear
    plain_options = ("in_features", "out_features")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        b: float = 2.0,
        scale: Scale = "cosine",
        eps: float | None = None,
        gain: bool = True,
        eps_at: EpsAt = "square",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_transform(b, scale, eps, gain, eps_at)

    def _map(self, x: Tensor, weight: Tensor, output_size: Sequence[int] | None) -> Tensor:
        return F.linear(x, weight)
