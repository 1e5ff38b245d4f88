"""The `mtslvr` command.

What a subcommand needs is imported when it runs, so that none waits for what only another needs.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__


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
        description="Audio embeddings pre-trained with MT-SLVR: evaluate them, convert original checkpoints.",
    )
    parser.add_argument("--version", action="version", version=f"mtslvr-hf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_evaluate(commands)
    _add_convert(commands)
    return parser


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="few-shot accuracy of models on labelled audio",
        description="Prints the few-shot accuracy of each model's embeddings on a folder of labelled audio, beside "
        "that of log-mel statistics and of the untrained network, as a Markdown table with 95 %% intervals.",
        epilog="example: mtslvr evaluate --model outputs/my-model --data sounds --ways 5 --shots 1",
    )
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="FOLDER_OR_NAME",
        help="a model's folder or its name on the Hub; may be given several times",
    )
    parser.add_argument("--data", required=True, metavar="FOLDER", help="holds a folder of audio files per class")
    parser.add_argument("--classes", metavar="A,B,...", type=_names, help="classes to use (default: all)")
    parser.add_argument("--ways", type=int, default=5, help="classes in a task (default: %(default)s)")
    parser.add_argument("--shots", type=int, default=1, help="labelled clips of each class (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=5, help="clips of each class to tell (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=10_000, help="number of tasks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws the tasks (default: %(default)s)")
    parser.add_argument(
        "--group-disjoint",
        action="store_true",
        help="keep the groups of a task's queries (column group of the folder's manifest.csv) out of its support",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)")
    parser.add_argument("--batch-size", type=int, default=16, help="clips embedded at once (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from .evaluation import FewShotTask, evaluate_few_shot

    task = FewShotTask(
        options.ways, options.shots, options.queries, options.tasks, options.seed, options.group_disjoint
    )
    device = _device(options.device)
    for model in options.model:
        _check_model_folder(model)
    report = evaluate_few_shot(options.model, options.data, options.classes, task, device, options.batch_size)
    sys.stdout.write(report.to_markdown() + "\n")
    if options.json:
        options.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


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
        raise ValueError(f"no model in {source}: there is no {os.path.join(source, 'config.json')}")


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
    from .conversion import convert_checkpoint

    convert_checkpoint(options.source, options.destination, options.tasks)
    sys.stdout.write(
        f"Wrote {options.destination}. Load it with AutoModel.from_pretrained({options.destination!r}).\n"
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("expected names separated by commas")
    return names


__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
