"""The calls that transformers' run_audio_classification.py makes, which must run unchanged.

Extractor without padding arguments and no mask, label ids as text, a stray configuration value, a frozen encoder.
"""

import datasets
import numpy as np
import torch
from classifier_runs import HERTZ, RATE, save_model, tone
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Trainer,
    TrainingArguments,
)


def test_transformers_own_script_finds_what_it_calls(tmp_path):
    model = save_model(tmp_path / "pre-trained")
    extractor = AutoFeatureExtractor.from_pretrained(model, return_attention_mask=True)
    names = list(HERTZ)

    def transform(rows):
        waves = [np.array(wave) for wave in rows["wave"]]
        inputs = extractor(waves, sampling_rate=extractor.sampling_rate)
        return {extractor.model_input_names[0]: inputs.get(extractor.model_input_names[0]), "labels": rows["label"]}

    cases = [(label, number) for number in range(4) for label in range(3)]
    waves = [tone(HERTZ[names[label]], number, 0.5 + 0.2 * number).tolist() for label, number in cases]
    rows = datasets.Dataset.from_dict({"wave": waves, "label": [label for label, _ in cases]})
    rows.set_transform(transform, output_all_columns=False)
    config = AutoConfig.from_pretrained(
        model,
        num_labels=3,
        label2id={name: str(number) for number, name in enumerate(names)},
        id2label={str(number): name for number, name in enumerate(names)},
        finetuning_task="audio-classification",
        revision="main",
        trust_remote_code=False,
    )
    network = AutoModelForAudioClassification.from_pretrained(
        model, from_tf=False, config=config, revision="main", trust_remote_code=False, ignore_mismatched_sizes=False
    )
    network.freeze_feature_encoder()
    args = TrainingArguments(
        tmp_path, num_train_epochs=2, per_device_train_batch_size=4, remove_unused_columns=False, use_cpu=True,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=network,
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda result: {
            "accuracy": (np.argmax(result.predictions, axis=1) == result.label_ids).mean()
        },
        processing_class=extractor,
    )
    trainer.train(resume_from_checkpoint=None)
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.create_model_card(finetuned_from=str(model), tasks="audio-classification", dataset="d", tags=["a"])
    assert 0 <= metrics["eval_accuracy"] <= 1
    saved = AutoModelForAudioClassification.from_pretrained(tmp_path)
    assert saved.config.id2label == dict(enumerate(names)) and saved.config.label2id["low"] in (1, "1")
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("mtslvr."))
    assert AutoFeatureExtractor.from_pretrained(tmp_path).sampling_rate == RATE
