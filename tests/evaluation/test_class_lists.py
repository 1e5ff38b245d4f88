"""Lists of classes from text and from MetaAudio's kind of split file."""

import os
import pickle

import numpy as np
import pytest

from mtslvr_hf.evaluation import read_class_list


def save_object_array(path, parts):
    array = np.empty(len(parts), dtype=object)
    array[:] = parts
    np.save(path, array, allow_pickle=True)


def test_text(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffdog bark\r\n\n  siren \nsiren\nglace\u0301\n", encoding="utf-8")
    assert read_class_list(path) == ["dog bark", "siren", "glace\u0301"]


@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize(("part", "names"), [("train", ["a", "b"]), ("validation", ["c"]), ("test", ["d", "e"])])
def test_split_file(tmp_path, as_arrays, part, names):
    lists = [["a", "b"], ["c"], ["d", "e"]]
    save_object_array(tmp_path / "split.npy", [np.array(names) for names in lists] if as_arrays else lists)
    assert read_class_list(tmp_path / "split.npy", part) == names


def test_split_file_of_plain_strings(tmp_path):
    np.save(tmp_path / "split.npy", np.array([["a", "b"], ["c", "d"], ["e", "f"]]))
    assert read_class_list(tmp_path / "split.npy") == ["e", "f"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_split_file_of_older_numpy(tmp_path, protocol):
    array = np.empty(3, dtype=object)
    array[:] = [["a"], ["b"], [np.str_("c"), np.int64(4)]]
    with (tmp_path / "split.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": (3,), "fortran_order": False, "descr": "|O"})
        content = pickle.dumps(array, protocol=protocol)
        file.write(content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert read_class_list(tmp_path / "split.npy") == ["c", "4"]


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_pickle_that_calls_anything_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_object_array(tmp_path / "split.npy", [["a"], ["b"], [Harm()]])
    with pytest.raises(ValueError, match=r"split.npy cannot be read: it asks for .*mkdir"):
        read_class_list(tmp_path / "split.npy")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"\n \n", "names no class"),
        ("latin.txt", b"caf\xe9", "no UTF-8 text"),
        ("text.npy", b"dog\ncat\n", r"text.npy cannot be read: .*; expected an array of three lists"),
    ],
)
def test_mistakes(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_class_list(tmp_path / name)


def test_wrong_number_of_parts(tmp_path):
    save_object_array(tmp_path / "split.npy", [["a"], ["b"]])
    with pytest.raises(ValueError, match="holds 2 entries"):
        read_class_list(tmp_path / "split.npy")


def test_missing_file_and_unknown_part(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.txt"):
        read_class_list(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="part is 'dev'; expected one of train, validation, test"):
        read_class_list(tmp_path / "absent.txt", "dev")
