"""ONNX export of a model."""

from .onnx import ExportError, ExportReport, compare, export_onnx

__all__ = ["ExportError", "ExportReport", "compare", "export_onnx"]
