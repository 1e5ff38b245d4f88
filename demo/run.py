"""Demo of MT-SLVR in a few minutes: find similar sounds; then cache, pre-train, evaluate on classes not in training.

`make demo` runs it. It empties demo/output, and writes there only. Each step prints its command, to run in the root of
the repository.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mtslvr_cli import leave_the_cores_to_others

ROOT = Path(__file__).resolve().parent.parent
AUDIO = Path("demo/audio")
OUTPUT = Path("demo/output")
MODEL = Path("models/mtslvr-small")
QUERY = AUDIO / "flute" / "program_73_key_67_velocity_96.flac"
# Three drums and three instruments for evaluation. The other eight classes are for training.
UNSEEN = "flute,kick,nylon_guitar,snare,tabla,vibraphone"
NEXT = f"""
The model is in {OUTPUT / "model"}: load it with AutoModel.from_pretrained and AutoFeatureExtractor.from_pretrained.
The evaluation with its plots is in {OUTPUT / "evaluation" / "report.html"}.

Next:
  - your own sounds: mtslvr evaluate --model {MODEL} --data FOLDER_WITH_A_FOLDER_PER_CLASS
  - a longer run: the command of step 3 with --max_steps 2000 --output_dir outputs/longer
  - the paper's runs on AudioSet: training/README.md
(The commands mtslvr and accelerate are in .venv/bin.)
"""


def main() -> int:
    """Runs the four steps; returns the exit code of the first failure."""
    os.chdir(ROOT)
    leave_the_cores_to_others()  # in `accelerate launch`, too
    shutil.rmtree(OUTPUT, ignore_errors=True)
    start = time.monotonic()
    try:
        find_similar()
        cache()
        pretrain()
        evaluate()
    except subprocess.CalledProcessError as error:
        print(f"\nThe demo stopped: {shlex.join(error.cmd)} exited with {error.returncode}.", file=sys.stderr)
        return error.returncode
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes.\n{NEXT}", end="")
    return 0


def find_similar() -> None:
    """Finds the sounds that are most similar to one, with the model of the repository."""
    heading(f"1. Embed the sounds with {MODEL}, and find those that are most similar to one")
    run("mtslvr", "similar", QUERY, AUDIO, "--model", MODEL)


def cache() -> None:
    """Caches the clips of the training classes."""
    heading("2. Decode the training sounds of a model of your own once, into parquet shards")
    for folder in sorted(path for path in AUDIO.iterdir() if path.is_dir()):
        if folder.name not in UNSEEN.split(","):
            shutil.copytree(folder, OUTPUT / "sounds" / folder.name)
    run("mtslvr", "cache", OUTPUT / "sounds", "--output", OUTPUT / "parquet")


def pretrain() -> None:
    """Pre-trains with both objectives, without labels."""
    heading("3. Pre-train a narrow ResNet-18 with parallel adapters on them (at most 4 minutes on 2 cores)")
    launch = ["accelerate", "launch", "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no"]
    # By default, accelerate gives a process a single thread.
    launch += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", os.cpu_count() or 1]
    run(*launch, "training/pretrain.py", "demo/demo.yaml")


def evaluate() -> None:
    """Evaluates the saved model in a new process."""
    heading("4. Reload it in a new process, and classify sounds of new classes from one example each")
    report = OUTPUT / "evaluation"
    run("mtslvr", "evaluate", "--model", OUTPUT / "model", "--data", AUDIO, "--classes", UNSEEN, "--output", report)


def heading(text: str) -> None:
    print(f"\n== {text}\n", flush=True)


def run(program: str, *arguments: object) -> None:
    """Runs a program of this virtual environment."""
    command = [str(Path(sys.executable).parent / program), *map(str, arguments)]
    print("$ " + shlex.join([program, *command[1:]]), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
