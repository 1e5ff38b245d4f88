"""A busy GPU: no step waits for the device, and the views are made beside the step before."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from pretraining_runs import logged, make_model, make_stream, make_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

import mtslvr_hf.trainer.trainer as trainer_module
from mtslvr_hf.augmentations import TwoViews
from mtslvr_hf.trainer import MTSLVRTrainer
from mtslvr_hf.trainer.metrics import StepAverages
from mtslvr_hf.trainer.trainer import SideStream

# Operators whose result, or its size, the host must know before it goes on.
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "bincount"}


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU would make the host wait."""

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator._schema.name.removeprefix("aten::")
        lengths_on_device = name == "repeat_interleave" and operator._overloadname == "Tensor"
        masked = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if name in WAITING or lengths_on_device or masked:
            raise AssertionError(f"{operator} waits for the device")
        return operator(*arguments, **(options or {}))


class AroundSteps(TrainerCallback):
    """Enters a context at the beginning of each step but the first, and leaves it after the optimizer's."""

    def __init__(self, context):
        self.make, self.context, self.steps = context, None, 0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step:
            self.context = self.make()
            self.context.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if self.context is not None:
            self.context.__exit__(None, None, None)
            self.context, self.steps = None, self.steps + 1


def without_augmentation(waveforms, step, split, offset, total):
    """Its draws are made, and looked at, on the CPU, which the operators do not tell."""
    draw = SimpleNamespace(differences=lambda names: torch.ones(len(waveforms), len(names)))
    return TwoViews(torch.stack([waveforms, -waveforms], dim=1), torch.ones(len(waveforms), 7), draw)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"contrastive_method": "simsiam", "adapter_type": "series"},
        {"frontend": "waveform", "predictive_target": "both"},
    ],
)
def test_no_step_waits_for_the_device(tmp_path, changes):
    around = AroundSteps(NoWaiting)
    trainer = make_trainer(
        tmp_path, model=make_model(**changes), max_steps=3, logging_steps=3, eval_strategy="no", save_strategy="no"
    )
    trainer.augmentation = without_augmentation
    trainer.add_callback(around)
    trainer.train()
    assert around.steps == 2 and len(logged(trainer, "augmentation_map")) == 1


def test_the_watch_for_waiting_sees_it():
    values = torch.arange(3.0)
    waits = [
        values[0].item,
        lambda: bool(values[0] > 1),
        lambda: values[values > 1],
        lambda: int(values.max()),
        values.nonzero,
        lambda: values.repeat_interleave(values.long()),
    ]
    for wait in waits:
        with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
            wait()


def test_a_step_needs_no_value_from_the_device_and_mixes_no_devices(monkeypatch):
    """On the device `meta` there are no values to read."""
    monkeypatch.setattr(torch, "autocast", lambda **options: nullcontext())  # which does not know `meta`
    model, labels = make_model(predictive_target="both").to("meta"), torch.ones(4, 7, device="meta")
    targets = {"augmentation_labels": labels, "parameter_differences": torch.ones(4, 12, device="meta")}
    outputs = model(torch.empty(4, 2, 8000, device="meta"), **targets)
    outputs.loss.backward()
    averages = StepAverages(model.config.parameter_targets)
    averages.add(outputs, labels)
    mask = model.parameter_mask(labels)
    averages.add_differences(outputs.predicted_differences, targets["parameter_differences"], mask)
    assert all(parameter.grad.is_meta for parameter in model.parameters())
    assert averages.steps == 1


def test_averages_keep_no_memory_of_the_outputs():
    """CUDA graphs write the outputs of each step to the same memory."""
    model, labels = make_model(), torch.ones(4, 7)
    outputs = model(torch.randn(4, 2, 8000), augmentation_labels=labels)
    kept = outputs.augmentation_logits.detach().flatten(0, 1).clone()
    averages = StepAverages()
    averages.add(outputs, labels)
    for value in outputs.values():
        value.detach().fill_(torch.nan)
    state = averages.state_dict()
    assert torch.equal(state["_ranked"][0][0], kept)
    assert all(value.isfinite() for value in state["_sums"].values()) and state["_counted"] == 1


def test_views_wait_for_nothing_and_the_step_waits_for_them(monkeypatch):
    """The order of the calls, on a CUDA device that only takes notes."""
    calls = []

    def stream(name):
        return SimpleNamespace(
            name=name, device="cuda:0", wait_stream=lambda other: calls.append(f"{name} waits for {other.name}")
        )

    def tensor(name, is_cuda):
        return SimpleNamespace(
            is_cuda=is_cuda, record_stream=lambda by: calls.append(f"{name} is kept until {by.name} has used it")
        )

    @contextmanager
    def on(stream):
        calls.append(f"on {stream.name}")
        yield
        calls.append("back")

    cuda = SimpleNamespace(Stream=lambda device: stream("side"), current_stream=lambda device: current, stream=on)
    current = stream("current")
    monkeypatch.setattr(trainer_module.torch, "cuda", cuda)
    side, views = SideStream(torch.device("cuda")), TwoViews(tensor("views", True), tensor("labels", True), None)
    made = ["on side", "back", "current waits for side"]
    made += [f"{name} is kept until current has used it" for name in ("views", "labels")]
    assert side.make(lambda values: views, tensor("clips", False)) is views and calls == made
    calls.clear()
    side.make(lambda values: views, tensor("clips", True))
    assert calls == ["side waits for current", "clips is kept until side has used it", *made]
    calls.clear()
    differences = tensor("differences", True)
    assert side.make(lambda values: differences, tensor("differences", False)) is differences
    assert calls == [*made[:3], "differences is kept until current has used it"]


def test_a_stream_batch_gives_the_views_of_its_clips(tmp_path):
    """Integers and their scales are what travels; the conversion comes after."""
    trainer, batch = make_trainer(tmp_path), next(iter(make_stream()))
    assert batch["input_values"].dtype == torch.int16
    clips = batch["input_values"].float() * batch["scales"][:, None]
    ours = trainer.make_views(batch["input_values"], 3, "train", batch["scales"])
    theirs = trainer.make_views(clips, 3, "train")
    assert torch.equal(ours.views, theirs.views) and torch.equal(ours.labels, theirs.labels)


@pytest.mark.slow
def test_a_compiled_run_is_the_run(tmp_path):
    """Tracing and differentiation alone (`aot_eager`), which is what can fail; checkpoints keep their names."""
    runs = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        torch.compiler.reset()
        runs.append(make_trainer(tmp_path / f"run{len(runs)}", **options))
        runs[-1].train()
    eager, compiled = runs
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"
    for measure in ("loss", "contrastive_loss", "augmentation_map", "eval_loss"):
        assert logged(compiled, measure) == pytest.approx(logged(eager, measure), rel=1e-3), measure
    names = [set(type(r.model).from_pretrained(f"{r.args.output_dir}/checkpoint-4").state_dict()) for r in runs]
    assert names[0] == names[1] == set(eager.model.state_dict())


# On a GPU


def gpu_trainer(folder, **changes) -> MTSLVRTrainer:
    return make_trainer(folder, use_cpu=False, eval_strategy="no", save_strategy="no", **changes)


class SyncIsAnError:
    def __enter__(self):
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *error):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 1])
def test_no_step_on_a_gpu_waits_for_it(tmp_path, workers):
    around = AroundSteps(SyncIsAnError)
    options = {"max_steps": 5, "logging_steps": 5, "bf16": True, "dataloader_num_workers": workers}
    trainer = gpu_trainer(tmp_path, model=make_model(predictive_target="both"), **options)
    trainer.add_callback(around)
    trainer.train()
    assert around.steps == 4


@pytest.mark.gpu
def test_views_on_a_gpu_are_those_of_the_cpu_and_do_not_change_under_load(tmp_path):
    on_cpu, on_gpu = make_trainer(tmp_path / "cpu"), gpu_trainer(tmp_path / "gpu")
    batch = next(iter(make_stream(batch_size=16)))
    arguments = (batch["input_values"], 5, "train", batch["scales"])
    expected = on_cpu.make_views(*arguments).views
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        busy = busy @ busy.T / 64  # keeps the current stream busy, as a step does
        views = on_gpu.make_views(*arguments).views
        found = (views + 0.0).cpu()  # read by the current stream, after which the memory is free
        del views
        on_gpu.make_views(*arguments)
        assert (found - expected).norm() / expected.norm() < 1e-3
