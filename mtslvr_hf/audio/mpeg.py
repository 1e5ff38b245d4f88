"""MPEG audio (MP3, MP2): its frames, the counts in Xing, Info and VBRI headers, and streams with a right count.

libmpg123 believes the count of the header, and estimates one from the size of the file where there is none.
Source: ISO/IEC 11172-3, 13818-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO

BLOCK_BYTES = 2**20
MARGIN_BYTES = 4096  # more than two frames
RATES = (44_100, 48_000, 32_000)  # Hz, of MPEG 1
BIT_RATES = {  # kbit/s by (MPEG 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
TAG_BYTES = 4096  # behind the audio, at most, of a file whose header is believed
SLACK_FRAMES = 2  # encoders count the header's frame, or frames of padding
HEADER_TAGS = (b"Xing", b"Info", b"VBRI")
TAG_PLACES = (13, 15, 21, 23, 36, 38)  # in a frame: behind the side information, with or without a checksum


@dataclass
class Stream:
    """Frames of one encoded file; joined files have several streams.

    Attributes:
        head: First four bytes of the first frame of audio.
        header: Frame with the Xing, Info or VBRI header, or b"".
        frames: Frames of audio that are in the file.
        size: Their size in bytes.
        runs: Places [begin, end) of frames without anything between them.
    """

    head: bytes
    header: bytes = b""
    frames: int = 0
    size: int = 0
    runs: list[list[int]] = field(default_factory=list)

    @property
    def stated(self) -> int | None:
        """Number of frames in the header; None without any."""
        return self._stated()[0]

    @property
    def missing(self) -> int:
        """Frames that the header states and the file lacks; 0 if the header's size in bytes is that of the file."""
        frames, size = self._stated()
        if not frames or frames - self.frames <= SLACK_FRAMES:
            return 0
        return 0 if size and size <= self.size + len(self.header) else frames - self.frames

    @property
    def samples_per_frame(self) -> int:
        mpeg1, layer = _version(self.head)
        return {1: 384, 2: 1152, 3: 1152 if mpeg1 else 576}[layer]

    @property
    def rate(self) -> int:
        """Sampling rate in Hz."""
        return RATES[self.head[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[self.head[1] >> 3 & 3]

    def counted_header(self) -> bytes:
        """Frame with a header that states the frames and bytes of the file; with the delays of an old Xing header.

        b"" for other layers than III, which have no such headers.
        """
        if _version(self.head)[1] != 3:
            return b""
        place = _tag_place(self.header)
        old = self.header[place + 4 : place + 8] if place else b""
        if old and self.header[place : place + 4] != b"VBRI" and old[3] & 3 == 3:
            size = self.size + len(self.header)
            counts = self.frames.to_bytes(4, "big") + size.to_bytes(8, "big")[-4:]
            return self.header[: place + 8] + counts + self.header[place + 16 :]
        head = bytes([0xFF, self.head[1] | 1, self.head[2] & 0x0C | 0xE0, self.head[3]])
        mpeg1, mono = _version(head)[0], head[3] >> 6 == 3
        frame = bytearray(_size(head))
        place = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
        counts = self.frames.to_bytes(4, "big") + (self.size + len(frame)).to_bytes(8, "big")[-4:]
        frame[:4], frame[place : place + 16] = head, b"Xing\x00\x00\x00\x03" + counts
        return bytes(frame)

    def _stated(self) -> tuple[int | None, int]:
        """Frames and bytes by the header; None, 0 if it does not tell."""
        place = _tag_place(self.header)
        if not place:
            return None, 0
        tag = self.header[place:]
        if tag.startswith(b"VBRI"):
            return int.from_bytes(tag[14:18], "big"), int.from_bytes(tag[10:14], "big")
        flags, counts = tag[7], tag[8:]
        frames = int.from_bytes(counts[:4], "big") if flags & 1 else None
        counts = counts[4:] if flags & 1 else counts
        return frames, int.from_bytes(counts[:4], "big") if flags & 2 else 0


def header_fits(file: BinaryIO, size: int) -> bool:
    """True if an MPEG file begins with a header that states its size in bytes, and frames of a possible bit rate."""
    first = next(_frames(file, 0, size), None)
    if first is None or not _tag_place(first[1]):
        return False
    place, frame, frame_size = first
    stream = Stream(frame[:4], file_bytes(file, place, frame_size))
    frames, stated = stream._stated()
    if not frames or not 0 <= size - place - stated <= TAG_BYTES + frame_size:
        return False
    mpeg1, layer = _version(frame)
    bit_rate = stated * 8 * stream.rate / (frames * stream.samples_per_frame) / 1000
    rates = BIT_RATES[mpeg1, layer]
    return rates[0] <= bit_rate * 1.1 and bit_rate <= rates[-1] * 1.1


def find_streams(file: BinaryIO, begin: int, end: int) -> list[Stream]:
    """Streams of MPEG audio between two places of a file; tags and anything else between frames are passed over."""
    streams: list[Stream] = []
    kind = None
    for place, frame, size in _frames(file, begin, end):
        own = (frame[1] & 0xFE, frame[2] & 0x0C, frame[3] >> 6 == 3)
        if frame[6:10] == bytes(4) and _tag_place(frame):
            streams.append(Stream(frame[:4], file_bytes(file, place, size)))
            kind = own
            continue
        if kind != own:
            if not streams or streams[-1].frames:
                streams.append(Stream(frame[:4]))
            kind = own
        stream = streams[-1]
        if stream.frames == 0:
            stream.head = frame[:4]
        if stream.runs and stream.runs[-1][1] == place:
            stream.runs[-1][1] = place + size
        else:
            stream.runs.append([place, place + size])
        stream.frames += 1
        stream.size += size
    return [stream for stream in streams if stream.frames]


def file_bytes(file: BinaryIO, begin: int, count: int) -> bytes:
    """Bytes of a file at a place."""
    file.seek(begin)
    return file.read(count)


def _frames(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, bytes, int]]:
    """Places, first 48 bytes and sizes of whole frames."""
    data, start = b"", begin  # the block, and its place
    at, size = 0, 0
    previous = b""  # head of the frame that ends here
    while True:
        if at + MARGIN_BYTES > len(data) and start + len(data) < end:
            start, at = start + at, 0
            data = file_bytes(file, start, max(0, min(BLOCK_BYTES, end - start)))
            if not data:
                return
        head = data[at : at + 48]
        size = _size(head)
        if size == 0 or not (_alike(head, previous) or _is_followed(data, at, size)):
            previous = b""
            found = _next_frame(data, at)
            if found is None and start + len(data) >= end:
                return
            at = len(data) - 3 if found is None else found
            continue
        if at + size > len(data):
            return  # the last frame is not whole
        yield start + at, head, size
        previous, at = head, at + size


def _next_frame(data: bytes, at: int) -> int | None:
    """Place of the next frame behind `at` that a similar one follows, or behind a tag; it may be behind the block."""
    if data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        return at + 10 + size + (10 if data[at + 5] & 0x10 else 0)
    if data[at : at + 8] == b"APETAGEX" and len(data) >= at + 24:
        size = int.from_bytes(data[at + 12 : at + 16], "little")
        return at + 32 + (size if data[at + 23] & 0x20 else 0)  # at the end of a tag, only its footer
    while True:
        candidates = [place for place in (data.find(b"\xff", at + 1), data.find(b"ID3", at + 1)) if place >= 0]
        if not candidates:
            return None
        at = min(candidates)
        if data[at : at + 3] == b"ID3" and data[at + 3 : at + 4] in (b"\x02", b"\x03", b"\x04"):
            return at
        size = _size(data[at : at + 4])
        if size and _is_followed(data, at, size):
            return at


def _is_followed(data: bytes, at: int, size: int) -> bool:
    """True if a similar frame follows, or the block ends."""
    following = data[at + size : at + size + 4]
    return len(following) < 4 or _alike(following, data[at : at + 4])


def _alike(head: bytes, other: bytes) -> bool:
    """True for heads of the same version, layer and rate."""
    return (
        len(other) >= 4
        and head[0] == 0xFF
        and (head[1] ^ other[1]) & 0xFE == 0
        and (head[2] ^ other[2]) & 0x0C == 0
        and _size(head) > 0
    )


def _version(head: bytes) -> tuple[bool, int]:
    """True for MPEG 1, and the layer, of a frame."""
    return head[1] >> 3 & 3 == 3, 4 - (head[1] >> 1 & 3)


@lru_cache(maxsize=4096)
def _size_of(second: int, third: int) -> int:
    version, layer, rate, bits = second >> 3 & 3, 4 - (second >> 1 & 3), third >> 2 & 3, third >> 4
    if second & 0xE0 != 0xE0 or version == 1 or layer == 4 or rate == 3 or bits in (0, 15):
        return 0
    mpeg1, padding = version == 3, third >> 1 & 1
    hertz = RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bit_rate = 1000 * BIT_RATES[mpeg1, layer][bits - 1]
    if layer == 1:
        return (12 * bit_rate // hertz + padding) * 4
    return (144 if mpeg1 or layer == 2 else 72) * bit_rate // hertz + padding


def _size(head: bytes) -> int:
    """Size of a frame in bytes; 0 if this is no frame, or one of any size (free format)."""
    return _size_of(head[1], head[2]) if len(head) > 3 and head[0] == 0xFF else 0


def _tag_place(frame: bytes) -> int:
    """Place of a Xing, Info or VBRI header in a frame; 0 without any."""
    return next((place for place in TAG_PLACES if frame[place : place + 4] in HEADER_TAGS), 0)


__all__ = ["Stream", "file_bytes", "find_streams", "header_fits"]
