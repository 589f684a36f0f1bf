"""Quantize one model with another tool, the way its documentation says it comes out best.

::

    python scripts/peers.py nncf prepared.onnx FEEDS_FOLDER output.onnx

The folder holds a ``.npz`` file for each feed. ``bench_peers.py`` runs this as a process of its
own: a tool may crash, or need an environment of its own (no two of the large ones share one), so
nothing of onnxq's is imported here. The exit code is 3 where the tool is not installed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

NOT_INSTALLED = 3
Feeds = list[dict[str, np.ndarray]]


class Feeder:
    """Feeds in the forms that tools read: ``get_next`` of ONNX Runtime's calibrators, a loader."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self.batch_size = 1  # of feeds, as neural-compressor counts
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed; None behind the last."""
        return next(self._left, None)

    def rewind(self) -> None:
        """Start again."""
        self._left = iter(self._feeds)

    def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], None]]:
        return ((feed, None) for feed in self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)


def ort_static(model: Path, feeds: Feeds, output: Path) -> None:
    """uint8 activations and int8 weights per channel, in pairs, ranges from end to end."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        model,
        output,
        Feeder(feeds),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
    )


def ort_dynamic(model: Path, _: Feeds, output: Path) -> None:
    """int8 weights per channel, activations while the model runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, output, weight_type=QuantType.QInt8, per_channel=True)


def nncf(model: Path, feeds: Feeds, output: Path) -> None:
    """Default preset, all feeds."""
    import nncf as tool
    import onnx

    made = tool.quantize(onnx.load(model), tool.Dataset(feeds), subset_size=len(feeds))
    onnx.save(made, output)


def neural_compressor(model: Path, feeds: Feeds, output: Path) -> None:
    """Static, in pairs. Its ONNX part ends with version 2, which wants onnx before 1.18."""
    from neural_compressor import PostTrainingQuantConfig, quantization

    config = PostTrainingQuantConfig(
        approach="static", quant_format="QDQ", calibration_sampling_size=[len(feeds)]
    )
    made = quantization.fit(str(model), config, calib_dataloader=Feeder(feeds))
    if made is None:
        raise RuntimeError("it found no quantized model")
    made.save(str(output))


def quark(model: Path, feeds: Feeds, output: Path) -> None:
    """uint8 activations and int8 weights per channel: its default is slower than float here."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, QuantizationConfig

    settings = QuantizationConfig(
        quant_format=QuantFormat.QDQ,
        calibrate_method=CalibrationMethod.MinMax,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    quantizer = ModelQuantizer(Config(global_quant_config=settings))
    quantizer.quantize_model(str(model), str(output), Feeder(feeds))


TOOLS: dict[str, Callable[[Path, Feeds, Path], None]] = {
    "ort-static": ort_static,
    "ort-dynamic": ort_dynamic,
    "neural-compressor": neural_compressor,
    "nncf": nncf,
    "quark": quark,
}


def read_feeds(folder: Path) -> Feeds:
    """The feeds of a folder, in the order of their numbers."""
    files = sorted(folder.glob("*.npz"), key=lambda file: int(file.stem))
    return [dict(np.load(file)) for file in files]


def main() -> int:
    """Run the tool that the command line names."""
    tool, model, folder, output = sys.argv[1:]
    logging.disable(logging.WARNING)
    try:
        TOOLS[tool](Path(model), read_feeds(Path(folder)), Path(output))
    except ModuleNotFoundError as error:
        print(f"not installed: {error}", file=sys.stderr)
        return NOT_INSTALLED
    return 0


if __name__ == "__main__":
    sys.exit(main())
