"""Pieces of encoded files: where the cuts are, what is silent, and that a piece is the same samples."""

import io

import numpy as np
import pytest
import soundfile

from mtslvr_hf.audio.clips import decode_clip
from mtslvr_hf.audio.errors import BadClipError
from mtslvr_hf.audio.pieces import Cuts, cut_clip, read_piece

RATE = 8000


def noise(seconds, channels=1, rate=RATE):
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)


def row(samples, rate=RATE, format="WAV", subtype="FLOAT"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return {"bytes": file.getvalue(), "path": "song"}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1.5, [(0, 12_000)]), (5, [(0, 40_000)]), (12, [(0, 40_000), (40_000, 80_000), (80_000, 96_000)])],
)
def test_cuts(seconds, expected):
    assert cut_clip(row(noise(seconds)), 5.0) == Cuts(tuple(expected), 0)


def test_cuts_do_not_depend_on_the_blocks_in_which_a_file_is_read():
    """70 s in stereo are several blocks of 2^18 samples; none of them is a whole number of pieces."""
    found = cut_clip(row(noise(70.01, channels=2)), 5.0)
    assert [end - begin for begin, end in found.spans] == [40_000] * 14 + [80]


@pytest.mark.parametrize(("format", "subtype"), [("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_pieces_of_compressed_files(format, subtype):
    audio = row(noise(11, rate=16_000), 16_000, format, subtype)
    whole = decode_clip(audio)
    spans = cut_clip(audio, 5.0).spans
    assert spans == ((0, 80_000), (80_000, 160_000), (160_000, len(whole)))
    for begin, end in spans:
        piece = decode_clip(read_piece(audio, (begin, end), 5.0))
        assert np.abs(piece[: end - begin] - whole[begin:end]).max() < 1e-3


def test_a_piece_is_the_file_s_samples_repeated_to_full_length():
    samples = noise(6.5, channels=2)
    audio = row(samples)
    first, last = (read_piece(audio, span, 5.0) for span in cut_clip(audio, 5.0).spans)
    assert (first["path"], last["path"]) == ("song, 0.0 to 5.0 s", "song, 5.0 to 6.5 s")
    mono = samples.mean(1)
    for piece, expected in ((first, mono[:40_000]), (last, np.resize(mono[40_000:], 40_000))):
        found, rate = soundfile.read(io.BytesIO(piece["bytes"]), dtype="float32")
        assert rate == RATE and found.shape == (40_000,)
        assert np.abs(found - expected).max() < 1e-6


def test_silent_pieces_have_no_span():
    samples = noise(14)
    samples[40_000:80_000] = 0.25  # a constant is silence
    found = cut_clip(row(samples), 5.0)
    assert found == Cuts(((0, 40_000), (80_000, 112_000)), 1)
    for span in found.spans:
        decode_clip(read_piece(row(samples), span, 5.0))  # is not silent to the embedders either
    with pytest.raises(BadClipError, match=r"silent: song: under -90 dBFS in each of 2 pieces"):
        cut_clip(row(0 * noise(7)), 5.0)


def test_bad_files_are_named():
    samples = noise(7)
    samples[50_000] = np.nan
    with pytest.raises(BadClipError, match="non_finite: song"):
        cut_clip(row(samples), 5.0)
    with pytest.raises(BadClipError, match=r"truncated: .*song"):
        cut_clip({"bytes": row(noise(7))["bytes"][:-1000], "path": "song"}, 5.0)
