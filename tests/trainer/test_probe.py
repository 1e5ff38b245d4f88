"""Probe: what it measures, when it is called, and what it leaves alone."""

import random
import shutil

import numpy as np
import pytest
import torch
from pretraining_runs import RATE, SECONDS, logged, make_clips, make_model, make_trainer, wav_bytes
from transformers import AutoModelForPreTraining

from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.embedding import encode
from mtslvr_hf.evaluation import EvaluationData, few_shot_accuracy, probe
from mtslvr_hf.resumable.checkpoints import load_run_state
from mtslvr_hf.trainer import Probe

CLASSES = ["high", "low"]


def make_data(clips=40, **changes):
    """Two classes of WAV files in the memory: low tones and high ones."""
    of_clip = np.arange(clips) % 2
    generator = np.random.default_rng(0)
    time = np.arange(round(SECONDS * RATE)) / RATE
    audio = []
    for number, low in enumerate(of_clip):
        hertz = generator.uniform(100, 300) if low else generator.uniform(2000, 4000)
        waveform = np.sin(2 * np.pi * hertz * time) + 0.1 * generator.standard_normal(len(time))
        audio.append({"bytes": wav_bytes(0.3 * waveform.astype(np.float32)), "path": f"{number}.wav"})
    fields = {
        "name": "tones",
        "source": "made here",
        "note": "",
        "audio": audio,
        "embeddings": None,
        "classes": CLASSES,
        "labels": np.eye(2, dtype=bool)[of_clip],
        "multi_label": False,
        "groups": None,
        "group_disjoint": False,
    }
    return EvaluationData(**{**fields, **changes})


def make_probe(clips=40, **options):
    return Probe(make_data(clips), **options)


def names(part, kind="accuracy", name="probe"):
    return f"eval_{name}_{kind}_{part}"


# What it measures


def test_a_probe_is_that_of_the_embeddings_that_encode_gives(tmp_path):
    data = make_data()
    kinds = [
        Probe(data, kind, name=kind, max_clips=1000, ways=2, episodes=50) for kind in ("linear", "knn", "few_shot")
    ]
    trainer = make_trainer(tmp_path, probes=kinds)
    metrics = trainer.evaluate()
    both = encode(make_model(), data.audio, feature_extractor=MTSLVRFeatureExtractor(), convert_to="torch")  # (N, D)
    parts = {"contrastive": both[:, :16], "predictive": both[:, 16:], "both": both}
    for part, embeddings in parts.items():
        for kind in ("linear", "knn"):
            expected = probe(embeddings, data.labels, kind=kind).value
            assert metrics[names(part, name=kind)] == pytest.approx(expected, abs=1e-6), (kind, part)
        expected = few_shot_accuracy(embeddings, data.labels.argmax(1), ways=2, episodes=50).accuracy
        assert metrics[names(part, name="few_shot")] == pytest.approx(expected, abs=0.005)
    assert metrics[names("both", name="linear")] > 0.9


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"adapter_type": "none", "shared_head": True}, {"both"}),
        ({"tasks": ["predictive"]}, {"predictive"}),
        ({"adapter_type": "bn"}, {"contrastive", "predictive", "both"}),
    ],
)
def test_measures_are_named_by_the_models_embeddings(tmp_path, changes, expected):
    metrics = make_trainer(tmp_path, model=make_model(**changes), probes=[make_probe()]).evaluate()
    found = {name.rpartition("_")[2] for name in metrics if name.startswith("eval_probe_accuracy_")}
    assert found == expected
    assert 0 < metrics["eval_probe_seconds"] == metrics["eval_probe_total_seconds"]


def test_clips_of_several_classes_are_measured_by_mean_average_precision(tmp_path):
    data = make_data(multi_label=True)
    metrics = make_trainer(tmp_path, probes=[Probe(data)]).evaluate()
    assert 0 < metrics[names("both", "map")] <= 1


def test_groups_are_kept_apart_where_the_data_asks_for_it(tmp_path):
    groups = [f"speaker {number // 2}" for number in range(40)]
    seen = []

    class Recording(Probe):
        def _score(self, embeddings):
            seen.append((self.data.groups, self.data.group_disjoint))
            return super()._score(embeddings)

    make_trainer(tmp_path, probes=[Recording(make_data(groups=groups, group_disjoint=True))]).evaluate()
    assert seen[-1] == (groups, True)
    one = Probe(make_data(groups=["one"] * 40, group_disjoint=True))
    with pytest.raises(ValueError, match="1 groups cannot be divided"):
        make_trainer(tmp_path, probes=[one]).evaluate()
    make_trainer(tmp_path, probes=[Probe(make_data(groups=["one"] * 40))]).evaluate()


def test_scores_are_computed_in_float32(tmp_path):
    class Recording(Probe):
        def _score(self, embeddings):
            assert not torch.is_autocast_enabled("cpu") and embeddings.dtype == torch.float32
            return super()._score(embeddings)

    assert names("both") in make_trainer(tmp_path, bf16=True, probes=[Recording(make_data())]).evaluate()


def test_clips_are_chosen_by_class_and_bad_ones_left_out(tmp_path, caplog):
    data = make_data(60)
    data.audio[7] = {"bytes": b"no audio", "path": "broken.wav"}
    evaluator = Probe(data, max_clips=60)
    make_trainer(tmp_path, probes=[evaluator]).evaluate()
    assert len(evaluator.data) == 59 and "1 clips cannot be used" in caplog.text and "broken.wav" in caplog.text
    evaluator = make_probe(60, max_clips=20)
    make_trainer(tmp_path, probes=[evaluator]).evaluate()
    assert evaluator.data.labels.sum(0).tolist() == [10, 10]


# When


def test_probes_run_with_evaluations_or_every_so_many_steps(tmp_path):
    probes = [make_probe(), make_probe(name="own", steps=3)]
    trainer = make_trainer(tmp_path, max_steps=8, eval_steps=4, probes=probes)
    trainer.train()
    assert logged(trainer, names("both")).keys() == logged(trainer, "eval_loss").keys() == {4, 8}
    assert logged(trainer, names("both", name="own")).keys() == {3, 6}
    totals = logged(trainer, "eval_own_total_seconds")
    assert totals[6] == pytest.approx(sum(logged(trainer, "eval_own_seconds").values())) and totals[6] > totals[3]


def test_a_probe_needs_no_evaluations(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="no", probes=[make_probe(steps=4)])
    trainer.train()
    assert logged(trainer, names("both")).keys() == {4} and not logged(trainer, "eval_loss")
    trainer.save_model()
    assert names("both") in (tmp_path / "README.md").read_text()


def test_several_evaluation_sets_are_probed_once(tmp_path):
    trainer = make_trainer(tmp_path, probes=[make_probe()])
    trainer.eval_dataset = {"one": make_clips(), "two": make_clips()}
    metrics = trainer.evaluate()
    assert {"eval_one_loss", "eval_two_loss", names("both")} <= metrics.keys()
    assert sum(names("both") in entry for entry in trainer.state.log_history) == 1


# What it leaves alone


def run(folder, *probes, **options):
    trainer = make_trainer(folder, max_steps=6, eval_steps=3, save_total_limit=None, **options, probes=probes)
    trainer.train()
    return trainer


def test_a_run_is_the_same_with_a_probe_and_without(tmp_path):
    plain = run(tmp_path / "plain")
    watched = run(tmp_path / "watched", make_probe(), make_probe(name="own", steps=2))
    for name in ("loss", "contrastive_loss", "augmentation_map", "eval_loss"):
        assert logged(watched, name) == logged(plain, name), name
    for ours, theirs in zip(watched.model.state_dict().values(), plain.model.state_dict().values()):
        assert torch.equal(ours, theirs)
    assert logged(watched, names("both", name="own")).keys() == {2, 4, 6}


def test_a_probe_leaves_modes_statistics_and_generators_as_they_were(tmp_path):
    evaluator = make_probe()
    trainer = make_trainer(tmp_path, probes=[evaluator])
    trainer.model.train()
    trainer.model.mtslvr.encoder.eval()  # as a frozen part would be
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    evaluator(trainer.model, trainer.processing_class)
    assert {name: module.training for name, module in trainer.model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in trainer.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == generators[1:]  # noqa: NPY002


def test_a_resumed_run_is_the_uninterrupted_one_and_knows_what_probes_cost(tmp_path):
    whole = run(tmp_path / "whole", make_probe())
    shutil.copytree(tmp_path / "whole/checkpoint-3", tmp_path / "half/checkpoint-3")
    evaluator = make_probe()
    half = make_trainer(tmp_path / "half", max_steps=6, eval_steps=3, save_total_limit=None, probes=[evaluator])
    half.train(resume_from_checkpoint=True)
    for name in ("loss", "eval_loss", names("both"), names("predictive")):
        assert logged(half, name) == pytest.approx(logged(whole, name), rel=1e-6), name
    spent = load_run_state(tmp_path / "half/checkpoint-3", 0, 1)["probe_seconds"]["probe"]
    assert spent == logged(whole, "eval_probe_total_seconds")[3]
    assert logged(half, "eval_probe_total_seconds")[6] > spent


# The best checkpoint


class Scripted(Probe):
    """Measures what it is told."""

    def __init__(self, values, **options):
        super().__init__(make_data(), **options)
        self.values = iter(values)

    def _score(self, embeddings):
        return next(self.values) if embeddings.shape[1] == 32 else 0.5


BEST = {"metric_for_best_model": names("both"), "eval_steps": 1, "max_steps": 20}


def test_a_probe_drives_the_best_checkpoint_and_early_stopping(tmp_path):
    probes = [Scripted([0.5, 0.9, 0.7, 0.8])]
    trainer = make_trainer(tmp_path, **BEST, early_stopping_patience=2, probes=probes)
    assert trainer.args.greater_is_better
    trainer.train()
    assert trainer.state.global_step == 4 and trainer.state.best_metric == 0.9
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    best = AutoModelForPreTraining.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())


# What cannot work fails before the first step


@pytest.mark.parametrize(
    "probe_options, options, message",
    [
        ({}, {"eval_strategy": "no"}, "waits for evaluations and there are none: give it `steps`"),
        ({}, {"metric_for_best_model": "probe_accuracy_all"}, "this probe measures eval_probe_accuracy_contrastive"),
        ({"steps": 2}, {"metric_for_best_model": names("both")}, "leave out the probe's `steps`"),
        ({"kind": "few_shot"}, {}, "5 ways|5-way"),
    ],
)
def test_probes_that_cannot_work_fail_before_the_first_step(tmp_path, probe_options, options, message):
    trainer = make_trainer(tmp_path, **options, probes=[make_probe(**probe_options)])
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({}, {"kind": "tree"}, "'tree'; expected one of few_shot, linear, knn"),
        ({"audio": None, "embeddings": torch.zeros(40, 3)}, {}, "tones has no audio"),
        ({"multi_label": True}, {"kind": "few_shot"}, "have several classes"),
        ({}, {"steps": 0}, "`steps` is 0"),
    ],
)
def test_probes_that_make_no_sense_are_refused(changes, options, message):
    with pytest.raises(ValueError, match=message):
        Probe(make_data(**changes), **options)


def test_embeddings_that_are_not_finite_have_no_measure_and_stop_nothing(tmp_path):
    trainer = make_trainer(tmp_path, probes=[make_probe()])
    with torch.no_grad():
        trainer.model.mtslvr.head("predictive").weight.fill_(torch.nan)
    metrics = trainer.evaluate()
    assert np.isnan(metrics[names("predictive")]) and np.isnan(metrics[names("both")])
    assert metrics[names("contrastive")] > 0


def test_probes_need_names_of_their_own(tmp_path):
    with pytest.raises(ValueError, match="named probe, probe; give each a `name`"):
        make_trainer(tmp_path, probes=[make_probe(), make_probe()])


def test_clips_that_are_no_audio_at_all_are_refused(tmp_path):
    data = make_data(audio=[{"bytes": b"no audio", "path": f"{number}.wav"} for number in range(40)])
    trainer = make_trainer(tmp_path, probes=[Probe(data)])
    with pytest.raises(ValueError, match=r"tones: none of 40 clips can be used, the first: unreadable: 0\.wav"):
        trainer.train()
    assert trainer.state.global_step == 0
