"""Augmentations: each batched with parameters per clip, and the pipeline that makes two labelled views."""

from .base import Augmentation
from .transforms import FADE_SHAPES, Fade, MixedNoise, PitchShift, TimeMasking, TimeShift, TimeStretch, WhiteNoise
from .two_views import AUGMENTATIONS, AugmentationDraw, TwoViewAugmentation, TwoViews

__all__ = [
    "AUGMENTATIONS",
    "FADE_SHAPES",
    "Augmentation",
    "AugmentationDraw",
    "Fade",
    "MixedNoise",
    "PitchShift",
    "TimeMasking",
    "TimeShift",
    "TimeStretch",
    "TwoViewAugmentation",
    "TwoViews",
    "WhiteNoise",
]
