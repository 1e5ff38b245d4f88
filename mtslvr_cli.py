"""Command line `mtslvr`.

This module is not in the package, so `--help` does not import torch. Subcommands import modules when they run.
"""

import argparse
import difflib
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unicodedata import category

if TYPE_CHECKING:
    from accelerate import PartialState

    from mtslvr_hf.shards import ShardReport


TRAINING = ("pretrain", "finetune")  # have options, signals and exit codes of their own
# Errors with a message for the user, besides ImportError, MemoryError, OSError and ValueError.
EXPECTED_ERRORS = ("DatasetsError", "OutOfMemoryError", "SafetensorError")
SECONDS_TO_END = 2.0  # after Ctrl-C
SPINS = "10000"  # of an idle thread: benchmarks/README.md, "Two cores of an AMD EPYC"
AFTER_INTERRUPTION = {
    "embed": "run the same command again to continue",
    "cache": "run the same command again to continue",
    "evaluate": "run it again with the same --output or --cache to continue with the embeddings made so far",
    "pretrain": "run the same command again to continue from the last checkpoint",
    "finetune": "run the same command again to continue from the last checkpoint",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0 for success, 1 for a failure, 130 after Ctrl-C. Wrong arguments exit with 2."""
    own_process = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _prepare_output()
    parser = _parser(arguments)
    options, unknown = parser.parse_known_args(arguments)
    if options.command in TRAINING:
        options.arguments = arguments[1:]
    elif unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if own_process:
        leave_the_cores_to_others()
    try:
        if own_process and options.command not in TRAINING:
            _end_after_interruption(options.command)
            _without_bars_off_a_terminal()
        options.run(options)
    except BrokenPipeError:  # as in `mtslvr ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        _say_interrupted(options.command)
        return 130
    except Exception as error:
        if not _is_expected(error):
            raise
        sys.stderr.write(f"mtslvr {options.command}: error: {_explanation(error)}\n")
        return 1
    return 0


def _prepare_output() -> None:
    """Lets standard output take every character, and replaces closed streams, so that no result is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, as under some daemons
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _end_after_interruption(command: str) -> None:
    """Ends the process within seconds after Ctrl-C, and at once after the second, whatever holds KeyboardInterrupt up.

    Callbacks of C libraries swallow it, and threads delay the end of the interpreter.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as under nohup
        return
    told: list[bool] = []

    def end() -> None:
        _say_interrupted(command)
        os._exit(130)

    def interrupt(*_: object) -> None:
        if told:
            os._exit(130)
        told.append(True)
        timer = threading.Timer(SECONDS_TO_END, end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


_interruption_said = threading.Event()


def _say_interrupted(command: str) -> None:
    """Prints one line, once, about what to do after an interruption."""
    if not _interruption_said.is_set():
        _interruption_said.set()
        what = AFTER_INTERRUPTION.get(command, "run the same command again")
        sys.stderr.write(f"\nmtslvr {command}: interrupted; {what}.\n")
        sys.stderr.flush()


def leave_the_cores_to_others() -> None:
    """Lets idle threads of OpenMP sleep early, unless the environment says otherwise; before torch is imported.

    Waiting in a loop for as long as they do by default, they make a step take several times as long where other
    programs use the cores.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _without_bars_off_a_terminal() -> None:
    """Keeps the progress bars of libraries out of log files."""
    if not sys.stderr.isatty():
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")


def _is_expected(error: Exception) -> bool:
    """True for errors whose message is for the user; others are faults of this program."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (ImportError, MemoryError, OSError, ValueError)) or not names.isdisjoint(EXPECTED_ERRORS)


def _explanation(error: Exception) -> str:
    """Message of an error on one line, without control characters of names."""
    text = " ".join(str(error).split()) or f"{type(error).__name__}: not enough memory"
    if "trust_remote_code=True" in text:
        text += " The option of mtslvr is --trust-remote-code."
    return _printable(text)


def _printable(text: str) -> str:
    """Text whose control characters are escaped: names of files and classes could command the terminal."""
    return "".join(
        character.encode("unicode_escape").decode()
        if category(character) in ("Cc", "Cs") and character != "\n"
        else character
        for character in text
    )


def _print(text: str) -> None:
    """Writes a text to standard output, with a line break."""
    sys.stdout.write(_printable(text) + "\n")


class _Parser(argparse.ArgumentParser):
    """Parser whose errors suggest an option or a choice for a misspelled one."""

    given: Sequence[str] = ()  # all arguments

    def error(self, message: str) -> NoReturn:
        """Exits with 2, after usage and message."""
        typed: Iterable[str] = [word.split("=")[0] for word in self.given if word.startswith("--")]
        known = sorted(set(re.findall(r"(?<![\w-])--[\w-]+", self.format_help())))
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            typed, known = [wrong[1]], re.findall(r"[\w-]+", wrong[2])
        near = {word: difflib.get_close_matches(word, known, n=1) for word in typed if word not in known}
        hints = [
            f"{found[0]} instead of {word}" if len(near) > 1 else found[0] for word, found in near.items() if found
        ]
        super().error(_printable(message + (f"; did you mean {' and '.join(hints)}?" if hints else "")))


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mtslvr",
        description="Audio embeddings pre-trained with MT-SLVR: train, make, evaluate; convert original checkpoints.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(commands, "pretrain", "model from unlabeled audio, by MT-SLVR", _pretrain)
    _add_run(commands, "finetune", "classifier of labeled sounds, on a pre-trained model", _finetune)
    _add_embed(commands)
    _add_cache(commands)
    _add_similar(commands)
    _add_evaluate(commands)
    _add_info(commands)
    _add_card(commands)
    _add_publish(commands)
    _add_convert(commands)
    _add_export(commands)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
        command.given = arguments
    return parser


def _add_run(commands: argparse._SubParsersAction, name: str, text: str, run: Callable[..., None]) -> None:
    """Command of a run, whose arguments and help `mtslvr_hf.runs` declares."""
    commands.add_parser(name, help=text, add_help=False).set_defaults(run=run)


def _pretrain(options: argparse.Namespace) -> None:
    from mtslvr_hf.pretrain import main
    from mtslvr_hf.runs.command import run_command

    run_command(main, options.arguments)


def _finetune(options: argparse.Namespace) -> None:
    from mtslvr_hf.finetune import main
    from mtslvr_hf.runs.command import run_command

    run_command(main, options.arguments)


def _add_embed(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "embed",
        help="audio of a folder or data set to a data set of embeddings",
        description="Embeds all audio of a source into parquet shards that datasets.load_dataset reads. Run it again "
        "to continue after an interruption. Bad files are listed in errors.jsonl. Under `accelerate launch` each "
        "process does a part.",
        epilog="example: mtslvr embed sounds --model outputs/my-model --output embeddings --columns file,label",
    )
    _add_shard_options(parser)
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_NAME", help="a model's folder or name on the Hub")
    parser.add_argument(
        "--columns", metavar="A,B", type=_names, default=[], help="columns to copy (folder of files: file,label)"
    )
    parser.add_argument("--id-column", metavar="NAME", help="column of the rows' names (default: the audio's path)")
    parser.add_argument("--tasks", metavar="A,B", type=_names, help="tasks of the embedding (default: the model's)")
    _add_pooling_options(parser)
    parser.add_argument("--normalize", action="store_true", help="give embeddings L2 norm 1")
    parser.add_argument("--batch-size", type=int, default=32, help="windows embedded at once (default: %(default)s)")
    parser.add_argument(
        "--num-workers",
        type=int,
        help="threads that decode and, on a CPU, run the network (default: one per core; 2 for an accelerator)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="data type (default: the model's)")
    parser.add_argument("--compile", action="store_true", help="compile the network first, which takes some seconds")
    parser.add_argument("--faiss", action="store_true", help="also write an index for get_nearest_examples")
    _add_trust(parser)
    parser.set_defaults(run=_embed)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code in the model's folder or repository, if its type needs that (default: an error)",
    )


def _add_shard_options(parser: argparse.ArgumentParser) -> None:
    """Options of commands that write shards: source, output, size, verification."""
    parser.add_argument(
        "--on-truncated",
        choices=("error", "keep"),
        default="error",
        help="a truncated file: leave it out and list it, or keep what it has (default: %(default)s)",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of audio files, of parquet or of tar shards, a parquet or tar file, or a data set on the Hub",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="folder to write")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--split", help="split of the data set (default: its only one; all files of a folder)")
    parser.add_argument("--audio-column", metavar="NAME", help="audio column, if there are several")
    _add_row_paths(parser)
    parser.add_argument("--rows-per-shard", type=int, default=1000, help="rows of a full shard (default: %(default)s)")
    parser.add_argument(
        "--verify", action="store_true", help="read all finished shards, check their checksums, replace damaged ones"
    )


def _add_row_paths(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--allow-row-paths",
        action="store_true",
        help="let rows of a data set name any file or URL (default: only files below its folder or in its repository)",
    )


def _add_pooling_options(parser: argparse.ArgumentParser) -> None:
    """Options of the pooling of a model's last feature map."""
    pooling = parser.add_argument_group("pooling of MT-SLVR models (default: as saved; another pooling has no heads)")
    pooling.add_argument(
        "--pooling",
        choices=("mean", "mean_max", "bands"),
        help="last feature map: mean, mean and maximum, or means of bands of frequency",
    )
    pooling.add_argument("--num-bands", type=int, metavar="N", help="bands of frequency of --pooling bands")
    pooling.add_argument(
        "--no-heads",
        dest="use_heads",
        action="store_const",
        const=False,
        help="embeddings are the pooled feature maps, before the heads",
    )


def _pooling(options: argparse.Namespace) -> dict[str, Any]:
    """Given options of the pooling."""
    given = _settings(options, "pooling num_bands use_heads")
    return {name: value for name, value in given.items() if value is not None}


def _embed(options: argparse.Namespace) -> None:
    from transformers import AutoModel

    from mtslvr_hf.embedding import embed_dataset
    from mtslvr_hf.shards.run import process_state

    _check_model(options.model)
    _check_source(options.source)
    device = options.device and _device(options.device)
    state = process_state(cpu=device == "cpu")
    if device in (None, "cuda"):  # each process has its own
        device = state.device
    settings = {"dtype": options.dtype or "auto", "trust_remote_code": options.trust_remote_code}
    model = AutoModel.from_pretrained(options.model, **settings, **_pooling(options))
    model = model.to(device).eval()
    names = "config split audio_column columns id_column tasks normalize batch_size rows_per_shard num_workers"
    settings = _settings(options, f"{names} compile faiss verify allow_row_paths on_truncated")
    report = embed_dataset(model, options.source, options.output, **settings)
    _end(report, state, f"nothing could be embedded; see {options.output / 'errors.jsonl'}.")


def _settings(options: argparse.Namespace, names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names.split()}


def _end(report: "ShardReport", state: "PartialState", empty: str) -> None:
    """Prints a report; fails if rows are missing; ends the process if it is one of several."""
    if state.is_main_process:
        _print(str(report))
    if report.failures:
        raise ValueError(f"the source could not be read to its end, run it again: {'; '.join(report.failures)}.")
    if report.rows == 0:
        raise ValueError(empty if report.bad_rows else "the source has no rows: an output without rows was written.")
    if state.num_processes > 1:
        state.destroy_process_group()
        sys.stdout.flush()
        # In PyTorch 2.14, gloo threads abort one of thirty interpreters at their end. The launcher would report an
        # error of a finished run.
        os._exit(0)


def _add_similar(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "similar",
        help="sounds of a folder that are most similar to a file",
        description="Prints the sounds of a folder with the largest cosine similarity to a file, the nearest first. "
        "For a large folder, write its embeddings once with `mtslvr embed`, and give that folder as SOURCE.",
        epilog="example: mtslvr similar knock.wav sounds --model outputs/my-model",
    )
    parser.add_argument("query", metavar="QUERY", help="an audio file or its URL")
    parser.add_argument(
        "source", metavar="SOURCE", help="folder of audio or other source of mtslvr embed, or a folder that it wrote"
    )
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_NAME", help="a model's folder or name on the Hub")
    parser.add_argument("--count", type=int, default=5, help="sounds to print (default: %(default)s)")
    parser.add_argument("--tasks", metavar="A,B", type=_names, help="tasks of the embedding (default: the model's)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)")
    _add_trust(parser)
    parser.set_defaults(run=_similar)


def _similar(options: argparse.Namespace) -> None:
    from transformers import AutoModel

    from mtslvr_hf.embedding import find_similar

    _check_model(options.model)
    if not os.path.exists(options.query) and "://" not in options.query:
        raise ValueError(f"there is no file {options.query}{_near(options.query)}.")
    _check_source(options.source)
    model = (
        AutoModel.from_pretrained(options.model, trust_remote_code=options.trust_remote_code)
        .to(_device(options.device))
        .eval()
    )
    for neighbor in find_similar(model, options.query, options.source, **_settings(options, "count tasks")):
        _print(f"{neighbor.similarity:6.3f}  {neighbor.id}")


def _add_info(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "info",
        help="facts of a model: variant, input, size, embedding, license",
        description="Prints the facts of an MT-SLVR model from its configuration and the headers of its weights.",
        epilog="example: mtslvr info outputs/my-model",
    )
    parser.add_argument("model", metavar="FOLDER_OR_NAME", help="a model's folder or name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> None:
    from mtslvr_hf.model_info import describe_model

    _check_model(options.model, options.revision)
    for name, value in describe_model(options.model, options.revision):
        _print(f"{name:<15} {value}")


def _add_cache(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "cache",
        help="data set of any audio to 16 kHz mono FLAC shards, which pre-training reads faster",
        description="Decodes all audio of a source once, to parquet shards of 16 bit mono FLAC with its other "
        "columns. load_audio, mtslvr pretrain, mtslvr embed and datasets.load_dataset read them. Run it again to "
        "continue after an interruption, or to add other splits to the folder. Bad rows are listed in errors.jsonl. "
        "Under `accelerate launch` each process does a part.",
        epilog="example: mtslvr cache agkphysics/AudioSet --config balanced --split train --output audioset-16k",
    )
    _add_shard_options(parser)
    parser.add_argument("--columns", metavar="A,B", type=_names, help="columns to keep (default: all)")
    parser.add_argument("--sampling-rate", type=int, default=16_000, help="in Hz (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, help="threads that decode (default: one for each core)")
    parser.add_argument(
        "--no-shuffle",
        dest="shuffle",
        action="store_false",
        help="keep the order of a folder's files (default: a fixed random order, which training needs)",
    )
    parser.set_defaults(run=_cache)


def _cache(options: argparse.Namespace) -> None:
    from accelerate import PartialState

    from mtslvr_hf.caching import cache_audio

    _check_source(options.source)
    names = "config split audio_column columns sampling_rate rows_per_shard num_workers shuffle verify "
    names += "allow_row_paths on_truncated"
    report = cache_audio(options.source, options.output, **_settings(options, names))
    errors = options.output / report.config / report.split / "errors.jsonl"
    _end(report, PartialState(), f"nothing could be decoded; see {errors}.")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="comparison of models on labelled audio: few-shot accuracy, probes, invariance",
        description="Prints the few-shot accuracy of each model on each data set as Markdown, with 95 % intervals, "
        "average ranks and differences on the same episodes. Log-mel statistics and an untrained network are "
        "baselines. With --output, writes report.md, report.json, report.html and heat maps (needs `pip install "
        "-e '.[evaluation]'` in a clone of the repository), and keeps embeddings, so that an interrupted run "
        "continues. With --update-card, writes the results of one of the models into its model card.",
        epilog="example: mtslvr evaluate --model outputs/my-model --model facebook/wav2vec2-base --data sounds "
        "--data esc50 --output outputs/report",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FOLDER_OR_NAME",
        help="a model's folder or name on the Hub: MT-SLVR or any audio model of transformers; may be repeated. "
        "Data of mtslvr embed need no model",
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="DATA",
        help="folder with a folder of audio files per class, output folder of mtslvr embed, data set on the Hub, name "
        "in the registry (see --list-data), or suite of the registry: paper, labelled, content; may be repeated",
    )
    parser.add_argument("--list-data", action=_ListData, nargs=0, help="list the registry of data sets and exit")
    _add_pooling_options(parser)
    _add_data_options(parser)
    _add_few_shot_options(parser)
    parser.add_argument(
        "--probe",
        action="append",
        choices=("linear", "knn"),
        default=[],
        help="also test a linear probe or nearest neighbors on 30 %% of each data set; may be repeated",
    )
    parser.add_argument(
        "--invariance",
        type=int,
        metavar="CLIPS",
        default=0,
        help="also measure the effect of each augmentation on the embeddings of so many clips (default: 0)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows embedded at once (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder of the report")
    parser.add_argument(
        "--cache", metavar="FOLDER", help="folder of embeddings to keep and reuse (default: OUTPUT/embeddings)"
    )
    parser.add_argument(
        "--update-card",
        metavar="FOLDER",
        help="one of the --model folders, a pre-trained MT-SLVR model: write its results, beside those of the "
        "baselines, into its README.md and results.json. Earlier results of the same weights stay; those of the same "
        "data, protocol and embedding are replaced",
    )
    _add_trust(parser)
    parser.set_defaults(run=_evaluate)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options of data sets: place, columns, splits."""
    own = parser.add_argument_group("data sets that are not in the registry")
    own.add_argument("--config", help="configuration of the data set")
    own.add_argument("--split", help="split of the data set (default: train)")
    own.add_argument("--revision", help="branch, tag or commit on the Hub")
    own.add_argument("--audio-column", metavar="NAME", help="audio column, if there are several")
    own.add_argument(
        "--label-column", metavar="NAME", help="(default: label, labels, human_labels, target, category, class)"
    )
    own.add_argument("--group-column", metavar="NAME", help="speaker, recording, ... (default of folders: group)")
    _add_row_paths(own)
    parser.add_argument(
        "--data-root", type=Path, metavar="FOLDER", help="root of local data sets (default: MTSLVR_EVALUATION_DATA)"
    )


def _add_few_shot_options(parser: argparse.ArgumentParser) -> None:
    """Options of few-shot episodes: classes, protocol, sizes, seed, classifier."""
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--classes", metavar="A,B,...", type=_names, help="classes to use (default: all)")
    classes.add_argument("--class-list", metavar="FILE", help="text file of the classes to use, a name per line")
    parser.add_argument(
        "--protocol",
        choices=("standard", "paper"),
        default="standard",
        help="paper: the paper's episodes of one query, pieces of 5 s, SGD classifier and raw embeddings; it excludes "
        "other values of --ways, --shots, --queries and --classifier (default: %(default)s)",
    )
    parser.add_argument("--ways", type=int, help="classes in an episode (default: 5)")
    parser.add_argument("--shots", type=int, help="labelled clips of each class (default: 1)")
    parser.add_argument("--queries", type=int, help="test clips of each class (default: 5; protocol paper: 1)")
    parser.add_argument("--episodes", type=int, default=10_000, help="number of episodes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes (default: %(default)s)")
    parser.add_argument(
        "--group-disjoint",
        action=argparse.BooleanOptionalAction,
        help="no group has both queries and support clips of an episode (default: as in the registry, else no; "
        "protocol paper: no)",
    )
    parser.add_argument(
        "--classifier", choices=("centroid", "logistic"), help="(default: centroid; protocol paper: its own)"
    )


class _Version(argparse.Action):
    """Prints the version of the installed package."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"mtslvr-hf {version('mtslvr-hf')}\n")
        parser.exit()


class _ListData(argparse.Action):
    """Prints the registry and exits, like --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mtslvr_hf.evaluation.registry import describe_registry

        sys.stdout.write(describe_registry() + "\n")
        parser.exit()


def _evaluate(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from mtslvr_hf.evaluation import (
        FewShotProtocol,
        PaperProtocol,
        evaluate,
        read_class_list,
        to_markdown,
        update_card,
        write_report,
    )
    from mtslvr_hf.evaluation.report.plots import check_matplotlib

    if options.output:
        check_matplotlib()
    for model in options.model:
        _check_model(model)
    for data in options.data:
        _check_data(data)
    if options.update_card is not None:
        _check_card(options.update_card, options.model)
    few_shot = _settings(options, "ways shots queries episodes seed group_disjoint")
    given = {name: value for name, value in few_shot.items() if value is not None}
    protocol = PaperProtocol(**given) if options.protocol == "paper" else FewShotProtocol(**given)
    columns = "config split revision audio_column label_column group_column allow_row_paths"
    report = evaluate(
        options.model,
        options.data,
        protocol,
        classifier=options.classifier,
        classes=read_class_list(options.class_list) if options.class_list else options.classes,
        probes=options.probe,
        invariance_clips=options.invariance,
        device=_device(options.device),
        batch_size=options.batch_size,
        cache=options.cache or (options.output and options.output / "embeddings"),
        root=options.data_root,
        trust_remote_code=options.trust_remote_code,
        **_pooling(options),
        **_settings(options, columns),
    )
    report = replace(report, command=_evaluate_command(options))
    if options.output:
        written = write_report(report, options.output)
    _print(to_markdown(report))
    if options.output:
        sys.stderr.write(f"Wrote {', '.join(str(path) for path in written)}.\n")
    if options.update_card is not None:
        count = update_card(report, options.update_card)
        sys.stderr.write(f"Wrote {count} results into {Path(options.update_card) / 'README.md'}.\n")


def _check_card(folder: str, models: Sequence[str]) -> None:
    """Raises an error if the card of a folder could not be updated, before the work."""
    from mtslvr_hf.cards.results import read_pretrained_card

    if Path(folder).resolve() not in [Path(model).resolve() for model in models]:
        given = ", ".join(models) or "none"
        raise ValueError(f"--update-card {folder} is not one of the models ({given}): give its folder to --model too.")
    read_pretrained_card(folder)


def _evaluate_command(options: argparse.Namespace) -> str:
    """Command that repeats an evaluation, with the last parts of local paths; without device, outputs and caches."""
    from mtslvr_hf.cards.parts import public_name

    names = "model data class_list classes protocol ways shots queries episodes seed group_disjoint classifier probe "
    names += "invariance pooling num_bands use_heads config split revision audio_column label_column group_column "
    names += "trust_remote_code allow_row_paths"
    defaults = {"protocol": "standard", "episodes": 10_000, "seed": 0, "invariance": 0}
    defaults |= {"trust_remote_code": False, "allow_row_paths": False}
    negated = {"group_disjoint": "--no-group-disjoint", "use_heads": "--no-heads"}
    words = ["mtslvr", "evaluate"]
    for name in names.split():
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is None or value == defaults.get(name):
            continue
        if isinstance(value, bool):
            words.append(flag if value else negated[name])
            continue
        if name == "classes":
            value = ",".join(value)
        for each in value if isinstance(value, list) else [value]:
            words += [flag, public_name(str(each)) if name in ("model", "data", "class_list") else str(each)]
    return shlex.join(words)


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # AssertionError: torch without CUDA
        raise ValueError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from error
    return name


def _check_model(source: str, revision: str | None = None) -> None:
    """Raises an error for a model that does not exist, before libraries are imported and files are downloaded."""
    file = os.path.join(source, "config.json")
    if not os.path.exists(source) and not _looks_like_a_path(source):
        return _look_up(source, "model", revision)
    if not os.path.isfile(file):
        raise ValueError(f"no model in {source}: there is no {file}{_near(source)}.")
    try:
        with open(file, encoding="utf-8") as content:
            config = json.load(content)
    except ValueError as error:
        raise ValueError(f"{file} is no JSON file ({error}): save or download the model again.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}; expected the configuration of a model.")


def _check_source(source: str) -> None:
    """Raises an error for audio that does not exist: a path, a URL or a data set on the Hub."""
    if os.path.exists(source) or "://" in source:
        return
    if _looks_like_a_path(source):
        raise FileNotFoundError(f"there is no file or folder {source}{_near(source)}.")
    _look_up(source, "dataset")


def _check_data(data: str) -> None:
    """Raises an error for data of an evaluation that do not exist."""
    from mtslvr_hf.evaluation.registry import BENCHMARKS, SUITES

    if data in BENCHMARKS or data in SUITES or _looks_like_a_path(data):  # `open_data` says what is wrong with a path
        return
    try:
        _check_source(data)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} Names of the registry: {', '.join((*BENCHMARKS, *SUITES))}.") from error


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/")


def _near(source: str) -> str:
    """Question for a path that does not exist if a similar one does; else an empty text."""
    folder, name = os.path.split(os.path.expanduser(source).rstrip("/"))
    if os.path.exists(source) or not os.path.isdir(folder or "."):
        return ""
    found = difflib.get_close_matches(name, os.listdir(folder or "."), n=1)
    return f" (did you mean {os.path.join(folder, found[0])}?)" if found else ""


def _look_up(name: str, kind: str, revision: str | None = None) -> None:
    """Raises a FileNotFoundError if there is no such model or data set on the Hub; asks once, without retries."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    home = os.environ.get("HF_DATASETS_CACHE", os.path.join(constants.HF_HOME, "datasets"))
    downloaded = os.path.join(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}")
    if os.path.isdir(downloaded) or (
        kind == "dataset" and os.path.isdir(os.path.join(home, name.replace("/", "___")))
    ):
        return
    no_connection: Any = (OSError, HfHubHTTPError.__bases__[0])  # of httpx, or what takes its place
    missing = f"there is no folder {name}{_near(name)}"
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=10)
    except HFValidationError as error:
        raise FileNotFoundError(f"{missing}, and a name on the Hub is OWNER/NAME.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{missing}, and no public {kind} of this name on the Hub.") from error
    except OfflineModeIsEnabled as error:
        raise FileNotFoundError(
            f"{missing}; on the Hub it could not be looked up: offline (HF_HUB_OFFLINE)."
        ) from error
    except HfHubHTTPError:  # the library that downloads it says more
        return
    except no_connection as error:
        reason = str(error).strip() or type(error).__name__
        raise FileNotFoundError(f"{missing}; on the Hub it could not be looked up: offline ({reason}).") from error


def _add_card(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "card",
        help="results of a stored report of mtslvr evaluate into a model card",
        description="Writes the results of one model in a stored report into the model's card, as mtslvr evaluate "
        "--update-card does at the end of an evaluation. The folder must hold the weights that were evaluated.",
        epilog="example: mtslvr card outputs/my-model --report outputs/report/report.json",
    )
    parser.add_argument("model", metavar="MODEL", help="the model's folder")
    parser.add_argument("--report", required=True, metavar="FILE", help="report.json of mtslvr evaluate --output")
    parser.add_argument("--name", help="the model's name in the report (default: MODEL)")
    parser.set_defaults(run=_card)


def _card(options: argparse.Namespace) -> None:
    from mtslvr_hf.evaluation import read_report, update_card

    count = update_card(read_report(options.report), options.model, options.name)
    _print(f"Wrote {count} results into {Path(options.model) / 'README.md'}.")


def _add_publish(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "publish",
        help="model, classifier, adapter, embeddings or cached audio to the Hub, after checks",
        description="Checks a folder and publishes it on the Hub: it must load without this package with the same "
        "output, its card must be valid and have a license, and no file may hold a token or a local path. What "
        "arrived is downloaded and compared. The same command can be repeated.",
        epilog="example: mtslvr publish outputs/my-model me/my-model --license cc-by-4.0",
    )
    parser.add_argument("folder", metavar="FOLDER", help="output of pretrain, finetune, save_adapter, embed or cache")
    parser.add_argument("name", metavar="OWNER/NAME", help="repository on the Hub, made if it does not exist")
    parser.add_argument("--license", help="license as the Hub spells it, or unknown (default: the card's)")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if it does not exist (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument("--base-model", metavar="FOLDER_OR_NAME", help="model of an adapter")
    parser.add_argument(
        "--dry-run", metavar="NEW_FOLDER", type=Path, help="write the files there, print them, and upload nothing"
    )
    parser.set_defaults(run=_publish)


def _publish(options: argparse.Namespace) -> None:
    from mtslvr_hf.publishing import publish

    names = "license private revision create_pr base_model dry_run"
    _print(str(publish(options.folder, options.name, **_settings(options, names))))


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="original checkpoint to a folder that from_pretrained loads",
        description="Converts a checkpoint of the MT-SLVR authors' code to a folder that from_pretrained loads. "
        "Architecture, input, depth and heads come from the checkpoint. If a tensor has no place, nothing is written.",
        epilog="example: mtslvr convert original.pt outputs/converted",
    )
    parser.add_argument("source", metavar="SOURCE.pt", help="original checkpoint")
    parser.add_argument("destination", metavar="DESTINATION", help="folder to write")
    parser.add_argument(
        "--tasks",
        metavar="A,B",
        type=_names,
        help="training tasks of a backbone with a single head, which its tensors do not show: contrastive (default), "
        "predictive, or contrastive,predictive for MT-Simple's shared head",
    )
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    from mtslvr_hf.conversion import convert_checkpoint

    convert_checkpoint(options.source, options.destination, options.tasks)
    _print(f"Wrote {options.destination}. Load it with AutoModel.from_pretrained({options.destination!r}).")


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="model to an ONNX file",
        description="Writes a model as one ONNX file: from mono audio at the model's sampling rate, of any length, or "
        "from spectrograms, to embeddings and a classifier's logits. The file normalizes the audio. It is compared "
        "with torch; above the tolerance, it is written only if rounding explains the error, with a warning. Needs "
        "`pip install -e '.[onnx]'` in a clone of the repository.",
        epilog="example: mtslvr export outputs/my-model --output my-model.onnx",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's folder or its name on the Hub")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.onnx", help="file to write")
    parser.add_argument(
        "--input", choices=("waveform", "spectrogram"), default="waveform", help="kind of input (default: %(default)s)"
    )
    parser.add_argument(
        "--attention-mask",
        action="store_true",
        help="add the input attention_mask, for clips of different lengths in a batch",
    )
    parser.add_argument("--tasks", metavar="A,B", type=_names, help="tasks of the embedding (default: the model's)")
    parser.add_argument("--no-classifier", action="store_true", help="export a classifier's embedding alone")
    _add_pooling_options(parser)
    parser.add_argument("--opset", type=int, help="ONNX operator set, 18 or higher (default: torch's)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest relative error of an output (default: %(default)s)"
    )
    _add_trust(parser)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification

    from mtslvr_hf import MTSLVRForAudioClassification
    from mtslvr_hf.export import export_onnx

    _check_model(options.model)
    trust = {"trust_remote_code": options.trust_remote_code}
    architectures = AutoConfig.from_pretrained(options.model, **trust).architectures or []
    classifies = MTSLVRForAudioClassification.__name__ in architectures and not options.no_classifier
    auto_class = AutoModelForAudioClassification if classifies else AutoModel
    model = auto_class.from_pretrained(options.model, **trust, **_pooling(options))
    settings = _settings(options, "input tasks opset attention_mask tolerance")
    report = export_onnx(model, options.output, **settings)
    logits = "" if report.labels is None else f"logits of {len(report.labels)} classes and "
    _print(
        f"Wrote {report.path}: {report.input} to {logits}embeddings of {report.embedding_size} "
        f"({', '.join(report.tasks)}), opset {report.opset}, {report.size / 1e6:.1f} MB.\n"
        f"Largest relative error against torch, {report.clips} clips: {report.max_error:.1e}."
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("expected names separated by commas.")
    return names


__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
