"""README, docs and the other pages: their code runs or parses, and their links and file names exist."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from processes import launch

import mtslvr_cli
from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel
from mtslvr_hf.cards.pretraining import create_model_card
from mtslvr_hf.runs import finetuning_arguments, pretraining_arguments

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "training/README.md"]
FILES += [ROOT / "benchmarks/README.md", ROOT / "CONTRIBUTING.md"]
PAGES = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in FILES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)

# Beginnings of commands that the test of the pages does not run. It reads the arguments of those of this package.
NOT_RUN = {
    "make": "installs; tests/test_demo.py runs the demo",
    "pip install": "installs",
    "mtslvr pretrain": "takes minutes to hours",
    "accelerate launch": "takes hours",
    "mtslvr cache": "needs the network, or audio that is not here",
    "mtslvr convert": "needs a checkpoint of the authors; tests/test_conversion.py",
    "mtslvr evaluate --model outputs/my-model": "needs the network",
    "mtslvr evaluate --model LABELS": "needs the models of the commands before it",
    "mtslvr export": "test_onnx_block_runs_without_torch runs it",
    "python training/": "takes hours",
    "python run_audio_classification.py": "a script of transformers",
}
PLACEHOLDERS = {"CONFIG": "mt_parallel_simclr", "FOLDER_OF_AUDIO": "sounds"}
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "mtslvr_hf")))  # an import of these is an error
"""


def blocks(page, kind):
    return [block for found, block in FENCE.findall(PAGES[page]) if found == kind]


def commands(block):
    """Commands of a bash block as lists of words, without comments and variables."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.strip()), comments=True) for line in lines]
    return [command for command in words if command]


def reason_not_to_run(command):
    return next((why for start, why in NOT_RUN.items() if f"{shlex.join(command)} ".startswith(start)), None)


def promised(block):
    return re.findall(r"print\(.*\)  # (.*)", block)


def anchors(text):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page, text):
    """Relative links of a page to files or headings that do not exist."""
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", FENCE.sub("", text)):
        name, _, anchor = link.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8") if name else text)):
            broken.append(link)
    return broken


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks as the repository does after `make demo`, with an untrained model of the demo's sizes."""
    folder = tmp_path_factory.mktemp("repository")
    model = MTSLVRModel(MTSLVRConfig(base_width=16, window_seconds=2.0))
    model.save_pretrained(folder / "demo/output/model")
    MTSLVRFeatureExtractor().save_pretrained(folder / "demo/output/model")
    create_model_card(model.config).save(folder / "demo/output/model/README.md")
    for copied in ("demo/audio", "models"):
        shutil.copytree(ROOT / copied, folder / copied)
    return folder


@pytest.fixture
def demo(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def done():
    """Commands that have run in the folder of this module; pages repeat some of them."""
    return []


@pytest.mark.parametrize("page", [page for page in PAGES if FENCE.search(PAGES[page])])
def test_blocks_run_and_print_what_they_say(page, demo, done, capsys):
    for kind, block in FENCE.findall(PAGES[page]):
        if kind == "python" and "import onnxruntime" not in block:
            capsys.readouterr()
            exec(compile(block, page, "exec"), {})
            assert capsys.readouterr().out.splitlines() == promised(block)
        elif kind == "bash":
            for command in commands(block):
                if reason_not_to_run(command) is None and command not in done:
                    assert command[0] == "mtslvr"
                    assert mtslvr_cli.main(command[1:]) == 0, capsys.readouterr().err
                    done.append(command)


def test_onnx_block_runs_without_torch(demo, tmp_path):
    """In a process of its own; its embedding is that of `encode`."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    (export,) = (command for block in blocks("docs/onnx.md", "bash") for command in commands(block)[1:])
    (block,) = blocks("docs/onnx.md", "python")
    (file,) = re.findall(r"demo/audio/\S+\.flac", block)
    assert mtslvr_cli.main(export[1:]) == 0
    script = tmp_path / "example.py"
    script.write_text(f"{WITHOUT}{block}\nnp.save('embeddings.npy', embeddings)\n", encoding="utf-8")
    assert launch([script], demo).splitlines() == promised(block)
    (found,), expected = np.load("embeddings.npy"), MTSLVRModel.from_pretrained("models/mtslvr-small").encode(file)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    scripts = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("training/*.py"))
    for command in (command for block in blocks(page, "bash") for command in commands(block)):
        arguments = [PLACEHOLDERS.get(word, word) for word in command if word != "..."]
        for script in {"mtslvr_hf.pretrain", "training/pretrain.py"} & {*arguments}:
            arguments = ["mtslvr", "pretrain", *arguments[arguments.index(script) + 1 :]]
        if arguments[0] == "mtslvr":
            parse(arguments[1:], monkeypatch)
        elif arguments[0] == "python" and arguments[1].startswith("training/"):
            options = [word for word in arguments if word.startswith("--")]
            assert (ROOT / arguments[1]).is_file()
            assert [option for option in options if f'"{option}"' not in scripts] == [], command
        else:
            assert reason_not_to_run(command), command


def parse(arguments, monkeypatch):
    """Reads arguments as the `mtslvr` command does, and runs nothing; wrong ones exit."""
    name = arguments[0]
    if name == "pretrain":
        pretraining_arguments.read_arguments([*arguments[1:], "--size_to_data", "false"])
    elif name == "finetune":
        finetuning_arguments.read_arguments(arguments[1:])
    else:
        with monkeypatch.context() as patch:
            patch.setattr(mtslvr_cli, f"_{name}", lambda options: None)
            assert mtslvr_cli.main(arguments) == 0


def test_a_wrong_option_does_not_parse(monkeypatch):
    for wrong in (["embed", "sounds", "--colums", "a"], ["pretrain", "pool", "--basewidth", "4"]):
        with pytest.raises(SystemExit):
            parse(wrong, monkeypatch)


def test_readme_is_short_and_begins_with_what_runs():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 120
    first = "\n".join(lines[:20])
    assert "\nmake demo " in first and "\nmake test " in first and "](docs/method.svg)" in first


def test_links_exist():
    broken = {page: broken_links(page, text) for page, text in PAGES.items()}
    assert not any(broken.values()), broken
    linked = set(re.findall(r"\]\((docs/[\w.-]+\.md)", PAGES["README.md"]))
    assert linked == {page for page in PAGES if page.startswith("docs/")}  # README leads to every page


def test_a_broken_link_is_found():
    text = "# One `name`: x\n[a](#one-name-x) [b](docs/onnx.md#inputs) [c](#two) [d](docs/onnx.md#none) [e](none.md)\n"
    assert broken_links("README.md", text) == ["#two", "docs/onnx.md#none", "none.md"]


def test_files_they_name_exist():
    text = "\n".join(PAGES.values())
    names = re.findall(r"`((?:training|tests|benchmarks|docs|mtslvr_hf|demo/audio)/[\w./-]*\w)`", text)
    rows = re.findall(r"`((?:mt|cont|pred)_[a-z]+\w*)`", PAGES["docs/variants.md"])
    names += [f"mtslvr_hf/configs/paper/{name}.yaml" for name in rows]
    assert len(names) > 25 and [name for name in names if not (ROOT / name).exists()] == []
