"""Containers of audio: where the data lie, how many bytes are missing, and where a joined file begins.

WAV, RF64, AIFF, W64, CAF and AU state the size of their data; programs that write to a pipe do not know it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

STREAMED_MARGIN = 2**24  # programs that do not know a size write 2^31 or 2^32, less some headers or a page
LARGEST_SIZE = 2**62  # larger 64-bit sizes are also unknown
FEW_BYTES = 8  # more in the header than in the file: a chunk's header or padding
MAX_CHUNKS = 10_000
MPEG_TAGS = (0x50, 0x55)  # WAV: MPEG audio layer II, III
SEARCH_BYTES = 2**20
SIGNATURES = {b"fLaC": b"fLaC\x00\x00\x00\x22", b"OggS": b"OggS\x00\x02"}  # STREAMINFO; first page of a stream
GUID_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of W64's chunks; "riff" has another


class Data(NamedTuple):
    """Audio data of one file in a container.

    Attributes:
        begin, end: The file's place; joined files follow each other.
        start: Place of the data.
        stated: Their size in bytes by the header; None if it is unknown.
        present: Bytes up to the end of the file.
        sizes: Places and formats (`struct`) of the sizes in the header, which are 0 though there are data.
        codec: WAV's format tag, else 0.
    """

    begin: int
    end: int
    start: int
    stated: int | None
    present: int
    sizes: tuple[tuple[int, str], ...] = ()
    codec: int = 0

    @property
    def missing(self) -> int:
        """Bytes that the header states and the file lacks; a few bytes may be the size of a header."""
        missing = (self.stated or 0) - self.present
        whole = self.end - self.begin
        return 0 if missing <= FEW_BYTES or self.stated in (whole, whole - FEW_BYTES) else missing


class _Layout(NamedTuple):
    """Kind of container: names and sizes of chunks, and the name of the chunk with the audio data."""

    data: bytes
    size: str  # of a chunk, as `struct` reads it
    first: int  # place of the first chunk
    name_bytes: int = 4
    align: int = 2
    size_has_header: bool = False

    @property
    def header(self) -> int:
        return self.name_bytes + struct.calcsize(self.size)


_WAV, _RIFX = _Layout(b"data", "<I", 12), _Layout(b"data", ">I", 12)
_AIFF = _Layout(b"SSND", ">I", 12)
_W64 = _Layout(b"data" + GUID_TAIL, "<Q", 40, 16, 8, True)
_CAF = _Layout(b"data", ">q", 8, 4, 1)


def find_data(file: BinaryIO, size: int) -> list[Data]:
    """Audio data of a file of a size in bytes, one for each file that was joined; [] in other containers."""
    found: list[Data] = []
    begin = 0
    while begin < size:
        head = _read(file, begin, 40)
        layout = _layout_of(head)
        data = _au(head, begin, size) if head[:4] in (b".snd", b"dns.") else None
        if layout is not None:
            data = _walk(file, size, begin, layout)
        if data is None:
            break
        found.append(data)
        begin = data.end
    return found


def joined_streams(file: BinaryIO, size: int, magic: bytes) -> list[int]:
    """Places where FLAC files or chained Ogg streams begin, the first one at 0; [] in other formats."""
    signature = SIGNATURES.get(magic[:4])
    if signature is None:
        return []
    places = list(_search(file, size, signature))
    if magic.startswith(b"fLaC"):
        return [0, *(place for place in places if place)]
    # Streams that begin together are multiplexed: a chain begins after a page that begins nothing.
    starts, previous = [0], 0
    for place in places:
        if place and _page_end(file, previous) != place:
            starts.append(place)
        previous = place
    return starts


def _layout_of(head: bytes) -> _Layout | None:
    kind, form = head[:4], head[8:12]
    if kind in (b"RIFF", b"RF64", b"BW64") and form == b"WAVE":
        return _WAV
    if kind == b"RIFX" and form == b"WAVE":
        return _RIFX
    if kind == b"FORM" and form in (b"AIFF", b"AIFC"):
        return _AIFF
    if kind == b"riff" and head[24:28] == b"wave":
        return _W64
    return _CAF if kind == b"caff" else None


def _walk(file: BinaryIO, size: int, begin: int, layout: _Layout) -> Data | None:
    """Data of a container of chunks; None without any."""
    long_size, long_place, codec, frames_place = None, 0, 0, None
    for place, name, length in _chunks(file, size, begin + layout.first, layout):
        start = place + layout.header
        if name == b"ds64" and layout is _WAV:  # sizes of 64 bits
            long_place = start + 8
            long_size = int.from_bytes(_read(file, long_place, 8), "little")
        elif name == b"fmt " and layout in (_WAV, _RIFX):
            codec = int.from_bytes(_read(file, start, 2), "little" if layout is _WAV else "big")
        elif name == b"COMM":
            frames_place = start + 2
        elif name == layout.data:
            sizes: tuple[tuple[int, str], ...] = ((place + layout.name_bytes, layout.size),)
            if frames_place is not None:
                sizes += ((frames_place, ">I"),)
            if length == 2**32 - 1 and long_size is not None:
                length, sizes = long_size, ((long_place, "<Q"),)
            return _data(file, size, (begin, start), length, layout, sizes, codec)
    return None


def _data(
    file: BinaryIO,
    size: int,
    places: tuple[int, int],
    length: int,
    layout: _Layout,
    sizes: tuple[tuple[int, str], ...],
    codec: int,
) -> Data:
    begin, start = places
    present = size - start
    if length == 0 and present and not _only_chunks(file, size, start, layout):
        return Data(begin, size, start, None, present, sizes, codec)
    if _is_unknown(length, layout.size):
        return Data(begin, size, start, None, present, (), codec)
    end = _end_of_file(file, size, start + length + -(start + length) % layout.align, layout)
    return Data(begin, end, start, length, min(present, length), (), codec)


def _end_of_file(file: BinaryIO, size: int, place: int, layout: _Layout) -> int:
    """Place where a joined file begins among the chunks after the data; else the size of the file."""
    if layout not in (_WAV, _RIFX, _AIFF):
        return size
    for start in (place, place - 1):  # some programs do not pad
        for at, _, _ in _chunks(file, size, start, layout):
            if _layout_of(_read(file, at, 40)) is not None:
                return at
    return size


def _only_chunks(file: BinaryIO, size: int, place: int, layout: _Layout) -> bool:
    """True if well-formed chunks fill the rest of the file."""
    end = place
    for at, name, length in _chunks(file, size, place, layout):
        if not all(32 <= byte < 127 for byte in name[:4]):
            return False
        end = at + layout.header + length
    return end >= size - 1 and end <= size + 1


def _chunks(file: BinaryIO, size: int, place: int, layout: _Layout) -> Iterator[tuple[int, bytes, int]]:
    """Places, names and lengths of chunks; without the header of each."""
    for _ in range(MAX_CHUNKS):
        head = _read(file, place, layout.header)
        if len(head) < layout.header:
            return
        (length,) = struct.unpack(layout.size, head[layout.name_bytes :])
        if layout.size_has_header:
            length = max(0, length - layout.header)
        yield place, head[: layout.name_bytes], length
        if length < 0:
            return
        place += layout.header + length
        place += -place % layout.align


def _is_unknown(length: int, size: str) -> bool:
    if length < 0 or length >= LARGEST_SIZE:
        return True
    near = abs(length - 2**31) <= STREAMED_MARGIN or 0 <= 2**32 - length <= STREAMED_MARGIN
    return near and struct.calcsize(size) == 4


def _au(head: bytes, begin: int, size: int) -> Data | None:
    order = ">" if head.startswith(b".snd") else "<"
    if len(head) < 12:
        return None
    offset, length = struct.unpack(order + "II", head[4:12])
    start = begin + offset
    if start >= size:
        return None
    if length == 0 or (_is_unknown(length, "I") and length != 2**32 - 1):  # libsndfile knows the last one alone
        return Data(begin, size, start, None, size - start, ((begin + 8, order + "I"),))
    return Data(begin, size, start, None if _is_unknown(length, "I") else length, min(size - start, length))


def _page_end(file: BinaryIO, place: int) -> int:
    """End of an Ogg page."""
    head = _read(file, place, 27 + 255)
    return place + 27 + head[26] + sum(head[27 : 27 + head[26]]) if len(head) > 26 else place


def _search(file: BinaryIO, size: int, signature: bytes) -> Iterator[int]:
    """Places of a signature, read in blocks."""
    for begin in range(0, size, SEARCH_BYTES):
        block = _read(file, begin, SEARCH_BYTES + len(signature) - 1)
        at = block.find(signature)
        while at >= 0:
            yield begin + at
            at = block.find(signature, at + 1)


def _read(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


__all__ = ["MPEG_TAGS", "Data", "find_data", "joined_streams"]
