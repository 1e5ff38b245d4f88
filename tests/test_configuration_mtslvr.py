"""The configuration: defaults, derived sizes, refusals, and the round trip through JSON."""

import inspect

import pytest

from mtslvr_hf import MTSLVRConfig


def test_defaults_are_the_papers():
    config = MTSLVRConfig()
    assert (config.depth, config.adapter_type, config.frontend) == (18, "parallel", "mel_stft")
    assert (config.hidden_size, config.num_hidden_layers, config.head_size) == (512, 4, 500)
    assert config.window_samples == 80_000
    assert config.tasks == ["contrastive", "predictive"]


@pytest.mark.parametrize(
    "settings,hidden_size,head_size",
    [
        ({"depth": 50}, 2048, 500),
        ({"depth": 34, "base_width": 16}, 128, 500),
        ({"shared_head": True}, 512, 1000),
        ({"tasks": "predictive"}, 512, 1000),
    ],
)
def test_derived_sizes(settings, hidden_size, head_size):
    config = MTSLVRConfig(**settings)
    assert (config.hidden_size, config.head_size) == (hidden_size, head_size)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"depth": 20}, "18, 34, 50, 101, 152; got 20"),
        ({"frontend": "stft"}, "got 'stft'"),
        ({"adapter_type": None}, "'parallel'; got None"),
        ({"tasks": ("contrastive", "rotation")}, "got 'rotation'"),
        ({"tasks": ()}, "at least one"),
        ({"tasks": ("predictive", "predictive")}, "each once"),
        ({"embedding_size": 1001}, "cannot be split evenly"),
        ({"base_width": 0}, "`base_width` must be a whole number between 1 and 512; got 0"),
        ({"base_width": 10**9}, "got 1000000000"),
        ({"base_width": 64.0}, "got 64.0"),
        ({"base_width": True}, "got True"),
        ({"n_fft": 10**9}, "a whole number between 2 and 65,536; got 1000000000"),
        ({"num_mel_bins": 10**7}, "between 1 and 1,024"),
        ({"embedding_size": 10**9}, "between 1 and 65,536"),
        ({"sampling_rate": 1}, "between 1,000 and 768,000; got 1"),
        ({"window_seconds": 1e12}, "`window_seconds` must be a number between 0 and 3,600; got 1000000000000.0"),
        ({"window_seconds": float("inf")}, "got inf"),
        ({"window_seconds": float("nan")}, "got nan"),
        ({"window_seconds": "5"}, "got '5'"),
        ({"window_seconds": [5]}, r"got \[5\]"),
        ({"window_seconds": 0}, "greater than 0, got 0"),
        ({"temperature": None}, "got None"),
        ({"predictive_weight": "1"}, "got '1'"),
        ({"shared_head": "no"}, "got 'no'"),
        ({"num_labels": 10**9}, "`num_labels` must be a whole number between 1 and 100,000; got 1000000000"),
        ({"tasks": 5}, "`tasks` must be a list of at most 10,000 names; got 5"),
        ({"tasks": [["contrastive"]]}, "`tasks` must be a list"),
        ({"augmentations": "fade"}, "`augmentations` must be a list"),
        ({"augmentations": ["x"] * 20_000}, r"got \['x', .*\.\.\."),
        ({"active_adapters": {}}, "`active_adapters` must be a list"),
        ({"added_adapters": ["birds"]}, "`added_adapters` must be a dictionary"),
        ({"embedding_scale": 2.0}, "`embedding_scale` must be a dictionary"),
        ({"embedding_scale": {"contrastive": "2"}}, "positive, finite factor; got 'contrastive': '2'"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"predictive_weight": -1}, "a number between 0 and 1,000,000"),
        ({"window_seconds": 0.03}, "480 samples"),
        ({"contrastive_method": "moco"}, "got 'moco'"),
        ({"frontend": "waveform", "normalize_spectrogram": True}, "needs a spectrogram"),
        ({"predictive_target": "param"}, "'labels', 'parameters', 'both'; got 'param'"),
        ({"predictive_target": "both", "augmentation_parameters": []}, "at least one"),
        ({"augmentation_parameters": ["fade.in_fraction", "fade.in_fraction"]}, "each once"),
        (
            {"augmentation_parameters": ["semitones"]},
            "'augmentation.parameter'; got 'semitones', and the augmentations",
        ),
        ({"augmentation_parameters": ["fade.x"], "augmentations": ["time_shift"]}, "got 'fade.x', .* time_shift"),
        ({"augmentations": ["gain"], "predictive_target": "parameters"}, "none of the augmentations gain is built in"),
    ],
)
def test_wrong_values_are_refused_with_what_is_expected(settings, message):
    with pytest.raises(ValueError, match=message):
        MTSLVRConfig(**settings)


def test_round_trip_keeps_every_field(tmp_path):
    config = MTSLVRConfig(
        frontend="waveform",
        depth=50,
        base_width=12,
        adapter_type="series",
        tasks=("predictive", "contrastive"),
        window_seconds=2,
        temperature=1,
        augmentations=("fade", "time_shift"),
        predictive_target="both",
        augmentation_parameters=("time_shift.shift_fraction_sine", "fade.in_fraction"),
        num_labels=5,
    )
    config.save_pretrained(tmp_path)
    again = MTSLVRConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.num_labels == 5


def test_architecture_is_every_field_but_those_of_training_and_the_choice_of_tasks():
    config = MTSLVRConfig(depth=34, added_adapters={"speech": "bn"}, temperature=0.5, active_adapters=["speech"])
    others = {"contrastive_method", "temperature", "predictive_weight", "augmentations", "active_adapters", "kwargs"}
    others |= {"predictive_target", "augmentation_parameters"}
    assert config.architecture().keys() == inspect.signature(MTSLVRConfig).parameters.keys() - others
    assert config.architecture() == {name: getattr(config, name) for name in config.architecture()}
    assert config.architecture() == MTSLVRConfig(depth=34, added_adapters={"speech": "bn"}).architecture()


def test_parameter_targets_are_those_of_the_augmentations_if_they_are_predicted():
    both = MTSLVRConfig(predictive_target="both", augmentations=["time_shift", "fade", "gain"])
    shift = ["time_shift.shift_fraction_sine", "time_shift.shift_fraction_cosine"]
    assert both.parameter_targets == ["fade.in_fraction", "fade.out_fraction", *shift]
    chosen = MTSLVRConfig(predictive_target="parameters", augmentation_parameters=["fade.in_fraction"])
    assert chosen.parameter_targets == ["fade.in_fraction"]
    assert MTSLVRConfig().parameter_targets == []
    assert MTSLVRConfig(tasks="contrastive", predictive_target="both").parameter_targets == []
