"""Several processes train as one does with the whole batch."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from markdown_rows import unpadded
from pretraining_runs import ROOT, TINY, logged, make_clips, make_model, tone, wav_bytes
from processes import launch
from transformers import AutoModel

from mtslvr_hf.augmentations import TwoViewAugmentation
from mtslvr_hf.resumable import last_checkpoint
from mtslvr_hf.resumable.checkpoints import load_run_state

pytestmark = pytest.mark.ddp

CLIPS = 8
VARIANTS = {
    "parallel_simclr": {},
    "series_simsiam": {"adapter_type": "series", "contrastive_method": "simsiam"},
    "simple_simclr": {"adapter_type": "none", "shared_head": True},
    "parallel_parameters": {"predictive_target": "both"},
}

GRADIENTS = """
import os
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from pretraining_runs import make_model
from test_distributed import CLIPS, VARIANTS, gradients_of, views_of

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, processes = dist.get_rank(), dist.get_world_size()
share = CLIPS // processes
results = {"processes": processes}
for name, changes in VARIANTS.items():
    model = DistributedDataParallel(make_model(**changes).eval())
    loss, gradients = gradients_of(model, views_of(rank, share))
    dist.all_reduce(loss)
    results[name] = {"loss": loss / processes, "gradients": gradients}
name, changes = next(iter(VARIANTS.items()))
parallel = DistributedDataParallel(make_model(**changes).eval())
model = torch.compile(parallel, backend="aot_eager")
with parallel.no_sync():  # the first half of an accumulated step
    gradients_of(model, views_of(rank, share))
_, gradients = gradients_of(model, views_of(rank, share))
results["compiled, accumulated"] = {key.removeprefix("_orig_mod.module."): grad for key, grad in gradients.items()}
if rank == 0:
    torch.save(results, sys.argv[1])
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # PyTorch 2.14's gloo threads abort one in thirty interpreters that shut down after this
"""


def views_of(rank, share):
    """Views of the clips of a process with a share of the batch."""
    clips = make_clips(CLIPS)[rank * share : (rank + 1) * share]
    return TwoViewAugmentation(seed=1)(clips, step=3, offset=rank * share, total=CLIPS)


def gradients_of(model, views):
    """Loss, and gradient of each parameter by name."""
    inputs = {"input_values": views.views, "augmentation_labels": views.labels}
    targets = getattr(model, "module", model).config.parameter_targets
    if targets:
        inputs["parameter_differences"] = views.parameters.differences(targets)
    loss = model(**inputs).loss
    loss.backward()
    named = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    return loss.detach(), named


def test_two_processes_have_the_loss_and_every_gradient_of_one(tmp_path):
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    launch(["-m", "torch.distributed.run", "--nproc_per_node", "2", "gradients.py", "results.pt"], tmp_path)
    results = torch.load(tmp_path / "results.pt")
    assert results["processes"] == 2
    for name, changes in VARIANTS.items():
        loss, gradients = gradients_of(make_model(**changes).eval(), views_of(0, CLIPS))
        assert torch.allclose(results[name]["loss"], loss, rtol=1e-5)
        for parameter, expected in gradients.items():
            error = (results[name]["gradients"][parameter] - expected).norm() / expected.norm().clamp(min=1e-12)
            assert expected.norm() < 1e-6 or error < 1e-5, (name, parameter, error)
    for parameter, gradient in results["compiled, accumulated"].items():
        expected = 2 * results[next(iter(VARIANTS))]["gradients"][parameter]
        assert (gradient - expected).norm() <= 1e-5 * expected.norm() + 1e-6, parameter


@pytest.mark.slow  # test_launchers starts two processes by accelerate
def test_two_processes_train_through_the_script(tmp_path):
    (tmp_path / "audio").mkdir()
    for number in range(40):
        (tmp_path / f"audio/{number}.wav").write_bytes(wav_bytes(tone(number)))
    run = {
        **TINY,
        "predictive_target": "both",
        "dataset_name": "audio",
        "held_out_fraction": 0.5,
        "eval_clips": 9,  # 5 and 4 for the two processes, a batch of 4 each
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "eval_steps": 2,
        "dataloader_num_workers": 0,
        "probe_data": "labelled",
        "metric_for_best_model": "eval_probe_accuracy_both",
    }
    for label in ("even", "odd"):
        (tmp_path / "labelled" / label).mkdir(parents=True)
        for number in range(12):
            (tmp_path / "labelled" / label / f"{number}.wav").write_bytes(
                wav_bytes(tone(2 * number + (label == "odd")))
            )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", ROOT / "training/pretrain.py", "run.yaml"]
    launch([*command, "--output_dir", "out"], tmp_path, ACCELERATE_USE_CPU="true")
    checkpoint = tmp_path / "out/checkpoint-2"
    states = [load_run_state(checkpoint, rank, 2) for rank in (0, 1)]
    assert [state["stream"]["position"]["rank"] for state in states] == [0, 1]
    rows = sum(state["stream"]["skipped"]["rows"] for state in states)
    assert rows == logged(tmp_path / "out", "rows_read")[2] == 2 * 2 * 4
    assert 2 in logged(tmp_path / "out", "eval_loss")
    assert logged(tmp_path / "out", "augmentation_r2").keys() == {1, 2} and 2 in logged(
        tmp_path / "out", "eval_augmentation_r2"
    )
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    assert state["best_metric"] == logged(tmp_path / "out", "eval_probe_accuracy_both")[2]
    assert states[0]["probe_seconds"]["probe"] > 0 and not states[1]["probe_seconds"]  # the first probes
    assert "| Processes | 2 |" in unpadded(Path(tmp_path / "out/README.md").read_text())
    assert AutoModel.from_pretrained(tmp_path / "out").config.base_width == 8


SIGNALED = """
import os
import signal
import sys
from mtslvr_hf import pretrain
from mtslvr_hf.trainer import MTSLVRTrainer

training_step = MTSLVRTrainer.training_step

def signaled(self, *args):
    if self.args.process_index == 1 and self.state.global_step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return training_step(self, *args)

MTSLVRTrainer.training_step = signaled
pretrain.main(sys.argv[1:])
"""


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    (tmp_path / "audio").mkdir()
    for number in range(16):
        (tmp_path / f"audio/{number}.wav").write_bytes(wav_bytes(tone(number)))
    run = {**TINY, "dataset_name": "audio", "per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 4}
    run |= {"eval_strategy": "no", "dataloader_num_workers": 0, "output_dir": "out"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    (tmp_path / "signaled.py").write_text(SIGNALED)
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch([*command, "signaled.py", "run.yaml"], tmp_path, ACCELERATE_USE_CPU="true")
    assert last_checkpoint(tmp_path / "out") == str(tmp_path / "out/checkpoint-3")
    assert not (tmp_path / "out/model.safetensors").exists()
    launch([*command, ROOT / "training/pretrain.py", "run.yaml"], tmp_path, ACCELERATE_USE_CPU="true")
    assert logged(tmp_path / "out", "rows_read") == {4: 2 * 4 * 4} and (tmp_path / "out/model.safetensors").exists()
