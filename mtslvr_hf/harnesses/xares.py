"""X-ARES encoder. X-ARES takes a Python file that has one name ending in `Encoder`, which it calls without arguments.

Write such a file, and give it to `python -m xares.run`:

    from functools import partial

    from mtslvr_hf.harnesses import xares

    Encoder = partial(xares.MTSLVREncoder, "outputs/my-model")

Source: Zhang et al., "X-ARES: A Comprehensive Framework for Assessing Audio Encoder Performance", Interspeech 2025.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel

from ..embedding import encode


class MTSLVREncoder(nn.Module):
    """Encoder with the attributes that X-ARES needs: embeddings over time, one frame of the network each.

    Args:
        model_name: A model's folder, or its name on the Hub, with its feature extractor.
        revision: Commit on the Hub.
        tasks: Tasks of the embedding, in its order; default: the active tasks.
        batch_size: Windows that go through the network at once.

    Attributes:
        sampling_rate: Sampling rate of the input in Hz.
        output_dim: D of an embedding.
        hop_size_in_ms: Mean distance of two frames in milliseconds.

    Raises:
        OSError: If there is no such model.
        ValueError: If the model has no such task.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        tasks: Sequence[str] | str | None = None,
        batch_size: int = 32,
    ):
        super().__init__()
        self.model = AutoModel.from_pretrained(model_name, revision=revision).eval()
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(model_name, revision=revision)
        config = self.model.config
        self.tasks = config.resolve_tasks(tasks)
        self.batch_size = batch_size
        self.sampling_rate: int = config.sampling_rate
        self.output_dim: int = config.embedding_size_of(self.tasks)
        frames = self(torch.zeros(1, config.window_samples)).shape[1]
        self.hop_size_in_ms: float = 1000 * config.window_seconds / frames

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Embeddings over time (batch, frames, D) float32, on the audio's device; X-ARES averages them for a clip.

        Args:
            audio: (batch, samples) mono at `sampling_rate`, within -1 to 1.

        Raises:
            ValueError: If the shape is wrong, or samples are missing or not finite.
        """
        if audio.ndim != 2 or 0 in audio.shape:
            raise ValueError(f"`audio` must be (batch, samples), not empty; got the shape {tuple(audio.shape)}.")
        clips = encode(
            self.model,
            list(audio.detach().float().cpu()),
            self.sampling_rate,
            feature_extractor=self.feature_extractor,
            tasks=self.tasks,
            batch_size=self.batch_size,
            return_timestamps=True,
            convert_to="torch",
            num_workers=0,
            show_progress_bar=False,
        )
        return torch.stack([clip.embeddings for clip in clips]).to(audio.device)


__all__ = ["MTSLVREncoder"]
