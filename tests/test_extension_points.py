"""Extensions from outside the package, by its public classes alone, as CONTRIBUTING.md describes them."""

import datasets
import pytest
import torch
from audio_files import encode, noise

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining
from mtslvr_hf.augmentations import Augmentation, TwoViewAugmentation
from mtslvr_hf.data import AudioStream, EncodedAudio, dequantize_clips


class Gain(Augmentation):
    """Gain between -6 and 6 dB."""

    name = "gain"
    parameter_names = ("gain_db",)

    def sample_parameters(self, n, generator):
        return {"gain_db": 12 * torch.rand(n, generator=generator) - 6}

    def transform(self, waveforms, parameters):
        return waveforms * 10 ** (parameters["gain_db"].to(waveforms.device)[:, None] / 20)


def test_an_augmentation():
    pipeline = TwoViewAugmentation([Gain(), "fade"], max_augmentations=1)
    waveforms = torch.from_numpy(noise(1.0, channels=8).T.copy())  # (B, S)
    views, labels, draw = pipeline(waveforms, step=0)
    gained = labels[:, 0] == 1
    assert gained.any() and not gained.all()
    factors = 10 ** (draw.values["gain"]["gain_db"][gained] / 20)  # (clips, 2)
    assert torch.allclose(views[gained], waveforms[gained, None] * factors[..., None])
    config = MTSLVRConfig(base_width=4, frontend="mel", window_seconds=1.0, augmentations=list(pipeline.names))
    out = MTSLVRForPreTraining(config)(input_values=views, augmentation_labels=labels)
    assert out.augmentation_logits.shape[-1] == 2 and out.predictive_loss.isfinite()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_source_of_audio(streamed):
    def recordings():
        for seed in range(4):
            yield {"sound": {"bytes": encode(noise(1.0, seed=seed)), "path": f"{seed}.flac"}}

    features = datasets.Features({"sound": EncodedAudio()})
    kind = datasets.IterableDataset if streamed else datasets.Dataset
    source = kind.from_generator(recordings, features=features)
    batches = list(AudioStream(source, clip_seconds=0.5, batch_size=2, endless=False))
    clips = torch.cat([dequantize_clips(batch["input_values"], batch["scales"]) for batch in batches])
    assert clips.shape == (4, 8000) and clips.std() > 0.05
