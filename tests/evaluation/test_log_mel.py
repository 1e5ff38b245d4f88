"""Log-mel statistics of long clips, which are computed in parts."""

import pytest
import torch

from mtslvr_hf.evaluation.embedders import log_mel


@pytest.mark.parametrize("samples", [16_384, 50_000, 51_200, 48_999])
@pytest.mark.parametrize("frames", [7, 31])
def test_parts_give_the_statistics_of_the_whole(samples, frames, monkeypatch):
    waveforms = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    whole = log_mel.LogMelStatistics().embed_waveforms(waveforms)[""]
    monkeypatch.setattr(log_mel, "_LONG_FRAMES", frames)
    parts = log_mel.LogMelStatistics().embed_waveforms(waveforms)[""]
    assert parts.shape == whole.shape == (1, 80)
    assert torch.allclose(parts, whole, atol=1e-4)
