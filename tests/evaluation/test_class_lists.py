"""Lists of classes in text files."""

import pytest

from mtslvr_hf.evaluation import read_class_list


def test_names_in_order_each_once(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffdog bark\r\n\n  siren \nsiren\nglace\u0301\n", encoding="utf-8")
    assert read_class_list(path) == ["dog bark", "siren", "glace\u0301"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("empty.txt", b"\n \n", "names no class"), ("latin.txt", b"caf\xe9", "no UTF-8 text")],
)
def test_mistakes(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_class_list(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.txt"):
        read_class_list(tmp_path / "absent.txt")
