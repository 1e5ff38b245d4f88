"""Launchers: configuration files of accelerate, and runs over two machines of which one is lost."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from pretraining_runs import ROOT, TINY, logged, make_args, tone, wav_bytes
from processes import launch
from safetensors.torch import load_file

from mtslvr_hf.resumable import fault_of, last_checkpoint
from mtslvr_hf.resumable.checkpoints import UNFINISHED, checkpoints_of, load_run_state
from mtslvr_hf.runs.run_folder import run_of

CONFIGS = ROOT / "training/configs/accelerate"
LAUNCH = "accelerate launch --config_file training/configs/accelerate/"
LONGEST_START = 900  # seconds; other work may slow the machine
LONGEST_END = 300  # until the side that is left has ended


@pytest.fixture
def run_file(tmp_path):
    """Configuration of a small run beside its audio."""
    (tmp_path / "audio").mkdir()
    for number in range(16):
        (tmp_path / f"audio/{number}.wav").write_bytes(wav_bytes(tone(number)))
    run = {**TINY, "dataset_name": "audio", "per_device_train_batch_size": 4, "use_cpu": True, "logging_steps": 3}
    run |= {
        "eval_strategy": "no",
        "save_steps": 2,
        "save_total_limit": None,
        "dataloader_num_workers": 1,
        "disable_tqdm": True,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


@pytest.mark.parametrize(
    ("name", "machines", "processes", "options"),
    [
        ("one_gpu", 1, 1, []),
        ("eight_gpus", 1, 8, []),
        ("two_machines", 2, 16, ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"]),
        ("cpu", 1, 2, []),
    ],
)
def test_accelerate_reads_its_configurations(name, machines, processes, options):
    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert (config.num_machines, config.num_processes, config.use_cpu) == (machines, processes, name == "cpu")
    command = ["--config_file", str(path), *options, "-m", "mtslvr_hf.pretrain", "CONFIG"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (args.num_machines, args.num_processes, args.multi_gpu) == (machines, processes, processes > 1)
    assert args.machine_rank == (1 if options else 0) and args.mixed_precision == "no"
    assert f"{LAUNCH}{name}.yaml" in path.read_text()  # its command


def test_there_is_a_row_for_each_configuration():
    assert {path.stem for path in CONFIGS.iterdir()} == {"one_gpu", "eight_gpus", "two_machines", "cpu"}


@pytest.mark.ddp
def test_the_configuration_for_cpus_starts_two_processes(run_file, tmp_path):
    command = ["-m", "accelerate.commands.launch", "--config_file", CONFIGS / "cpu.yaml", "--main_process_port", "0"]
    launch([*command, "-m", "mtslvr_hf.pretrain", run_file, "--max_steps", "3", "--output_dir", "out"], tmp_path)
    states = [load_run_state(tmp_path / "out/checkpoint-3", rank, 2) for rank in (0, 1)]
    assert [state["stream"]["position"]["rank"] for state in states] == [0, 1]
    assert logged(tmp_path / "out", "rows_read") == {3: 2 * 3 * 4}


def test_processes_that_would_train_alone_are_refused(tmp_path, monkeypatch):
    args = make_args(tmp_path / "out")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "2 processes were started, and this one works in a group of 1. Give --use_cpu true"
    with pytest.raises(SystemExit, match=message), run_of(args):
        pass
    assert not (tmp_path / "out").exists()


APART = """
import os, sys
from mtslvr_hf import pretrain
from mtslvr_hf.runs import run_folder

run_folder.SHARED_SECONDS = 1
pretrain.run_command(pretrain.main, [*sys.argv[1:], "--output_dir", f"out{os.environ['RANK']}"])
"""


@pytest.mark.slow
@pytest.mark.ddp
def test_machines_that_do_not_share_the_output_folder_are_refused(run_file, tmp_path):
    (tmp_path / "apart.py").write_text(APART)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "apart.py"]
    command += [str(run_file), "--max_steps", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert (
        done.returncode == 1 and "out1 is not the folder that the first process of this run has locked" in done.stderr
    )
    assert not list(tmp_path.glob("out*/checkpoint-*"))


def environment(**changes):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Machines:
    """Two launchers of a process each, which meet at a port as those of two machines would."""

    def __init__(self, folder, *options):
        self.folder, port = folder, str(free_port())
        self.logs = [folder / f"machine{rank}.log" for rank in (0, 1)]
        self.launchers = [self._start(rank, port, options) for rank in (0, 1)]

    def _start(self, rank, port, options):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        command += ["--node_rank", str(rank), "--local_addr", f"127.0.0.{rank + 1}"]
        command += ["--master_addr", "127.0.0.1", "--master_port", port, "-m", "mtslvr_hf.pretrain", *options]
        with open(self.logs[rank], "w") as log:
            env = environment(GLOO_SOCKET_IFNAME="lo")
            return subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for rank, launcher in enumerate(self.launchers):
            if launcher.poll() is None:
                self.kill(rank)

    def wait_for(self, path):
        deadline = time.monotonic() + LONGEST_START
        while not path.exists():
            assert all(launcher.poll() is None for launcher in self.launchers), self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def kill(self, rank):
        """Ends a machine: no process of it can say a word."""
        launcher = psutil.Process(self.launchers[rank].pid)
        for process in [*launcher.children(recursive=True), launcher]:
            process.kill()
        self.launchers[rank].wait()

    def end(self, seconds):
        """Exit codes of the launchers, which must end in time."""
        deadline = time.monotonic() + seconds
        return [launcher.wait(max(0.1, deadline - time.monotonic())) for launcher in self.launchers]

    def text(self):
        return [log.read_text()[-3000:] for log in self.logs]


@pytest.mark.slow
@pytest.mark.ddp
def test_a_run_over_two_machines_goes_on_after_one_is_lost(run_file, tmp_path):
    options = [str(run_file), "--max_steps", "20", "--output_dir"]
    one = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mtslvr_hf.pretrain"]
    launch([*one, *options, "whole"], tmp_path)
    for step, lost in ((4, 1), (10, 0)):
        with Machines(tmp_path, *options, "out") as machines:
            machines.wait_for(tmp_path / f"out/checkpoint-{step}/trainer_state.sha256")
            machines.kill(lost)
            codes = machines.end(LONGEST_END)
        assert codes[1 - lost] == 1 and "error: Another process of this run has ended" in machines.text()[1 - lost]
        checkpoint = Path(last_checkpoint(tmp_path / "out"))
        assert step <= int(checkpoint.name.rpartition("-")[2]) < 20
        assert all(fault_of(path) in (None, UNFINISHED) for path in checkpoints_of(tmp_path / "out"))
    with Machines(tmp_path, *options, "out") as machines:
        assert machines.end(LONGEST_START) == [0, 0]
    for name in ("loss", "contrastive_loss", "rows_read", "train_loss"):
        assert logged(tmp_path / "out", name) == logged(tmp_path / "whole", name), name
    whole = load_file(tmp_path / "whole/model.safetensors")
    for name, value in load_file(tmp_path / "out/model.safetensors").items():
        assert torch.equal(value, whole[name]), name
