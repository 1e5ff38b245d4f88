"""Model cards say what is known, all of it true, and nothing else."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_rows import unpadded

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel
from mtslvr_hf.cards.parts import library_versions
from mtslvr_hf.cards.pretraining import TrainingSummary, create_model_card, variant_name
from mtslvr_hf.cards.results import MeasuredResult, Score

# The whole card; "..." stands for the rest of a line.
WHOLE_CARD = """---
datasets:
- agkphysics/AudioSet
library_name: transformers
license: apache-2.0
metrics:
- accuracy
pipeline_tag: feature-extraction
tags:
- mtslvr
- audio
- audio-embeddings
- self-supervised-learning
- contrastive
- predictive
- adapters
model-index:
- name: MT-Parallel (SimCLR)
  results:
  - task:
      type: audio-classification
      name: classification of frozen embeddings
    dataset:
      name: mteb/esc50
      type: mteb/esc50
      split: train
    metrics:
    - type: accuracy
      value: 0.6125
      name: 'accuracy, both embeddings: 5-way 1-shot, nearest centroid, 10,000 episodes'
      args:
        protocol: 5-way 1-shot, nearest centroid, 10,000 episodes
        interval_95:
        - 0.6105
        - 0.6145
        seed: 0
        date: '2026-11-02'
        command: mtslvr evaluate --model tester/card --data esc50
        measured_by: this run, with these weights
---

# MT-Parallel (SimCLR)

Audio embeddings by multi-task self-supervision ([MT-SLVR](...), ...). One encoder ... the applied augmentations.

| | |
| --- | --- |
| Variant | MT-Parallel (SimCLR) |
| Encoder | ResNet-18, base width 64 |
| Adapters | parallel, one set per task in layer2 to layer4 |
| Tasks | contrastive, predictive |
| Heads | one per task, 500 each |
| Input | log-mel, and magnitude and phase of a complex mel STFT (three channels) |
| Spectrogram | 128 mel bands, n_fft 1024, hop 512 samples |
| Audio | mono, 16000 Hz, windows of 5 s |
| Contrastive objective | SimCLR, temperature 0.07 |
| Predictive objective | recognition of the applied augmentations: pitch_shift, fade, ..., time_shift |
| Loss | contrastive + 1 x predictive |

## Use

```python
from huggingface_hub import hf_hub_download
from transformers import AutoModel

model = AutoModel.from_pretrained("tester/card", trust_remote_code=True)
sound = hf_hub_download("Narsil/asr_dummy", "mlk.flac", repo_type="dataset")  # or files and arrays of your own
print(model.encode(sound).shape)  # (1000,)
print(model.encode(sound, tasks="contrastive").shape)  # (500,)
print(model.encode(sound, tasks="predictive").shape)  # (500,)
```

With the package mtslvr-hf, `import mtslvr_hf` takes the place of `trust_remote_code=True`, ...
data sets. ...

```python
import soundfile
from transformers import AutoFeatureExtractor

extractor = AutoFeatureExtractor.from_pretrained("tester/card", trust_remote_code=True)
waveform, sampling_rate = soundfile.read(sound)
outputs = model(**extractor(waveform, sampling_rate=sampling_rate, return_tensors="pt"))
print(outputs.pooler_output.shape)  # torch.Size([1, 1000])
print(outputs.contrastive_embeds.shape)  # torch.Size([1, 500])
print(outputs.predictive_embeds.shape)  # torch.Size([1, 500])
```

## Training

| | |
| --- | --- |
| Data | agkphysics/AudioSet, configuration `balanced`, split `train` |
| Waveform normalization | global |
| Clip length | 5 s |
| Views | one random crop of a clip, 1 to 7 of 7 augmentations |
| Steps | 50,000 |
| Batch | 100 clips |
| Clips seen | 5,000,000 (6,944.4 hours, repetitions counted) |
| Clips skipped | 12 |
| Optimizer | Adam |
| Learning rate | 5e-05 |
| Learning-rate schedule | cosine |
| Weight decay | 1e-06 |
| Precision | bf16 |
| Processes | 2 |
| Device | 2 GPUs |
| Duration | 10.5 hours |
| Seed | 0 |

Last logged values:

| metric | value |
| --- | --- |
| `eval_loss` | 3.142 |
| `contrastive_loss` | 2.5 |

Libraries: ...torch ..., transformers ..., accelerate ..., datasets ....

## Results

Measured with these weights by `mtslvr evaluate`; no figure is copied from elsewhere. Intervals are 95 %. ...

### 5-way 1-shot, nearest centroid, 10,000 episodes

Seed 0.

| data | embedding | accuracy, % | log-mel statistics, % |
| --- | --- | --- | --- |
| mteb/esc50, train | both | 61.3 (61.1 to 61.5) | 50.0 |

- mteb/esc50, train. Measured by this run on 2026-11-02: `mtslvr evaluate --model tester/card --data esc50`.

## Limits

- 16000 Hz mono: nothing above 8000 Hz reaches the network....
- A clip is cut into windows of 5 s and shorter ones are repeated to fill one; ...
- Embeddings only: ...
- The figures in the paper are not this checkpoint's.

## Citation

```bibtex
@inproceedings{heggan2023mtslvr,
  title     = {{MT-SLVR}: Multi-Task Self-Supervised Learning for Transformation In(Variant) Representations},
  author    = {Heggan, Calum and Hospedales, Tim and Budgett, Sam and Yaghoobi, Mehrdad},
  booktitle = {Interspeech 2023},
  year      = {2023},
  doi       = {10.21437/Interspeech.2023-1064}
}
```"""

TRAINING = TrainingSummary(
    dataset="agkphysics/AudioSet",
    dataset_config="balanced",
    dataset_split="train",
    steps=50_000,
    batch_size=100,
    learning_rate=5e-5,
    weight_decay=1e-6,
    optimizer="Adam",
    lr_scheduler="cosine",
    clips_seen=5_000_000,
    clips_skipped=12,
    clip_seconds=5.0,
    normalization="global",
    views="one random crop of a clip, 1 to 7 of 7 augmentations",
    num_processes=2,
    precision="bf16",
    device="2 GPUs",
    training_seconds=37_800.0,
    seed=0,
    metrics={"eval_loss": 3.14159, "contrastive_loss": 2.5},
)
RESULT = MeasuredResult(
    dataset="mteb/esc50",
    dataset_split="train",
    protocol="5-way 1-shot, nearest centroid, 10,000 episodes",
    value=0.6125,
    interval=(0.6105, 0.6145),
    seed=0,
    command="mtslvr evaluate --model tester/card --data esc50",
    date="2026-11-02",
    baselines={"log-mel statistics": Score(value=0.5)},
)


def test_the_whole_card():
    card = create_model_card(MTSLVRConfig(), TRAINING, [RESULT], repo_id="tester/card", license="apache-2.0")
    pattern = re.escape(unpadded(WHOLE_CARD)).replace(re.escape("..."), ".*")
    assert re.fullmatch(pattern, unpadded(str(card))), str(card)


def test_results_survive_saving_and_loading(tmp_path):
    card = create_model_card(MTSLVRConfig(), TRAINING, [RESULT], repo_id="tester/card")
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == card.data.to_dict()
    assert loaded.data.eval_results[0].metric_value == 0.6125
    assert loaded.text == card.text


def test_what_is_unknown_is_not_mentioned():
    config = MTSLVRConfig(tasks="contrastive", adapter_type="none", frontend="waveform", contrastive_method="simsiam")
    card = create_model_card(config)
    assert "None" not in str(card)
    for absent in ("## Training", "## Results", "Spectrogram", "predictive_embeds", "temperature", "Loss"):
        assert absent not in card.text
    for absent in ("datasets", "metrics", "model-index"):
        assert absent not in card.data.to_dict()
    assert "No result has been measured with these weights." in card.text
    assert "| Contrastive objective | SimSiam |" in unpadded(card.text)
    rows = unpadded(create_model_card(config, TrainingSummary(steps=3, versions={})).text)
    assert "| Steps | 3 |\n\n## Limits" in rows


def test_a_local_data_set_is_named_without_its_path(tmp_path, monkeypatch):
    (tmp_path / "data" / "pool").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for dataset in (str(tmp_path / "data" / "pool"), "data/pool"):
        card = create_model_card(MTSLVRConfig(), TrainingSummary(dataset=dataset))
        assert "| Data | pool (local) |" in unpadded(card.text)
        assert str(tmp_path) not in str(card)
        assert "datasets" not in card.data.to_dict()


@pytest.mark.parametrize(
    "name, fields",
    [
        ("Cont Only (SimCLR)", {"adapter_type": "none", "tasks": "contrastive"}),
        ("Cont Only (SimSiam)", {"adapter_type": "none", "tasks": "contrastive", "contrastive_method": "simsiam"}),
        ("Pred Only", {"adapter_type": "none", "tasks": "predictive"}),
        ("MT-Simple (SimCLR)", {"adapter_type": "none", "shared_head": True}),
        ("MT-Split (SimCLR)", {"adapter_type": "none"}),
        ("MT-Bn (SimCLR)", {"adapter_type": "bn"}),
        ("MT-Series (SimSiam)", {"adapter_type": "series", "contrastive_method": "simsiam"}),
        ("MT-Parallel (SimCLR)", {"adapter_type": "parallel", "shared_head": True}),
        ("Pred Only with bn adapters", {"adapter_type": "bn", "tasks": "predictive"}),
    ],
)
def test_variants_have_the_papers_names_and_examples_print_what_they_say(name, fields, tmp_path, capsys, monkeypatch):
    sound = str(Path(__file__).parents[2] / "demo/audio/flute/program_73_key_67_velocity_96.flac")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *name, **options: sound)
    config = MTSLVRConfig(base_width=4, window_seconds=1.0, embedding_size=12, **fields)
    assert variant_name(config) == name
    card = create_model_card(config, repo_id=str(tmp_path))
    assert f"# {name}\n" in card.text
    MTSLVRModel(config).save_pretrained(tmp_path)
    MTSLVRFeatureExtractor().save_pretrained(tmp_path)
    code = "".join(re.findall(r"```python\n(.*?)```", card.text, re.DOTALL))  # the second block goes on with the first
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*?\)  # (.*)", code)


def test_pooling_and_missing_heads_are_in_the_table():
    text = unpadded(create_model_card(MTSLVRConfig(pooling="bands")).text)
    assert "| Pooling | mean over time within 4 bands of frequency |\n| Heads | one per task, 500 each |" in text
    text = unpadded(create_model_card(MTSLVRConfig(pooling="mean_max", use_heads=False)).text)
    assert "| Pooling | mean and maximum over frequency and time |" in text
    assert "| Heads | none: the embedding of a task is its pooled feature map, 1024 |" in text
    assert "torch.Size([1, 2048])" in text
    assert "Pooling" not in create_model_card(MTSLVRConfig()).text


def test_versions_are_those_installed():
    assert library_versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_the_templates_are_packaged():
    package = Path(create_model_card.__globals__["__file__"]).parent
    pyproject = (package.parents[1] / "pyproject.toml").read_text()
    assert (package / "templates" / "pretraining.md").is_file()
    assert '"mtslvr_hf.cards" = ["templates/*.md"]' in pyproject


@pytest.mark.parametrize(
    ("target", "learns", "row"),
    [
        ("labels", "recognize the applied augmentations.", "recognition of the applied augmentations: fade"),
        (
            "parameters",
            "predict how the augmentation parameters of two views differ.",
            "differences of the two views' parameters: fade.in_fraction, fade.out_fraction",
        ),
        (
            "both",
            "recognize the applied augmentations and to predict how their parameters differ between two views.",
            "recognition of the applied augmentations: fade; differences of the two views' parameters: "
            "fade.in_fraction, fade.out_fraction",
        ),
    ],
)
def test_the_predictive_objective_is_that_of_its_target(target, learns, row):
    for tasks in (["contrastive", "predictive"], ["predictive"]):
        card = create_model_card(MTSLVRConfig(tasks=tasks, predictive_target=target, augmentations=["fade"]))
        assert f"which learns to {learns}" in card.content
        assert f"| Predictive objective | {row} |" in unpadded(card.content)
