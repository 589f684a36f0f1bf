"""Write the tables of measured results: docs/results.md, and those of README.md.

::

    python scripts/bench_peers.py --models FOLDER --seconds 4 --json peers.json
    python scripts/write_results.py --from peers.json   # keeps the figures in docs/results.json
    python scripts/write_results.py                     # writes the tables from these again
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FIGURES, PAGE, README = ROOT / "docs/results.json", ROOT / "docs/results.md", ROOT / "README.md"
BEGIN, END = "<!-- results: written by scripts/write_results.py -->\n", "<!-- end of results -->\n"
# What README.md shows: one of every kind.
SHOWN = (
    "cifar10_mobilenet", "cifar10_resnet", "cifar_resnet44_op11_static", "mnist_transformer",
    "mnist_lstm", "ultraface_rfb320", "yolox_nano", "kwt1", "silero_vad_16k_op15", "dtln_2",
    "superres_core", "tiny_vww_mbv1", "ppocr_v2_cls",
)  # fmt: skip
TOOLS = {
    "onnxq": "onnxq", "onnxq int8-everywhere": "onnxq, int8 everywhere",
    "ort-static": "ORT static", "ort-dynamic": "ORT dynamic",
}  # fmt: skip
HEAD = ("model", "float", *TOOLS.values())
KEPT = ("score", "speed", "noise", "sqnr_db", "size_ratio", "made_in", "why")

Result = dict[str, Any]


def reduced(told: dict[str, Any]) -> dict[str, Any]:
    """What the tables need of what ``bench_peers.py`` wrote."""
    models = []
    for model in told["models"]:
        forms = {
            form["name"]: {key: rounded(form[key]) for key in KEPT}
            for form in model["forms"]
            if form["name"] in TOOLS or "float" in form["name"]
        }
        models.append({"model": model["model"], "batch": model["batch"], "forms": forms})
    return {"environment": told["environment"], "seconds": told["seconds"], "models": models}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old figures, and the new ones of the models that were measured anew."""
    models = {model["model"]: model for told in (old, new) for model in told["models"]}
    return new | {"models": list(models.values())}


def rounded(value: object) -> object:
    """Four digits: more than any of the figures is known to."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def cell(form: Result | None) -> str:
    """Score and speed of one form; empty where it was not made."""
    if form is None or form["why"] or form["speed"] is None:
        return "–"
    return f"{form['score']:.4g} · {form['speed']:.2f}x"


def row(model: Result) -> tuple[str, ...]:
    """A model's line."""
    forms = model["forms"]
    cells = (cell(forms.get(tool)) for tool in TOOLS)
    return f"`{model['model']}`", f"{forms['float']['score']:.4g}", *cells


def table(models: list[Result]) -> Iterator[str]:
    """Lines of Markdown."""
    align = ("---", *("---:",) * (len(HEAD) - 1))
    yield from (f"| {' | '.join(cells)} |\n" for cells in (HEAD, align, *map(row, models)))


def sentence(told: dict[str, Any]) -> str:
    """Where and with what this was measured."""
    where = told["environment"]
    return (
        f"One thread of an {where['processor']} ({where['system']}), ONNX Runtime "
        f"{where['onnxruntime']}, onnxq {where['onnxq']}, Python {where['python']}.\n"
    )


def page(told: dict[str, Any]) -> str:
    """docs/results.md."""
    return "".join(
        [
            "# Measured results\n\n",
            "Every cell is *score · speed*. The score is the model's own metric on held-out data\n"
            "(accuracy, average precision, signal-to-distortion or peak signal-to-noise ratio in\n"
            "dB); higher is better, but for `tiny_ad_autoencoder` and `g2p_gru_loop`, whose\n"
            "scores are errors. The speed is a multiple of the prepared float model's: constants\n"
            "and BatchNorm folded, layer normalizations named, dead channels taken out, all of\n"
            "ONNX Runtime's optimisations on, measured interleaved with the others. A form that\n"
            "could not be made, or that ONNX Runtime refuses, is a dash.\n\n",
            sentence(told),
            "Models of other projects are under the names of their files; 200 samples without\n"
            "labels are all that any tool is given. Measured in one run of two processes, each on\n"
            "a core: what one does moves a speed of the other by a few per cent (`noise` in the\n"
            "figures); `ultraface_rfb320` by itself. `tiny_vww_mbv1` loses its dead channels in\n"
            "preparing, and all tools are given what is left: the source itself has 0.74 times\n"
            "the speed of that.\n\n",
            *table(told["models"]),
            "\n`onnxq` is what `onnxq quantize MODEL --data DATA` writes; *int8 everywhere* adds\n"
            "`--precision int8`. *ORT static* is `quantize_static` of `onnxruntime.quantization`\n"
            "on the preprocessed model (uint8 activations, int8 weights per channel, QDQ), *ORT\n"
            "dynamic* its `quantize_dynamic`. Made by `scripts/bench_peers.py` and\n"
            "`scripts/write_results.py`; the figures, with spreads, SQNR and sizes, are in\n"
            "[results.json](results.json). This processor has AMX: `onnxq` plans for the target\n"
            "`cpu-x86-amx` there.\n",
        ]
    )


def readme(told: dict[str, Any], text: str) -> str:
    """README.md with its table written again."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    shown = [model for name in SHOWN for model in told["models"] if model["model"] == name]
    return "".join([before, BEGIN, *table(shown), "\n", sentence(told), END, after])


def main() -> int:
    """Write what is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--from", type=Path, dest="source", metavar="FILE", help="new figures of some models"
    )
    args = parser.parse_args()
    if args.source is not None:
        new = reduced(json.loads(args.source.read_text("utf-8")))
        figures = merged(json.loads(FIGURES.read_text("utf-8")), new)
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    told = json.loads(FIGURES.read_text("utf-8"))
    PAGE.write_text(page(told), "utf-8")
    README.write_text(readme(told, README.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
