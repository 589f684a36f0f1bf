"""Calibration and test data: one reader for files, folders, Python functions and data sets."""

from onnxq.data.datasets import load_dataset
from onnxq.data.preprocess import Preprocess
from onnxq.data.reader import Batch, Reader
from onnxq.data.resolve import FORMS, open_data

__all__ = ["FORMS", "Batch", "Preprocess", "Reader", "load_dataset", "open_data"]
