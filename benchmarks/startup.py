"""Seconds of cold processes, from their start to their end: imports, commands, and the first embedding of one file.

python benchmarks/startup.py                                 # models/mtslvr-small
python benchmarks/startup.py --model outputs/my-model --rounds 9
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from as_published import machine

REPOSITORY = Path(__file__).resolve().parents[1]
LOAD = "import torch, transformers, mtslvr_hf; model = transformers.AutoModel.from_pretrained({model!r}).eval()"
SCRIPTS = {
    "import torch, transformers": "import torch, transformers",
    "import torch, transformers.modeling_utils": "import torch, transformers.modeling_utils",
    "import mtslvr_hf": "import mtslvr_hf",
    "weights loaded by AutoModel": LOAD,
    "first embedding of one file": LOAD + "; model.encode({file!r})",
}
COMMANDS = {
    "mtslvr --help": ["--help"],
    "mtslvr info": ["info", "{model}"],
    "mtslvr embed, a folder with one file": ["embed", "{folder}", "--model", "{model}", "--output", "{output}"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "models/mtslvr-small"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):  # the first one reads files into the page cache
        with tempfile.TemporaryDirectory() as temporary:
            names = {"model": options.model, "folder": f"{temporary}/sounds", "output": f"{temporary}/embeddings"}
            names["file"] = f"{temporary}/sounds/a.wav"
            Path(names["folder"]).mkdir()
            soundfile.write(names["file"], 0.1 * np.random.default_rng(0).standard_normal(441_000), 44_100)
            commands = {name: [sys.executable, "-c", code.format(**names)] for name, code in SCRIPTS.items()}
            for name, words in COMMANDS.items():
                start = [sys.executable, "-c", "import sys, mtslvr_cli; sys.exit(mtslvr_cli.main())"]
                commands[name] = start + [word.format(**names) for word in words]
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                if number:
                    seconds.setdefault(name, []).append(time.perf_counter() - started)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    first = next(iter(median.values()))
    print(f"{options.model}, {options.rounds} rounds in turns; {machine()}\n")
    print("| cold process | s, median | fastest | more than the first line |\n| --- | --- | --- | --- |")
    for name, value in median.items():
        print(f"| `{name}` | {value:.2f} | {min(seconds[name]):.2f} | {value - first:+.2f} |")
    more = median["first embedding of one file"] - median["weights loaded by AutoModel"]
    print(f"\nThe first embedding takes {more:.2f} s more than the loaded weights.")


if __name__ == "__main__":
    main()
