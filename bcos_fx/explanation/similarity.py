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
from dataclasses import dataclass

import torch
from torch import Tensor

from bcos_fx.errors import UsageError, check_choice
from bcos_fx.text.embedding import TextEmbeddings

LOCATIONS = ("max", "mean")


@dataclass(frozen=True, eq=False)
class Cosine:
    """The target of :func:`bcos_fx.explain` that :func:`cosine` returns.

    Attributes:
        directions: (K, D) embeddings of the texts, each of length 1.
        names: what each of the K texts is called.
        single: a text was given alone, so there is no dimension K.
        power: p of the score |cos|^(p-1) · cos.
        location: which place counts; None where there is one embedding of the whole image.
    """

    directions: Tensor
    names: tuple[str, ...]
    single: bool
    power: float
    location: str | None

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the scores (N, K), or (N,) for a text that was given alone; linear in the outputs when differentiated.

        Args:
            outputs: (N, D) embeddings, or one for each place: (N, D, H, W) or (N, L, D).

        Raises:
            UsageError: the texts have another size, or there are places and ``location`` does not name which counts.
        """
        places = self._places(outputs)
        directions = self.directions.to(outputs)
        norms = places.detach().norm(dim=-1, keepdim=True)
        # An embedding of nothing is like nothing: 0, not NaN.
        cosines = places @ directions.T / torch.where(norms > 0, norms, 1)
        scores = cosines * cosines.detach().abs().pow(self.power - 1)
        if self.location == "max":
            # Which place it is depends on the image, and is held fixed as the routing of a max pooling is.
            scores = scores.gather(1, scores.detach().argmax(1, keepdim=True)).squeeze(1)
        else:
            scores = scores.mean(1)
        return scores[:, 0] if self.single else scores

    def _places(self, outputs: Tensor) -> Tensor:
        """Return the embeddings (N, L, D) of all places; L is 1 for one embedding of the whole image."""
        width = self.directions.shape[1]
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
    # In float64: dividing by the length in float32 would leave lengths off 1 by a few units.
    rows = vectors.detach().double().reshape(-1, vectors.shape[-1]) if vectors.dim() in (1, 2) else vectors
    if rows.dim() != 2 or not rows.numel() or not bool(torch.isfinite(rows).all()) or bool((rows == 0).all(1).any()):
        raise UsageError(
            f"{tuple(vectors.shape)} are not text embeddings", hint="give (K, D) finite numbers, no row of zeros"
        )
    if isinstance(power, bool) or not isinstance(power, int | float) or not 1 <= power < float("inf"):
        raise UsageError(f"power is {power!r}", hint="give a number of at least 1")
    if location is not None:
        check_choice("location", location, LOCATIONS)
    names = texts.names if isinstance(texts, TextEmbeddings) else names
    names = [f"text {place}" for place in range(len(rows))] if names is None else names
    if len(names) != len(rows):
        raise UsageError(f"{len(names)} names were given for {len(rows)} texts")
    return Cosine(rows / rows.norm(dim=1, keepdim=True), tuple(names), single, float(power), location)
