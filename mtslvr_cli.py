"""The `mtslvr` command line.

This module stands outside of the package, which imports torch and transformers, so that `--help` needs neither. A
subcommand imports what it needs when it runs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

    from mtslvr_hf.shards import ShardReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 if all went well, 1 if the work failed. Wrong arguments exit with 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except BrokenPipeError:  # `mtslvr ... | head`: nobody reads the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"mtslvr {options.command}: error: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtslvr",
        description="Audio embeddings pre-trained with MT-SLVR: make and evaluate them, convert original checkpoints.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_embed(commands)
    _add_cache(commands)
    _add_evaluate(commands)
    _add_card(commands)
    _add_convert(commands)
    _add_export(commands)
    return parser


def _add_embed(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "embed",
        help="audio of a folder or data set to a data set of embeddings",
        description="Embeds all audio of a source into parquet shards that datasets.load_dataset reads. Run it again "
        "to go on after an interruption: finished shards are kept. Bad files are listed in errors.jsonl. "
        "Under `accelerate launch` each process takes its share.",
        epilog="example: mtslvr embed sounds --model outputs/my-model --output embeddings --columns file,label",
    )
    _add_shard_options(parser)
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_NAME", help="a model's folder or name on the Hub")
    parser.add_argument(
        "--columns", metavar="A,B", type=_names, default=[], help="columns to copy (a folder of files: file,label)"
    )
    parser.add_argument("--id-column", metavar="NAME", help="column that names the rows (default: the audio's path)")
    parser.add_argument("--tasks", metavar="A,B", type=_names, help="tasks of the embedding (default: the model's)")
    parser.add_argument("--normalize", action="store_true", help="give embeddings L2 norm 1")
    parser.add_argument("--batch-size", type=int, default=32, help="windows embedded at once (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=2, help="threads that decode ahead (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the computation (default: the model's)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the network first, which takes some seconds")
    parser.add_argument("--faiss", action="store_true", help="write an index for get_nearest_examples, too")
    parser.set_defaults(run=_embed)


def _add_shard_options(parser: argparse.ArgumentParser) -> None:
    """Options of commands that write shards: source, output, size, verification."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of audio files, of parquet or of tar shards, a parquet or tar file, or a data set on the Hub",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--config", help="configuration of the data set")
    parser.add_argument("--split", help="its split (default: its only one; all files of a folder)")
    parser.add_argument("--audio-column", metavar="NAME", help="needed where several columns could be meant")
    parser.add_argument("--rows-per-shard", type=int, default=1000, help="most rows of a file (default: %(default)s)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the checksums of finished shards, which reads all of them, and make damaged ones again",
    )


def _embed(options: argparse.Namespace) -> None:
    from transformers import AutoModel

    from mtslvr_hf.embedding.embed_dataset import embed_dataset
    from mtslvr_hf.shards.run import process_state

    _check_model_folder(options.model)
    device = options.device and _device(options.device)
    state = process_state(cpu=device == "cpu")
    if device in (None, "cuda"):  # each process has its own
        device = state.device
    model = AutoModel.from_pretrained(options.model, dtype=options.dtype or "auto").to(device).eval()
    names = "config split audio_column columns id_column tasks normalize batch_size rows_per_shard num_workers"
    names += " compile faiss verify"
    try:
        report = embed_dataset(
            model, options.source, options.output, **{name: getattr(options, name) for name in names.split()}
        )
    except ImportError as error:
        raise ValueError(str(error)) from error
    _end(report, state, f"nothing could be embedded; {options.output / 'errors.jsonl'} says why.")


def _end(report: "ShardReport", state: "PartialState", empty: str) -> None:
    """Prints a report and ends the process if it was one of several; fails if rows are missing, or all are."""
    if state.is_main_process:
        sys.stdout.write(f"{report}\n")
    if report.failures:
        raise ValueError(f"the source could not be read to its end, run it again: {'; '.join(report.failures)}.")
    if report.rows == 0:
        raise ValueError(empty)
    if state.num_processes > 1:
        state.destroy_process_group()
        sys.stdout.flush()
        # PyTorch 2.14's gloo threads abort one in thirty interpreters that shut down after their use, and the launcher
        # would take a finished run for a failed one.
        os._exit(0)


def _add_cache(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "cache",
        help="data set of any audio to 16 kHz mono FLAC shards, which pre-training reads faster",
        description="Decodes all audio of a source once, to parquet shards of 16 bit mono FLAC beside the source's "
        "other columns, which load_audio, pretrain.py, mtslvr embed and datasets.load_dataset read. Run it again to "
        "go on after an interruption: finished shards are kept. Other splits of the source go into the "
        "same folder by further runs. Bad rows are listed in errors.jsonl. Under `accelerate launch` each process "
        "takes its share.",
        epilog="example: mtslvr cache agkphysics/AudioSet --config balanced --split train --output audioset-16k",
    )
    _add_shard_options(parser)
    parser.add_argument("--columns", metavar="A,B", type=_names, help="columns to keep (default: all)")
    parser.add_argument("--sampling-rate", type=int, default=16_000, help="in Hz (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, help="threads that decode (default: one for each core)")
    parser.set_defaults(run=_cache)


def _cache(options: argparse.Namespace) -> None:
    from accelerate import PartialState

    from mtslvr_hf.caching import cache_audio

    names = "config split audio_column columns sampling_rate rows_per_shard num_workers verify"
    report = cache_audio(options.source, options.output, **{name: getattr(options, name) for name in names.split()})
    errors = options.output / report.config / report.split / "errors.jsonl"
    _end(report, PartialState(), f"nothing could be decoded; {errors} says why.")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="models side by side on labelled audio: few-shot accuracy, probes, invariance",
        description="Prints the few-shot accuracy of each model's embeddings on each data set, beside that of log-mel "
        "statistics and of an untrained network, with 95 % intervals, average ranks and differences on the same "
        "episodes, as Markdown. With --output, writes report.md, report.json, report.html and heat maps (needs `pip "
        "install 'mtslvr-hf[evaluation]'`), and keeps embeddings, so that an interrupted run goes on where it was.",
        epilog="example: mtslvr evaluate --model outputs/my-model --model facebook/wav2vec2-base --data sounds "
        "--data esc50 --output outputs/report",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FOLDER_OR_NAME",
        help="a model's folder or its name on the Hub: ours, or any audio model of transformers; may be repeated. "
        "Embeddings that are given as data need none",
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="DATA",
        help="a folder with a folder of audio files per class, a folder that mtslvr embed wrote, a data set on the "
        "Hub, a name of the registry, or a suite of it: paper, labelled (--list-data shows them); may be repeated",
    )
    parser.add_argument("--list-data", action=_ListData, nargs=0, help="list the registry of data sets and exit")
    _add_data_options(parser)
    _add_few_shot_options(parser)
    parser.add_argument(
        "--probe",
        action="append",
        choices=("linear", "knn"),
        default=[],
        help="measure a linear probe or nearest neighbors on 30 %% of each data set as well; may be repeated",
    )
    parser.add_argument(
        "--invariance",
        type=int,
        metavar="CLIPS",
        default=0,
        help="measure what each augmentation does to the embeddings of so many clips (default: not at all)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows embedded at once (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write the report there")
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="keep embeddings there, and reuse those that are there (default: OUTPUT/embeddings)",
    )
    parser.set_defaults(run=_evaluate)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options of data sets: place, columns, splits."""
    own = parser.add_argument_group("data sets that are not in the registry")
    own.add_argument("--config", help="configuration of the data set")
    own.add_argument("--split", help="its split (default: train)")
    own.add_argument("--revision", help="branch, tag or commit on the Hub")
    own.add_argument("--audio-column", metavar="NAME", help="needed where several columns could be meant")
    own.add_argument(
        "--label-column", metavar="NAME", help="(default: label, labels, human_labels, target, category, class)"
    )
    own.add_argument("--group-column", metavar="NAME", help="speaker, recording, ... (default of folders: group)")
    parser.add_argument(
        "--data-root",
        type=Path,
        metavar="FOLDER",
        help="holds the registry's local sets (default: MTSLVR_EVALUATION_DATA)",
    )


def _add_few_shot_options(parser: argparse.ArgumentParser) -> None:
    """Options of few-shot episodes: classes, sizes, seed, classifier."""
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--classes", metavar="A,B,...", type=_names, help="classes to use (default: all)")
    classes.add_argument("--class-list", metavar="FILE", help="text file of the classes to use, a name per line")
    parser.add_argument("--ways", type=int, default=5, help="classes in an episode (default: %(default)s)")
    parser.add_argument("--shots", type=int, default=1, help="labelled clips of each class (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=5, help="clips of each class to tell (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=10_000, help="number of episodes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws the episodes (default: %(default)s)")
    parser.add_argument(
        "--group-disjoint",
        action=argparse.BooleanOptionalAction,
        help="keep the groups of an episode's queries out of its support (default: as the registry says, else no)",
    )
    parser.add_argument(
        "--classifier", choices=("centroid", "logistic"), default="centroid", help="(default: %(default)s)"
    )


class _Version(argparse.Action):
    """Prints the version of the installed package."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"mtslvr-hf {version('mtslvr-hf')}\n")
        parser.exit()


class _ListData(argparse.Action):
    """Prints the registry, like --help, whatever else was given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mtslvr_hf.evaluation.registry import describe_registry

        sys.stdout.write(describe_registry() + "\n")
        parser.exit()


def _evaluate(options: argparse.Namespace) -> None:
    from mtslvr_hf.evaluation import FewShotProtocol, evaluate, read_class_list, to_markdown, write_report
    from mtslvr_hf.evaluation.report.plots import check_matplotlib

    if options.output:
        try:
            check_matplotlib()
        except ImportError as error:
            raise ValueError(str(error)) from error
    for model in options.model:
        _check_model_folder(model)
    names = "ways shots queries episodes seed group_disjoint"
    columns = "config split revision audio_column label_column group_column"
    report = evaluate(
        options.model,
        options.data,
        FewShotProtocol(**{name: getattr(options, name) for name in names.split()}),
        classifier=options.classifier,
        classes=read_class_list(options.class_list) if options.class_list else options.classes,
        probes=options.probe,
        invariance_clips=options.invariance,
        device=_device(options.device),
        batch_size=options.batch_size,
        cache=options.cache or (options.output and options.output / "embeddings"),
        root=options.data_root,
        **{name: getattr(options, name) for name in columns.split()},
    )
    if options.output:
        write_report(report, options.output)
    sys.stdout.write(to_markdown(report) + "\n")


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # torch raises the former where it was built without CUDA
        raise ValueError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from error
    return name


def _check_model_folder(source: str) -> None:
    """Tells a mistyped path from a Hub name, which transformers would go and look for on the network."""
    looks_like_a_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or os.path.exists(source)
    if looks_like_a_path and not os.path.isfile(os.path.join(source, "config.json")):
        raise ValueError(f"no model in {source}: there is no {os.path.join(source, 'config.json')}.")


def _add_card(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "card",
        help="results of mtslvr evaluate into a model's card",
        description="Writes the few-shot accuracies and probes of a report into the README.md of a pre-trained "
        "model's folder: its section Results and its metadata, in place of all earlier results.",
        epilog="example: mtslvr card outputs/my-model --report outputs/report/report.json",
    )
    parser.add_argument("model", metavar="MODEL", help="the model's folder")
    parser.add_argument("--report", required=True, metavar="FILE", help="report.json of mtslvr evaluate --output")
    parser.add_argument("--name", help="the model's name in the report (default: MODEL)")
    parser.set_defaults(run=_card)


def _card(options: argparse.Namespace) -> None:
    from mtslvr_hf.cards.results import results_from, write_results

    results = results_from(options.report, options.name or options.model)
    write_results(options.model, results)
    sys.stdout.write(f"Wrote {len(results)} results into {Path(options.model) / 'README.md'}.\n")


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="original checkpoint to a folder that from_pretrained loads",
        description="Turns a checkpoint of the MT-SLVR authors' code into a folder that from_pretrained loads. "
        "Architecture, input, depth and heads are read from the checkpoint; nothing is written unless every tensor "
        "has a place.",
        epilog="example: mtslvr convert original.pt outputs/converted",
    )
    parser.add_argument("source", metavar="SOURCE.pt", help="the original checkpoint")
    parser.add_argument("destination", metavar="DESTINATION", help="the folder to write")
    parser.add_argument(
        "--tasks",
        metavar="A,B",
        type=_names,
        help="what a backbone with a single head was trained on, which its tensors do not say: contrastive (default), "
        "predictive, or contrastive,predictive for MT-Simple's shared head",
    )
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    from mtslvr_hf.conversion import convert_checkpoint

    convert_checkpoint(options.source, options.destination, options.tasks)
    sys.stdout.write(
        f"Wrote {options.destination}. Load it with AutoModel.from_pretrained({options.destination!r}).\n"
    )


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="model to an ONNX file",
        description="Writes a model as one ONNX file, from waveforms (padded, with an attention mask, any batch and "
        "length) or spectrograms to embeddings, and compares it with torch. Above a relative error of 1e-4 it exits "
        "with 1 and leaves no file. Needs `pip install 'mtslvr-hf[onnx]'`.",
        epilog="example: mtslvr export outputs/my-model --output my-model.onnx",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's folder or its name on the Hub")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.onnx", help="the file to write")
    parser.add_argument(
        "--input", choices=("waveform", "spectrogram"), default="waveform", help="what goes in (default: %(default)s)"
    )
    parser.add_argument("--tasks", metavar="A,B", type=_names, help="tasks of the embedding (default: the model's)")
    parser.add_argument("--opset", type=int, help="ONNX operator set, 18 or higher (default: torch's)")
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from transformers import AutoModel

    from mtslvr_hf.export import export_onnx

    _check_model_folder(options.model)
    model = AutoModel.from_pretrained(options.model)
    try:
        report = export_onnx(model, options.output, options.input, options.tasks, options.opset)
    except ImportError as error:
        raise ValueError(str(error)) from error
    sys.stdout.write(
        f"Wrote {report.path}: {report.input} to embeddings of {report.embedding_size} ({', '.join(report.tasks)}), "
        f"opset {report.opset}, {report.size / 1e6:.1f} MB.\n"
        f"Largest relative error against torch, {report.clips} clips: {report.max_error:.1e}.\n"
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("expected names separated by commas.")
    return names


__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
