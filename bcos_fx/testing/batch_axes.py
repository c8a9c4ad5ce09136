"""Random networks that hold their samples in another dimension than the first, of the input and of the output."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import Tensor, nn

from bcos_fx.testing.networks import networks
from bcos_fx.testing.specification import Network


class SamplesElsewhere(nn.Module):
    """A network whose input and output hold the samples in other dimensions.

    Args:
        network: takes and returns (N, ...).
        axis: the dimension of the input that holds the samples; None: the input is one sample, without a dimension
            of samples.
        end: the same of the output.
    """

    def __init__(self, network: Network, axis: int | None, end: int | None) -> None:
        super().__init__()
        self.network, self.axis, self.end = network, axis, end

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores, given an input that holds its samples in ``axis``."""
        scores: Tensor = self.network(x.unsqueeze(0) if self.axis is None else x.movedim(self.axis, 0))
        return scores.squeeze(0) if self.end is None else scores.movedim(0, self.end)

    def own_form(self, inputs: Tensor) -> Tensor:
        """Return inputs (N, ...) in the form that the network takes; N is 1 where it has no dimension of samples."""
        return inputs.squeeze(0) if self.axis is None else inputs.movedim(0, self.axis)


@st.composite
def networks_with_samples_elsewhere(draw: st.DrawFn) -> SamplesElsewhere:
    """Draw a network in eval mode with samples in a dimension of the input other than the first, or in none."""
    network = draw(networks())
    axis = draw(st.sampled_from([None, *range(1, 1 + len(network.input_shape))]))
    end = None if axis is None else draw(st.integers(0, 1))
    return SamplesElsewhere(network, axis, end).eval()
