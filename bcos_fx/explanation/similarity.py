"""How much an image is like a text, as something to explain: the cosine of their embeddings.

With z the image's embedding and t the text's, both from one image-text model (Radford et al., ICML 2021):

    cos(z, t) = z·t / (‖z‖ ‖t‖),        explained: |cos|^(p-1) · cos,   p = 1 unless asked otherwise.

z is a dynamic linear function of the image, so z·t is one too; 1/‖z‖ and |cos|^(p-1) only weight it, and are held fixed
as the alignment of a B-cos layer is (Böhle et al., CVPR 2022, section 3.2). Contributions then add up to the score.
Were ‖z‖ not held fixed they would add up to 0, whatever the image: the cosine does not change when z grows, so
z·∂cos/∂z = 0. p > 1 takes weight from places that are little like the text (Arya et al., NeurIPS 2024, on text
localization).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bcos_fx.errors import UsageError, check_choice
from bcos_fx.text.embedding import TextEmbeddings

LOCATIONS = ("max", "mean")


class Cosine:
    """The target of :func:`bcos_fx.explain` that :func:`cosine` returns.

    Attributes:
        names: what each of the K texts is called.
        location: which place counts; None where there is one embedding of the whole image.
    """

    def __init__(
        self, directions: Tensor, names: tuple[str, ...], *, single: bool, power: float, location: str | None
    ) -> None:
        self.names = names
        self._directions, self._single = directions, single
        self._power, self.location = power, location

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the scores (N, K), or (N,) for a text that was given alone; linear in the outputs when differentiated.

        Args:
            outputs: (N, D) embeddings, or one for each place: (N, D, H, W) or (N, L, D).

        Raises:
            UsageError: the texts have another size, or there are places and ``location`` does not name which counts.
        """
        places = self._places(outputs)
        directions = self._directions.to(outputs)
        norms = places.detach().norm(dim=-1, keepdim=True)
        # An embedding of nothing is like nothing: 0, not NaN.
        cosines = places @ directions.T / torch.where(norms > 0, norms, 1)
        scores = self._at_location(cosines * cosines.detach().abs().pow(self._power - 1))
        return scores[:, 0] if self._single else scores

    def _places(self, outputs: Tensor) -> Tensor:
        """Return the embeddings (N, L, D) of all places; L is 1 for one embedding of the whole image."""
        width = self._directions.shape[1]
        axis = {2: 1, 3: 2, 4: 1}.get(outputs.dim())
        if axis is None or outputs.shape[axis] != width:
            raise UsageError(
                f"the text embeddings have {width} numbers, the network's output has shape {tuple(outputs.shape[1:])}",
                hint="embed the texts with the text tower that belongs to this image tower",
            )
        if outputs.dim() > 2 and self.location is None:
            raise UsageError(
                f"the network gives an embedding for each place, {tuple(outputs.shape[1:])}",
                hint='say which counts with location="max" or location="mean"',
            )
        if outputs.dim() == 4:
            return outputs.flatten(2).transpose(1, 2)
        return outputs.unsqueeze(1) if outputs.dim() == 2 else outputs

    def _at_location(self, scores: Tensor) -> Tensor:
        """Return scores (N, K) of (N, L, K): of the place that is most like the text, or their mean."""
        if self.location == "max":
            best = scores.detach().argmax(1, keepdim=True)
            return scores.gather(1, best).squeeze(1)
        return scores.mean(1)


def cosine(
    texts: TextEmbeddings | Tensor,
    *,
    names: Sequence[str] | None = None,
    power: float = 1.0,
    location: str | None = None,
) -> Cosine:
    """Return the target that explains how much an image is like texts.

    Args:
        texts: embeddings (K, D), or (D,) of one text; any length but 0.
        names: of the K texts, where they are a tensor.
        power: p >= 1: the score is |cos|^(p-1) · cos.
        location: for networks that give an embedding for each place: ``max``, the place that is most like the text, or
            ``mean``, of all places.

    Raises:
        UsageError: embeddings of another form, or an option that makes no sense.
    """
    vectors = texts.vectors if isinstance(texts, TextEmbeddings) else texts
    single = vectors.dim() == 1
    rows = vectors.detach().double().reshape(-1, vectors.shape[-1]) if vectors.dim() in (1, 2) else vectors
    if rows.dim() != 2 or not rows.numel() or not bool(torch.isfinite(rows).all()) or bool((rows == 0).all(1).any()):
        raise UsageError(
            f"{tuple(vectors.shape)} are not text embeddings", hint="give (K, D) finite numbers, no row of zeros"
        )
    if isinstance(power, bool) or not isinstance(power, int | float) or not 1 <= power < float("inf"):
        raise UsageError(f"power is {power!r}", hint="give a number of at least 1")
    if location is not None:
        check_choice("location", location, LOCATIONS)
    called = texts.names if isinstance(texts, TextEmbeddings) else names
    called = tuple(called) if called is not None else tuple(f"text {place}" for place in range(len(rows)))
    if len(called) != len(rows):
        raise UsageError(f"{len(called)} names were given for {len(rows)} texts")
    return Cosine(rows / rows.norm(dim=1, keepdim=True), called, single=single, power=float(power), location=location)
