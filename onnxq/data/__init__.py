"""Calibration and test data: one reader for files, folders, Python objects and data sets."""

from onnxq.data.code import find_function, parse_code, user_code
from onnxq.data.datasets import load_dataset
from onnxq.data.npz import Npz
from onnxq.data.objects import Data, FeedItem
from onnxq.data.outputs import check_output
from onnxq.data.preprocess import Preprocess
from onnxq.data.reader import Batch, Reader
from onnxq.data.resolve import FORMS, open_data
from onnxq.data.validate import suggest

__all__ = [
    "FORMS",
    "Batch",
    "Data",
    "FeedItem",
    "Npz",
    "Preprocess",
    "Reader",
    "check_output",
    "find_function",
    "load_dataset",
    "open_data",
    "parse_code",
    "suggest",
    "user_code",
]
