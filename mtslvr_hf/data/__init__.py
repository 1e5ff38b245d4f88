"""Audio for pre-training: data sets from the Hub or from disk, decoded to batches of clips."""

from ..audio.clips import decode_clip
from ..audio.errors import REASONS, BadClipError
from .encoded import EncodedAudio
from .labelled import LabelledAudio, from_dataset, load_labelled_audio
from .local import AUDIO_SUFFIXES, find_audio_files
from .shuffling import usable_workers
from .skipped import SkippedRows, TooManyBadRowsError
from .sources import audio_rows, load_audio
from .stream import AudioStream, dequantize_clips, load_clips

__all__ = [
    "AUDIO_SUFFIXES",
    "REASONS",
    "AudioStream",
    "BadClipError",
    "EncodedAudio",
    "LabelledAudio",
    "SkippedRows",
    "TooManyBadRowsError",
    "audio_rows",
    "decode_clip",
    "dequantize_clips",
    "find_audio_files",
    "from_dataset",
    "load_audio",
    "load_clips",
    "load_labelled_audio",
    "usable_workers",
]
