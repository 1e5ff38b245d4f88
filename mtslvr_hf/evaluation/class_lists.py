"""Lists of classes in files: one name per line, or the .npy split files of MetaAudio."""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_PARTS = ("train", "validation", "test")


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


# What the pickle of an array of lists of names calls, under the names that numpy's modules had and have.
_ARRAY_MODULES = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray"}
_ARRAY_PARTS = {
    "_reconstruct": np.empty(0).__reduce__()[0],
    "scalar": np.float64(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


def read_class_list(path: str | Path, part: str = "test") -> list[str]:
    """Names of classes, in the file's order, each once.

    Args:
        path: a text file with a name per line (UTF-8; empty lines do not count); or, if it ends in .npy, an array of
            three lists of names: classes for training, validation and test, as MetaAudio keeps its splits.
        part: which of the three, "train", "validation" or "test". A text file has one list alone.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when the file is none of the two kinds or has no names. The message names the file.

    Source:
        Heggan et al., "MetaAudio: A few-shot audio classification benchmark", 2022 (arXiv 2204.02121), for the splits.
        Differs from: their arrays are pickled; here nothing of a pickle is called but what makes arrays.
    """
    path = Path(path)
    if part not in _PARTS:
        raise ValueError(f"part is {part!r}; expected one of {', '.join(_PARTS)}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected a list of classes, one name per line")
    if path.suffix == ".npy":
        names = _read_split(path)[_PARTS.index(part)]
    else:
        try:
            names = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text; expected one class name per line") from error
    names = list(dict.fromkeys(str(name).strip() for name in names if str(name).strip()))
    if not names:
        raise ValueError(f"{path} names no class; expected one name per line")
    return names


def _read_split(path: Path) -> list[list[Any]]:
    expected = f"expected an array of three lists of class names ({', '.join(_PARTS)})"
    with path.open("rb") as file:
        try:
            parts = _read_array(file)
        except (ValueError, pickle.UnpicklingError, EOFError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read: {error}; {expected}") from error
    if len(parts) != len(_PARTS) or not all(isinstance(part, (list, tuple, np.ndarray)) for part in parts):
        raise ValueError(f"{path} holds {len(parts)} entries of another kind or number; {expected}")
    return [list(part) for part in parts]


def _read_array(file: BinaryIO) -> list[Any]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read_header(file)
    if dtype.hasobject:
        return list(_ArrayUnpickler(file).load())
    file.seek(0)
    return list(np.load(file, allow_pickle=False))


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays, lists, strings and numbers, and refuses to look up anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _ARRAY_MODULES and name in _ARRAY_PARTS:
            return _ARRAY_PARTS[name]
        if (module, name) == ("_codecs", "encode"):  # how pickles of protocol 2 hold bytes
            return _bytes
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a list of names does not need")


__all__ = ["read_class_list"]
