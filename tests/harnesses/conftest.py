import pytest
import torch
from torch import nn

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model whose batch normalization is not the identity, saved with its extractor."""
    torch.manual_seed(0)
    model = MTSLVRModel(MTSLVRConfig(base_width=4, window_seconds=1.0, embedding_size=8, frontend="mel"))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.1, 0.1)
    folder = tmp_path_factory.mktemp("harness") / "tiny"
    model.save_pretrained(folder)
    MTSLVRFeatureExtractor(normalization="sample").save_pretrained(folder)
    return folder
