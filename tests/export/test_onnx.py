"""ONNX files compute what the model computes, for any batch and length; and torch.export of the model itself."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mtslvr_cli import main
from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRForAudioClassification, MTSLVRModel
from mtslvr_hf.export.graphs import DECOMPOSITIONS, WaveformGraph, padded_batch

WINDOW = 16_000
BOTH = ("contrastive", "predictive")
EXTRACTOR = MTSLVRFeatureExtractor()


def tiny(model_class=MTSLVRModel, **changes):
    """A network whose batch normalization is none of it the identity, in eval mode."""
    settings = {"base_width": 4, "window_seconds": 1.0, "embedding_size": 8, **changes}
    torch.manual_seed(0)
    model = model_class(MTSLVRConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((module.running_mean, -0.1, 0.1), (module.running_var, 0.5, 1.5)):
                tensor.uniform_(low, high, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.1, 0.1, generator=generator)
    return model.eval()


def graph_of(model, tasks=BOTH, extractor=EXTRACTOR, **options):
    return WaveformGraph(copy.deepcopy(model).base_model.merge_adapters(tasks), tasks, extractor, **options)


def by_forward(model, inputs, extractor=EXTRACTOR, **options):
    """Embeddings of the model from the extractor's input, for inputs of a graph."""
    lengths = inputs["attention_mask"].sum(dim=1)
    clips = [clip[:length] for clip, length in zip(inputs["waveforms"], lengths)]
    return model.base_model(**extractor(clips, WINDOW, return_tensors="pt"), **options).pooler_output


def relative_error(found, expected):
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def batch(*lengths, extra=0, seed=0):
    return padded_batch(lengths, extra, torch.Generator().manual_seed(seed), WINDOW)


@torch.no_grad()
def error_of_graph(model, inputs, tasks=BOTH, extractor=EXTRACTOR):
    found = graph_of(model, tasks, extractor, with_mask=True)(**inputs)
    expected = by_forward(model, inputs, extractor, tasks=tasks)
    assert found.shape == expected.shape
    return relative_error(found, expected)


class TestGraphs:
    """In torch, without the packages that ONNX needs."""

    @pytest.mark.parametrize("lengths,extra", [((1,), 0), ((5, 3000), 9), ((WINDOW, 40_000), 0), ((16_001, 123), 50)])
    def test_windows_are_cut_as_the_model_cuts_them(self, lengths, extra):
        assert error_of_graph(tiny(frontend="mel"), batch(*lengths, extra=extra)) < 1e-5

    @pytest.mark.parametrize("normalization", ("global", "sample", "none"))
    def test_normalization_is_the_extractors(self, normalization):
        """Clips with an offset, so that each normalization gives another result; the third one is silence."""
        extractor = MTSLVRFeatureExtractor(normalization=normalization, mean=0.1, std=0.5)
        inputs = batch(WINDOW, 30_000, 123, extra=500)
        inputs["waveforms"] += 0.2 * inputs["attention_mask"] * torch.tensor([[1.0], [-1.0], [0.0]])
        assert error_of_graph(tiny(frontend="mel"), inputs, extractor=extractor) < 1e-5

    @torch.no_grad()
    def test_no_mask_is_a_mask_of_ones(self):
        model, inputs = tiny(frontend="mel"), batch(20_000, 20_000)
        expected = graph_of(model, with_mask=True)(**inputs)
        assert torch.equal(graph_of(model)(inputs["waveforms"]), expected)

    @torch.no_grad()
    def test_clips_without_an_embedding_are_nan(self):
        """Empty, not finite, masks that the model refuses; but not what padding holds."""
        inputs = batch(*[WINDOW] * 7)
        waveforms, mask = inputs["waveforms"], inputs["attention_mask"]
        mask[0] = 0
        mask[1, :5] = 0
        mask[2, 3] = 0
        waveforms[3, 7] = torch.nan
        waveforms[4, 8] = torch.inf
        waveforms[5, 9], mask[5, 9:] = torch.nan, 0
        logits, embeddings = graph_of(tiny(), with_mask=True, classifier=nn.Linear(8, 3))(**inputs)
        for values in (logits, embeddings):
            assert values.isnan().all(dim=1).tolist() == [True] * 5 + [False] * 2
            assert values[5:].isfinite().all()

    @torch.no_grad()
    def test_classifier(self):
        model, inputs = tiny(MTSLVRForAudioClassification, frontend="mel", num_labels=3), batch(WINDOW, 5000)
        graph = graph_of(model, classifier=model.classifier, with_mask=True)
        assert graph.outputs == ["logits", "embeddings"]
        logits, embeddings = graph(**inputs)
        assert relative_error(embeddings, by_forward(model, inputs)) < 1e-5
        assert relative_error(logits, model.classifier(by_forward(model, inputs))) < 1e-5

    @pytest.mark.parametrize(
        "changes",
        [
            {"adapter_type": "none"},
            {"depth": 50},
            {"frontend": "waveform"},
            {"pooling": "bands"},
            {"pooling": "mean_max", "use_heads": False},
            {"adapter_type": "none", "use_heads": False},
            {"embedding_scale": {"predictive": 0.25}},
        ],
    )
    def test_other_networks(self, changes):
        assert error_of_graph(tiny(**changes), batch(WINDOW, WINDOW)) < 1e-5

    def test_tasks_in_their_order_and_shared_ones_once(self):
        shared = {"adapter_type": "none", "shared_head": True}
        mixed = ("contrastive", "mine", "predictive")  # the first and the last have one embedding
        for changes, tasks in (({}, BOTH[::-1]), ({}, BOTH[1:]), (shared, BOTH), (shared, mixed)):
            model = tiny(frontend="mel", **changes)
            model.add_adapter("mine", "series")
            model.heads["mine"].bias.data += 1
            assert error_of_graph(model, batch(WINDOW), tasks) < 1e-5

    def test_replacements_of_operators(self):
        table, aten = DECOMPOSITIONS, torch.ops.aten
        x, y = torch.randn(200), torch.randn(200)
        x[:4], y[:4] = torch.tensor([0.0, -2.0, 0.0, 3.0]), torch.tensor([0.0, 0.0, -1.0, 0.0])
        torch.testing.assert_close(table[aten.atan2.default](y, x), torch.atan2(y, x))
        torch.testing.assert_close(table[aten.hypot.default](y, x), torch.hypot(y, x))
        features = torch.randn(2, 3, 9, 14)
        for size in ((9, 14), (5, 7), (4, 5), (1, 1)):
            expected = nn.functional.adaptive_avg_pool2d(features, size)
            torch.testing.assert_close(table[aten.adaptive_avg_pool2d.default](features, size), expected)

    @pytest.mark.parametrize("n_fft", (1024, 400, 31))
    def test_replacement_of_the_stft(self, n_fft):
        waveforms = torch.randn(2, 4000)
        waveforms[1] = 0.3  # digital silence
        window = torch.ones(n_fft)
        expected = torch.stft(waveforms, n_fft, 160, window=window, center=False, return_complex=True)
        found = DECOMPOSITIONS[torch.ops.aten.stft.default](waveforms, n_fft, 160, n_fft, window)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        assert not found[1, 1:].abs().any()  # exactly, or silence would sound like rounding noise


@pytest.fixture(scope="module")
def onnx():
    """The package, with the others that export needs."""
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    return pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def exported(onnx, tmp_path_factory):
    """The default kind of model, and its file."""
    from mtslvr_hf.export.onnx import export_onnx

    model = tiny()
    path = tmp_path_factory.mktemp("onnx") / "new" / "model.onnx"
    return model, export_onnx(model.train(), path)


@pytest.fixture
def with_the_exported_graph(exported, onnx, monkeypatch):
    """Exports give the graph of `exported`, whatever the model."""
    from mtslvr_hf.export import onnx as export

    class Program:
        def __init__(self, *_):
            self.model = SimpleNamespace(metadata_props={}, doc_string=None, opset_imports={"": 20})
            self.model_proto = onnx.load(exported[1].path)

    monkeypatch.setattr(export, "to_onnx", Program)
    return copy.deepcopy(exported[0])


@pytest.mark.usefixtures("onnx")
class TestFiles:
    @pytest.mark.slow
    def test_operator_set_that_does_not_exist(self, tmp_path):
        from mtslvr_hf.export.onnx import export_onnx

        with pytest.raises(ValueError, match="`opset` is 99, which this onnxscript cannot write"):
            export_onnx(tiny(frontend="mel"), tmp_path / "model.onnx", opset=99)

    def test_report(self, exported):
        model, report = exported
        assert report.max_error <= 1e-4 and report.explained == 0 and report.labels is None
        assert report.clips == 11 and report.size == report.path.stat().st_size
        assert report.embedding_size == 8 and report.tasks == list(BOTH)
        assert [report.path.name] == [path.name for path in report.path.parent.iterdir()]
        assert model.training and model.config.merged_adapters is None  # left as it was

    def test_any_batch_and_length(self, exported):
        from mtslvr_hf.export.onnx import compare

        model, report = exported
        lengths = ((1,), (500,) * 3, (2 * WINDOW + 1,) * 3, (WINDOW // 2,) * 5, (4 * WINDOW,))
        batches = [{"waveforms": batch(*several)["waveforms"]} for several in lengths]
        batches.append({"waveforms": torch.zeros(1, 900)})
        errors = compare(report.path, copy.deepcopy(model).eval(), batches)
        assert len(errors) == 14 and max(errors) <= 1e-4

    def test_names_axes_and_metadata(self, exported, onnx):
        graph = onnx.load(exported[1].path)
        onnx.checker.check_model(graph, full_check=True)
        axes = {
            value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*graph.graph.input, *graph.graph.output)
        }
        assert axes == {"waveforms": ["batch", "samples"], "embeddings": ["batch", 8]}
        facts = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
        assert facts["mtslvr.sampling_rate"] == 16_000 and facts["mtslvr.window_samples"] == WINDOW
        assert facts["mtslvr.tasks"] == list(BOTH) and facts["mtslvr.embedding_size"] == 8
        assert "mtslvr.normalization" not in facts  # the graph does it; nobody should do it again
        assert "mono audio at 16000 Hz, floats from -1 to 1, not normalized" in graph.doc_string
        assert b"modeling_mtslvr.py" not in graph.SerializeToString()  # no stack traces with this machine's paths
        assert {node.op_type for node in graph.graph.node}.isdisjoint({"DFT", "STFT", "ScatterND"})

    def test_spectrograms_of_any_number_of_frames(self, tmp_path):
        from mtslvr_hf.export.onnx import compare, export_onnx

        model = tiny(frontend="mel", adapter_type="series")
        path = export_onnx(model, tmp_path / "model.onnx", "spectrogram", tasks="predictive").path
        batches = [
            {"input_features": torch.randn(clips, 1, 128, frames)} for clips, frames in ((1, 1), (3, 45), (2, 9))
        ]
        assert max(compare(path, model, batches, ["predictive"])) < 1e-4

    @pytest.mark.parametrize(
        "pooling",
        [
            {"pooling": "bands", "use_heads": False},
            pytest.param({"pooling": "mean_max"}, marks=pytest.mark.slow),
            pytest.param({"use_heads": False}, marks=pytest.mark.slow),
        ],
    )
    def test_poolings(self, pooling, tmp_path, onnx):
        from mtslvr_hf.export.onnx import compare, export_onnx

        model = tiny(frontend="mel", window_seconds=0.5, **pooling)
        report = export_onnx(model, tmp_path / "model.onnx", "spectrogram")
        assert report.max_error <= 1e-4 and report.embedding_size == model.config.embedding_size_of()
        batches = [{"input_features": torch.randn(clips, 1, 128, frames)} for clips, frames in ((1, 1), (3, 75))]
        assert max(compare(report.path, model, batches)) < 1e-4
        facts = {entry.key: json.loads(entry.value) for entry in onnx.load(report.path).metadata_props}
        for name in ("pooling", "num_bands", "use_heads", "head_size"):
            assert facts[f"mtslvr.{name}"] == getattr(model.config, name)
        assert facts["mtslvr.normalization"] == "global" and facts["mtslvr.std"] == EXTRACTOR.std

    @pytest.mark.slow  # test_poolings and test_command
    def test_command_with_another_pooling(self, tmp_path, capsys):
        tiny(frontend="mel", window_seconds=0.5).save_pretrained(tmp_path / "model")
        MTSLVRFeatureExtractor().save_pretrained(tmp_path / "model")
        command = ["export", str(tmp_path / "model"), "--output", str(tmp_path / "model.onnx")]
        assert main([*command, "--pooling", "bands", "--num-bands", "2"]) == 0
        assert "waveform to embeddings of 128 (contrastive, predictive)" in capsys.readouterr().out
        assert main([*command, "--pooling", "bands", "--num-bands", "3"]) == 1
        assert "choose one of 1, 2, 4" in capsys.readouterr().err

    @pytest.mark.slow
    def test_frames_of_a_length_that_is_no_power_of_2(self, tmp_path):
        """The DFT of onnxruntime is wrong on them."""
        from mtslvr_hf.export.onnx import export_onnx

        assert export_onnx(tiny(frontend="mel", n_fft=768), tmp_path / "model.onnx").max_error <= 1e-4

    @pytest.mark.slow
    @pytest.mark.parametrize("adapter_type", ("none", "bn", "series"))
    @pytest.mark.parametrize("frontend", ("mel_stft", "waveform"))
    def test_every_kind(self, adapter_type, frontend, tmp_path):
        from mtslvr_hf.export.onnx import export_onnx

        changes = {"window_seconds": 0.61, "num_mel_bins": 50}
        normalized = frontend == "mel_stft" and adapter_type == "series"
        if adapter_type == "bn":
            changes["embedding_scale"] = {"predictive": 0.25}
        model = tiny(adapter_type=adapter_type, frontend=frontend, normalize_spectrogram=normalized, **changes)
        assert export_onnx(model, tmp_path / "model.onnx", opset=21).opset == 21

    def test_command(self, tmp_path, capsys):
        tiny(MTSLVRForAudioClassification, frontend="waveform", num_labels=3).save_pretrained(tmp_path / "model")
        EXTRACTOR.save_pretrained(tmp_path / "model")
        output = tmp_path / "model.onnx"
        command = ["export", str(tmp_path / "model"), "--output", str(output)]
        for options, message in (
            (["--tasks", "predictive"], "the classifier reads the embedding of ['contrastive', 'predictive']"),
            (["--input", "spectrogram"], "has no spectrogram"),
            (["--tolerance", "0"], "`tolerance` is 0.0; expected a number above 0"),
            (["--output", f"{tmp_path / 'model.pt'}"], f"expected a name such as {output}"),
        ):
            assert main([*command, *options]) == 1
            assert message in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert main([*command, "--tasks", "predictive", "--no-classifier"]) == 0
        printed = capsys.readouterr().out
        assert f"Wrote {output}: waveform to embeddings of 4 (predictive)" in printed
        assert "Largest relative error against torch, 11 clips: " in printed

    def test_classifier_with_a_mask(self, tmp_path, capsys):
        import onnxruntime

        labels = {"id2label": dict(enumerate(("owl", "wren", "kite"))), "problem_type": "multi_label_classification"}
        model = tiny(MTSLVRForAudioClassification, frontend="mel", tasks=["contrastive"], **labels)
        extractor = MTSLVRFeatureExtractor(normalization="sample")
        model.save_pretrained(tmp_path / "model")
        extractor.save_pretrained(tmp_path / "model")
        output = tmp_path / "model.onnx"
        assert main(["export", str(tmp_path / "model"), "--output", str(output), "--attention-mask"]) == 0
        assert "waveform to logits of 3 classes and embeddings of 8 (contrastive)" in capsys.readouterr().out
        session = onnxruntime.InferenceSession(output)
        facts = session.get_modelmeta().custom_metadata_map
        assert json.loads(facts["mtslvr.labels"]) == ["owl", "wren", "kite"]
        assert json.loads(facts["mtslvr.problem_type"]) == "multi_label_classification"
        assert "attention_mask (batch, samples): 1 for samples" in session.get_modelmeta().description
        inputs = batch(WINDOW, 40_000, 900, 5000, 100, extra=50)
        inputs["waveforms"][3, 7] = torch.nan
        inputs["attention_mask"][4] = 0
        logits, embeddings = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        inputs = {name: value[:3] for name, value in inputs.items()}
        with torch.no_grad():
            expected = by_forward(model, inputs, extractor)
            expected_logits = model.classifier(expected)
        for found, wanted in ((embeddings, expected), (logits, expected_logits)):
            found = torch.from_numpy(found)
            assert relative_error(found[:3], wanted) < 1e-4
            assert found[3:].isnan().all()

    def test_network_that_differs_leaves_no_file(self, with_the_exported_graph, tmp_path, monkeypatch, capsys):
        from mtslvr_hf.export import onnx as export

        model = with_the_exported_graph
        model.heads["contrastive"].bias.data += 1.0
        model.save_pretrained(tmp_path / "model")
        EXTRACTOR.save_pretrained(tmp_path / "model")
        output = tmp_path / "out" / "model.onnx"
        assert main(["export", str(tmp_path / "model"), "--output", str(output)]) == 1
        figures = "differs from torch by (.*) of an output, more than the tolerance (.*). Round.* by only (.*) when"
        (found,) = re.findall(figures, capsys.readouterr().err)
        error, tolerance, own = map(float, found)
        assert error > tolerance == 1e-4 and own < 1e-4
        assert not output.parent.exists()
        monkeypatch.setattr(export, "compare", lambda *_: [1e-6, float("nan"), 1e-6])
        with pytest.raises(export.ExportError, match="differs from torch by nan"):
            export.export_onnx(model, output)

    def test_difference_that_rounding_explains(self, with_the_exported_graph, tmp_path, monkeypatch, caplog):
        """Periodic signals: between their harmonics, bands hold only rounding noise, of any phase."""
        from mtslvr_hf.export.onnx import export_onnx

        waves = [torch.sin(2 * torch.pi * torch.arange(WINDOW) / period) for period in (8, 16, 20)]
        waves.append(torch.sign(torch.sin(2 * torch.pi * (torch.arange(WINDOW) + 0.5) / 32)))
        monkeypatch.setattr(WaveformGraph, "batches", lambda _: [{"waveforms": 0.3 * torch.stack(waves)}])
        report = export_onnx(with_the_exported_graph, tmp_path / "model.onnx")
        assert report.max_error > 1e-4 and 1 <= report.explained <= 4
        assert report.path.stat().st_size == report.size
        assert f"on {report.explained} of 4 clips. Rounding explains it: torch's own output changes by" in caplog.text
        caplog.clear()
        report = export_onnx(with_the_exported_graph, tmp_path / "model.onnx", tolerance=2 * report.max_error)
        assert report.explained == 0 and not caplog.text

    def test_wrong_arguments(self, tmp_path):
        from mtslvr_hf.export.onnx import export_onnx

        model = tiny()
        for arguments, message in (
            ({"input": "mp3"}, "must be one of 'waveform', 'spectrogram'; got 'mp3'"),
            ({"opset": 11}, "`opset` is 11; torch writes 18 or higher"),
            ({"tasks": ["speaker"]}, r"got \['speaker'\]"),
            ({"destination": tmp_path}, "is a folder"),
            (
                {"destination": tmp_path / "model"},
                r"model does not end in \.onnx; expected a name such as .*model\.onnx",
            ),
            ({"tolerance": float("nan")}, "`tolerance` is nan; expected a number above 0"),
            ({"input": "spectrogram", "attention_mask": True}, "an item of `input='spectrogram'` is one window"),
            ({"feature_extractor": MTSLVRFeatureExtractor(8000)}, "extractor gives 8000 Hz and the model takes 16000"),
        ):
            with pytest.raises(ValueError, match=message):
                export_onnx(model, **{"destination": tmp_path / "model.onnx", **arguments})


def test_missing_packages_are_named(monkeypatch, tmp_path, capsys):
    from mtslvr_hf.export import onnx as export

    found = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    with pytest.raises(ImportError, match=r"needs onnx, onnxruntime, onnxscript: `pip install -e '\.\[onnx\]'"):
        export.export_onnx(tiny(), tmp_path / "model.onnx")
    tiny().save_pretrained(tmp_path)
    assert main(["export", str(tmp_path), "--output", str(tmp_path / "model.onnx")]) == 1
    assert "mtslvr export: error: ONNX export needs onnx" in capsys.readouterr().err


@pytest.mark.parametrize("frontend", ("mel_stft", pytest.param("waveform", marks=pytest.mark.slow)))
def test_torch_export_of_the_forward(frontend):
    """With a dynamic batch; `strict`, which traces as torch.compile does."""
    model = tiny(frontend=frontend).merge_adapters()
    program = torch.export.export(
        model, (torch.randn(3, WINDOW),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=True
    ).module()
    waveforms = torch.randn(5, WINDOW)
    with torch.no_grad():
        assert relative_error(program(waveforms).pooler_output, model(waveforms).pooler_output) < 1e-5
