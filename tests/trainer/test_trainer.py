"""MTSLVRTrainer: what it optimizes, logs, evaluates, saves and resumes."""

import copy
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from markdown_rows import unpadded
from pretraining_runs import (
    logged,
    make_args,
    make_clips,
    make_model,
    make_rows,
    make_stream,
    make_trainer,
)
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining
from transformers.trainer_utils import EvalLoopOutput
from transformers.training_args import OptimizerNames

import mtslvr_hf.trainer.metrics as metrics_module
from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.augmentations import TwoViews
from mtslvr_hf.data import TooManyBadRowsError
from mtslvr_hf.evaluation import mean_average_precision
from mtslvr_hf.resumable.checkpoints import load_run_state
from mtslvr_hf.trainer import MTSLVRTrainer, embedding_spread, last_checkpoint
from mtslvr_hf.trainer.metrics import StepAverages, Stopwatch

TRAINING_MEASURES = {
    "loss",
    "contrastive_loss",
    "predictive_loss",
    "contrastive_spread",
    "predictive_spread",
    "augmentation_map",
    "clips_per_second",
    "rows_read",
    "skipped_rows",
    "learning_rate",
    "epoch",
}


# Measures


def test_embedding_spread_is_one_on_the_sphere_and_zero_in_a_point():
    generator = torch.Generator().manual_seed(0)
    assert embedding_spread(torch.randn(4000, 2, 64, generator=generator)).item() == pytest.approx(1, abs=0.01)
    assert embedding_spread(torch.ones(10, 2, 64)).item() == pytest.approx(0, abs=1e-6)
    in_one_plane = torch.zeros(4000, 1, 64)
    in_one_plane[:, :, :2] = torch.randn(4000, 1, 2, generator=generator)
    assert embedding_spread(in_one_plane).item() < 0.3


def test_step_averages_are_means_over_steps_and_rank_the_newest_views(monkeypatch):
    monkeypatch.setattr(metrics_module, "MAX_RANKED_VIEWS", 16)
    averages, generator = StepAverages(), torch.Generator().manual_seed(0)
    steps = []
    for _ in range(5):
        logits = torch.randn(4, 2, 7, generator=generator)
        labels = (torch.rand(4, 7, generator=generator) > 0.5).float()
        outputs = {"loss": torch.rand((), generator=generator), "augmentation_logits": logits}
        averages.add(outputs, labels)
        steps.append((outputs["loss"], logits, labels))
    results = averages.compute(Accelerator(cpu=True))
    assert results["loss"] == pytest.approx(torch.stack([loss for loss, _, _ in steps]).mean().item())
    newest = torch.cat([logits.flatten(0, 1) for _, logits, _ in steps[3:]])  # 2 x 8 views
    labels = torch.cat([labels.repeat_interleave(2, 0) for _, _, labels in steps[3:]])
    assert results["augmentation_map"] == pytest.approx(mean_average_precision(newest, labels).item())
    assert "contrastive_loss" not in results and "contrastive_spread" not in results


def test_stopwatch_leaves_pauses_out(monkeypatch):
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr(metrics_module.time, "perf_counter", lambda: now.value)
    watch = Stopwatch(seconds=5.0)
    with watch.paused():  # has not started
        now.value += 50
    watch.start()
    now.value += 3
    with watch.paused():
        now.value += 40
    now.value += 1
    assert watch.lap() == pytest.approx(4) and watch.seconds == pytest.approx(9)
    watch.stop()
    now.value += 7
    assert watch.lap() == 0 and watch.seconds == pytest.approx(9)


# Arguments


def test_defaults_choose_the_best_checkpoint_by_eval_loss_and_stop_early(tmp_path):
    args = make_args(tmp_path, eval_steps=30)
    assert args.eval_strategy == args.save_strategy == "steps"
    assert args.load_best_model_at_end and args.metric_for_best_model == "eval_loss" and not args.greater_is_better
    assert args.save_steps == args.eval_steps == 30
    assert args.per_device_eval_batch_size == args.per_device_train_batch_size == 4
    assert args.lr_scheduler_type == "cosine" and args.early_stopping_patience == 50
    callbacks = [type(callback).__name__ for callback in make_trainer(tmp_path).callback_handler.callbacks]
    assert callbacks.count("EarlyStoppingCallback") == callbacks.count("SaveBestCallback") == 1


def test_without_evaluation_nothing_waits_for_it(tmp_path):
    args = make_args(tmp_path, eval_strategy="no")
    assert not args.load_best_model_at_end and args.save_steps == 500
    trainer = make_trainer(tmp_path, eval_strategy="no", max_steps=1)
    trainer.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_arguments_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no SyncBatchNorm on CPUs"):
        make_args(tmp_path, sync_batch_norm=True)
    with pytest.raises(ValueError, match="must not be negative"):
        make_args(tmp_path, early_stopping_patience=-1)
    with pytest.raises(ValueError, match="adamm"):
        make_args(tmp_path, optim="adamm")


def test_what_is_pickled_has_no_token(tmp_path):
    assert b"hf_secret" not in pickle.dumps(make_args(tmp_path, hub_token="hf_secret"))


def test_adam_decays_every_parameter_and_other_optimizers_are_transformers_own(tmp_path):
    trainer = make_trainer(tmp_path, weight_decay=0.1, learning_rate=3e-4)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam and len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == len(list(trainer.model.parameters()))
    assert optimizer.param_groups[0]["weight_decay"] == 0.1 and optimizer.param_groups[0]["lr"] == 3e-4
    trainer = make_trainer(tmp_path, optim="sgd", weight_decay=0.1)
    assert trainer.args.optim == OptimizerNames.SGD
    assert {group["weight_decay"] for group in trainer.create_optimizer().param_groups} == {0.0, 0.1}


# Training


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps with evaluations after two and four, and one unusable row."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(folder, make_rows(good=24, bad=1), max_steps=8, logging_steps=2, eval_steps=4)
    trainer.train()
    trainer.save_model()
    return trainer


def test_training_logs_every_measure_and_averages_the_window(finished):
    entries = [entry for entry in finished.state.log_history if "contrastive_loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 4, 6, 8]
    for entry in entries:
        assert entry.keys() >= TRAINING_MEASURES
        assert entry["loss"] == pytest.approx(entry["contrastive_loss"] + entry["predictive_loss"], rel=1e-5)
        assert 0 < entry["contrastive_spread"] < 1.3 and 0 < entry["augmentation_map"] <= 1
        assert entry["clips_per_second"] > 0
    assert logged(finished, "rows_read")[8] >= 8 * 4
    assert logged(finished, "epoch")[8] == 1.0  # 24 clips are 6 batches
    assert logged(finished, "total_flos") == {8: 0.0}


def test_skipped_rows_are_counted_by_reason_and_end_up_in_the_checkpoint(finished):
    state = json.loads(Path(finished.args.output_dir, "checkpoint-8/trainer_state.json").read_text())
    last = [entry for entry in state["log_history"] if "skipped_rows" in entry][-1]
    assert last["skipped_rows"] == last["skipped_unreadable"] >= 1
    saved = load_run_state(f"{finished.args.output_dir}/checkpoint-8", 0, 1)["stream"]["skipped"]
    assert saved["reasons"] == {"unreadable": last["skipped_rows"]} and "12.wav" in saved["examples"][0]


def test_learning_rate_is_a_cosine_over_the_whole_run(finished):
    rates = logged(finished, "learning_rate")
    expected = {step: 1e-3 * (1 + np.cos(np.pi * (step - 1) / 8)) / 2 for step in (2, 4, 6, 8)}
    assert rates == pytest.approx(expected)


def test_the_measures_are_those_of_the_model_on_the_views_of_the_step(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    model = make_model().train()
    batch = next(iter(make_stream()))
    views = trainer.make_views(batch["input_values"], 0, "train", batch["scales"])
    outputs = model(views.views, augmentation_labels=views.labels)
    trainer.train()
    assert logged(trainer, "contrastive_loss")[1] == pytest.approx(outputs.contrastive_loss.item(), rel=1e-5)
    assert logged(trainer, "predictive_loss")[1] == pytest.approx(outputs.predictive_loss.item(), rel=1e-5)
    expected = mean_average_precision(outputs.augmentation_logits.flatten(0, 1), views.labels.repeat_interleave(2, 0))
    assert logged(trainer, "augmentation_map")[1] == pytest.approx(expected.item(), rel=1e-5)
    assert logged(trainer, "predictive_spread")[1] == pytest.approx(
        embedding_spread(outputs.predictive_embeds).item(), rel=1e-5
    )


def test_views_of_two_crops(tmp_path):
    """Each view is a crop of its own, in training and in evaluation."""
    trainer = make_trainer(tmp_path, stream=make_stream(crops=2), max_steps=2)
    seen = []
    augment = trainer.augmentation

    def noting(waveforms, step, split, offset, total):
        seen.append((split, waveforms))
        return augment(waveforms, step=step, split=split, offset=offset, total=total)

    trainer.augmentation = noting
    trainer.eval_dataset = torch.stack([make_clips(), make_clips().flip(1)], dim=1)
    trainer.train()
    assert {split for split, _ in seen} == {"train", "eval"}
    for _, waveforms in seen:
        assert waveforms.shape[:2] == (4, 2) and not torch.equal(waveforms[:, 0], waveforms[:, 1])
    assert len(logged(trainer, "loss")) == 2 and logged(trainer, "eval_loss")
    with pytest.raises(ValueError, match="has 3 crops of each row; two views need 1 or 2"):
        make_trainer(tmp_path, stream=make_stream(crops=3))


def recording(trainer):
    """Has a Trainer note each draw it asks for."""
    draws, augment = [], trainer.augmentation

    def noting(waveforms, step, split, offset, total):
        draws.append((split, step, offset, total))
        return augment(waveforms, step=step, split=split, offset=offset, total=total)

    trainer.augmentation = noting
    return draws


def test_accumulated_batches_have_draws_of_their_own(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, gradient_accumulation_steps=2, eval_strategy="no")
    draws = recording(trainer)
    trainer.train()
    assert draws == [("train", draw, 0, 4) for draw in range(6)]


def test_waveforms_are_normalized_as_the_extractor_says_before_they_are_augmented(tmp_path):
    seen = []

    def no_augmentation(waveforms, step, split, offset, total):
        seen.append(waveforms)
        return TwoViews(waveforms[:, None].expand(-1, 2, -1), torch.ones(len(waveforms), 7), None)

    args = make_args(tmp_path, max_steps=1, eval_strategy="no")
    extractor = MTSLVRFeatureExtractor(normalization="sample")
    trainer = MTSLVRTrainer(
        make_model(), args, make_stream(), processing_class=extractor, augmentation=no_augmentation
    )
    trainer.train()
    deviation, mean = torch.std_mean(seen[0], dim=-1, correction=0)
    assert torch.allclose(mean, torch.zeros(4), atol=1e-5) and torch.allclose(deviation, torch.ones(4), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"tasks": ["predictive"]}, "contrastive_loss"),
        ({"tasks": ["contrastive"], "contrastive_method": "simsiam", "adapter_type": "none"}, "augmentation_map"),
    ],
)
def test_one_task_alone_trains_and_logs_only_its_own_measures(tmp_path, changes, absent):
    trainer = make_trainer(tmp_path, model=make_model(**changes), max_steps=2)
    trainer.train()
    assert len(logged(trainer, "loss")) == 2 and not logged(trainer, absent) and not logged(trainer, f"eval_{absent}")


def test_too_many_bad_rows_stop_the_run_with_examples(tmp_path):
    stream = make_stream(make_rows(good=12, bad=4), max_bad_share=0.05, bad_share_after=10**6)  # no worker would stop
    trainer = make_trainer(tmp_path, stream=stream, max_steps=20, eval_strategy="no")
    trainer.train_dataset.bad_share_after = 10
    with pytest.raises(TooManyBadRowsError, match=r"unreadable") as error:
        trainer.train()
    assert ".wav" in str(error.value) and trainer.state.global_step < 20


def test_streams_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(TypeError, match="must be an AudioStream, got Tensor of shape"):
        make_trainer(tmp_path, stream=make_clips())
    with pytest.raises(ValueError, match="per_device_train_batch_size = 3, the training arguments say 4"):
        make_trainer(tmp_path, stream=make_stream(batch_size=3))
    with pytest.raises(ValueError, match="must be endless"):
        make_trainer(tmp_path, stream=make_stream(endless=False))
    with pytest.raises(ValueError, match="`max_steps` is missing"):
        make_trainer(tmp_path, max_steps=-1)


# Evaluation


def test_evaluation_repeats_itself_and_uses_full_batches_alone(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.eval_dataset = make_clips(11)
    draws = recording(trainer)
    first, second = trainer.evaluate(), trainer.evaluate()
    measures = {name for name in first if "per_second" not in name and "runtime" not in name}
    assert measures >= {"eval_loss", "eval_contrastive_loss", "eval_augmentation_map", "eval_predictive_spread"}
    assert all(first[name] == second[name] for name in measures)
    assert draws == [("eval", 0, 0, 4), ("eval", 1, 0, 4)] * 2


def test_eval_loss_is_the_mean_over_the_batches(tmp_path):
    trainer = make_trainer(tmp_path)
    losses = []
    for step, batch in enumerate(make_clips().split(4)):
        views = trainer.make_views(batch, step, "eval")
        with torch.no_grad():
            losses.append(trainer.model.eval()(views.views, augmentation_labels=views.labels).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


def test_evaluation_clips_that_do_not_fit_are_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="A process has 1 evaluation clips; expected at least 2"):
        trainer.evaluate(make_clips(1))
    with pytest.raises(TypeError, match=r"Evaluation needs a \(clips, samples\) or \(clips, 2, samples\) tensor"):
        trainer.evaluate(make_stream())


def test_fewer_evaluation_clips_than_a_batch_are_a_smaller_batch(tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    few = trainer.evaluate(make_clips(3))
    trainer.args.per_device_eval_batch_size = 3
    assert few["eval_loss"] == trainer.evaluate(make_clips(3))["eval_loss"]
    assert caplog.text.count("3 evaluation clips in a process do not fill a batch of 4") == 1


def test_too_few_evaluation_clips_are_refused_before_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, eval_steps=1000)
    trainer.eval_dataset = {"enough": make_clips(), "too few": make_clips(1)}
    with pytest.raises(ValueError, match="A process has 1 evaluation clips"):
        trainer.train()
    assert trainer.state.global_step == 0


def scripted(trainer, losses):
    """Has a Trainer's evaluations return these losses one after the other."""
    losses = iter(losses)

    def evaluation_loop(*args, **kwargs):
        return EvalLoopOutput(predictions=None, label_ids=None, metrics={"eval_loss": next(losses)}, num_samples=8)

    trainer.evaluation_loop = evaluation_loop
    return trainer


def test_training_stops_early_and_the_best_weights_are_loaded(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=20, eval_steps=1, early_stopping_patience=2)
    scripted(trainer, [3.0, 1.0, 2.0, 2.0, 0.0]).train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    best = AutoModelForPreTraining.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())
    trainer.create_model_card()
    assert "| Steps | 2 |" in unpadded((tmp_path / "README.md").read_text())  # those of the weights beside it


def test_the_best_checkpoint_is_saved_though_others_are_rarer(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, eval_steps=1, save_steps=4)
    scripted(trainer, [3.0, 2.0, 5.0, 5.0]).train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


# Checkpoints


def test_a_checkpoint_folder_is_complete(finished):
    final, checkpoint = finished.args.output_dir, f"{finished.args.output_dir}/checkpoint-8"
    for folder in (final, checkpoint):
        model = AutoModel.from_pretrained(folder)
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        inputs = extractor(make_clips(2).numpy()[0], sampling_rate=16000, return_tensors="pt")
        assert model(**inputs).pooler_output.shape == (1, 32)
        config = json.loads(Path(folder, "config.json").read_text())
        assert set(config["auto_map"]) >= {"AutoConfig", "AutoModel", "AutoModelForPreTraining"}
        assert "use_cache" not in config
        files = {path.name for path in Path(folder).iterdir()}
        assert {"modeling_mtslvr.py", "configuration_mtslvr.py", "preprocessor_config.json"} <= files
        assert "training_args.bin" not in files  # a pickle
        card = unpadded(Path(folder, "README.md").read_text())
        assert "| Batch | 4 clips |" in card and "| Optimizer | Adam |" in card and "eval_loss" in card
    assert "| Steps | 8 |" in unpadded(Path(checkpoint, "README.md").read_text())
    whole = AutoModelForPreTraining.from_pretrained(final).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in finished.model.state_dict().items())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, workers):
    rows = make_rows(good=20, bad=2)  # two passes and more in 12 steps
    options = {"max_steps": 12, "eval_steps": 4, "logging_steps": 1, "dataloader_num_workers": workers}
    options["save_total_limit"] = None
    whole = make_trainer(tmp_path / "whole", rows, **options)
    whole.train()
    shutil.copytree(tmp_path / "whole/checkpoint-8", tmp_path / "half/checkpoint-8")
    half = make_trainer(tmp_path / "half", rows, model=make_model(), **options)
    torch.manual_seed(12345)
    half.train(resume_from_checkpoint=True)
    for name in ("loss", "contrastive_loss", "augmentation_map", "eval_loss", "rows_read", "skipped_rows", "epoch"):
        expected = logged(whole, name)
        assert max(expected) == 12 and logged(half, name) == pytest.approx(expected, rel=1e-6), name
    assert half.state.best_metric == whole.state.best_metric
    for ours, theirs in zip(half.model.state_dict().values(), whole.model.state_dict().values()):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_second_training_starts_anew(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, learning_rate=0.0, eval_strategy="no")
    draws = recording(trainer)
    trainer.train()
    trainer.train()
    assert [step for _, step, _, _ in draws] == [0, 1, 0, 1]


def test_a_resumed_stream_keeps_the_checkpoints_workers(tmp_path, caplog):
    make_trainer(tmp_path, max_steps=2, dataloader_num_workers=2).train()
    trainer = make_trainer(tmp_path, max_steps=4, dataloader_num_workers=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4 and "Reading with the 2 workers of the checkpoint" in caplog.text


@pytest.mark.parametrize("optim", ["adam", "adamw_torch_fused"])
def test_states_of_another_memory_layout_are_laid_out_as_the_weights(tmp_path, optim):
    """Fused optimizers read weights and states in the order of memory, and would mix them up without a word."""
    optimizers, models = [], []
    for name in ("ours", "loaded"):
        trainer = make_trainer(tmp_path / name, model=make_model(base_width=4), optim=optim)
        models.append(trainer.model)
        optimizers.append(trainer.create_optimizer())
    ours, loaded = optimizers

    def step(optimizer, model, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        optimizer.step()

    step(ours, models[0], 1)
    state = copy.deepcopy(ours.state_dict())
    for moments in state["state"].values():
        moments.update({name: value.contiguous() for name, value in moments.items() if name != "step"})
    models[1].load_state_dict(models[0].state_dict())
    loaded.load_state_dict(state)
    for optimizer, model in zip(optimizers, models):
        step(optimizer, model, 2)
    assert models[0].mtslvr.encoder.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))


def test_the_optimizer_steps_as_one_of_contiguous_weights(tmp_path):
    """torch's fused Adam must read weights, gradients and moments in channels last in one order."""
    trainer = make_trainer(tmp_path, model=make_model(base_width=4))
    weights = list(trainer.model.parameters())
    plain = [torch.nn.Parameter(w.detach().clone(memory_format=torch.contiguous_format)) for w in weights]
    args = trainer.args
    optimizers = [trainer.create_optimizer()]
    optimizers.append(torch.optim.Adam(plain, lr=args.learning_rate, weight_decay=args.weight_decay))
    for _ in range(3):
        for weight, other in zip(weights, plain):
            gradient = torch.randn(weight.shape)
            weight.grad, other.grad = torch.empty_like(weight).copy_(gradient), gradient
        for optimizer in optimizers:
            optimizer.step()
    for weight, other in zip(weights, plain):
        assert torch.allclose(weight, other, rtol=1e-5, atol=1e-6)
