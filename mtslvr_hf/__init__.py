"""MT-SLVR for the Hugging Face ecosystem: multi-task self-supervised audio representations.

The import registers the classes with transformers' Auto classes. Other modules: `mtslvr_hf.embedding`, `.adapters`,
`.export` and `.harnesses` (embeddings); `.classification`; `.trainer`, `.augmentations`, `.losses_mtslvr` and `.data`
(pre-training); `.evaluation`.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoProcessor,
)

from .configuration_mtslvr import MTSLVRConfig
from .feature_extraction_mtslvr import MTSLVRFeatureExtractor
from .modeling_mtslvr import MTSLVRForAudioClassification, MTSLVRForPreTraining, MTSLVRModel, MTSLVRPreTrainedModel

__version__ = "0.1.0"

AutoConfig.register(MTSLVRConfig.model_type, MTSLVRConfig)
AutoFeatureExtractor.register(MTSLVRConfig, MTSLVRFeatureExtractor)
AutoProcessor.register(MTSLVRConfig, MTSLVRFeatureExtractor)  # or it asks whether to run code of the folder
MTSLVRConfig.register_for_auto_class()
MTSLVRFeatureExtractor.register_for_auto_class()
for _auto_class, _model_class in (
    (AutoModel, MTSLVRModel),
    (AutoModelForPreTraining, MTSLVRForPreTraining),
    (AutoModelForAudioClassification, MTSLVRForAudioClassification),
):
    _auto_class.register(MTSLVRConfig, _model_class)
    _model_class.register_for_auto_class(_auto_class.__name__)

__all__ = [
    "MTSLVRConfig",
    "MTSLVRFeatureExtractor",
    "MTSLVRForAudioClassification",
    "MTSLVRForPreTraining",
    "MTSLVRModel",
    "MTSLVRPreTrainedModel",
]
