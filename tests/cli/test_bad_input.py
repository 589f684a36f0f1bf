"""Bad input through the command line: an exit code, one clear line, and nothing left behind."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.graph import Model, save

NET = """
net (float[N,1,4,4] image) => (float[N,3] scores)
<float[8,1,3,3] w1 = seeded, float[32,3] w2 = seeded>
{
  [conv] c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w1)
  [relu] r = Relu (c)
  [flatten] f = Flatten (r)
  [head] scores = Gemm (f, w2)
}
"""
TWO_INPUTS = """
net (float[N,8] left, float[N,8] right) => (float[N,40] y) <float[8,40] w = seeded>
{
  [sum] s = Add (left, right)
  [mul] y = MatMul (s, w)
}
"""
OLD = """
<ir_version: 4, opset_import: ["" : 9]>
net (float[N,8] x) => (float[N,40] y) <float[8,40] w = seeded> { [mul] y = MatMul (x, w) }
"""
CUSTOM = """
<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
net (float[N,8] x) => (float[N,8] y) { [spell] y = acme.Enchant (x) }
"""
FEEDS = """
import numpy as np

def feeds():
    for index in range(20):
        yield {"image": np.full((1, 1, 4, 4), index, np.float32)}, np.array([0])

def broken():
    raise ZeroDivisionError("no luck")
    yield

def fell(outputs, labels):
    raise LookupError("no such class")

def half(outputs, labels):
    return 0.5

def nan(outputs, labels):
    return float("nan")
"""
NAMED = 'precision = "int8"\n'
QUICK = "[verify]\nseconds = 0\n"


def _images(count: int = 20, shape: tuple[int, ...] = (1, 4, 4)) -> np.ndarray:
    return np.random.RandomState(0).uniform(-1, 1, (count, *shape)).astype(np.float32)


def _spoilt(value: float) -> np.ndarray:
    images = _images()
    images[7, 0, 1, 2] = value
    return images


def _write_models(folder: Path, build: Callable[[str], Model]) -> None:
    save(build(NET), folder / "net.onnx")
    save(build(TWO_INPUTS), folder / "two_inputs.onnx")
    save(build(OLD), folder / "old.onnx")
    save(build(CUSTOM), folder / "custom.onnx")
    whole = (folder / "net.onnx").read_bytes()
    (folder / "folder").mkdir()
    (folder / "text.onnx").write_text("This is no model.\n")
    (folder / "random.onnx").write_bytes(np.random.RandomState(0).bytes(4096))
    (folder / "empty.onnx").touch()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    sparse = onnx.load(folder / "net.onnx")
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "holes")
    places = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "at")
    sparse.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4]))
    onnx.save(sparse, folder / "sparse.onnx")
    training = onnx.load(folder / "net.onnx")
    training.training_info.add()
    onnx.save(training, folder / "training.onnx")


def _write_data(folder: Path) -> None:
    labels = np.zeros(20, np.int64)
    np.savez(folder / "good.npz", image=_images(), labels=labels)
    np.savez(folder / "wrong_name.npz", imagge=_images())
    np.savez(folder / "one_input.npz", left=_images(20, (8,)))
    np.savez(folder / "wrong_shape.npz", image=_images(20, (1, 4, 5)))
    np.savez(folder / "wrong_dtype.npz", image=_images().astype(np.float64))
    np.savez(folder / "nan.npz", image=_spoilt(np.nan))
    np.savez(folder / "inf.npz", image=_spoilt(np.inf))
    np.savez(folder / "no_rows.npz", image=_images(0))
    np.savez(folder / "odd_labels.npz", image=_images(), labels=np.zeros((20, 2), np.int64))
    (folder / "no_files").mkdir()
    (folder / "notes.txt").write_text("no data")
    (folder / "bad_input_code.py").write_text(FEEDS)


def _write_recipes(folder: Path) -> None:
    recipes = {
        "quick": QUICK,
        "unknown_key": "[data]\nbatchsize = 4\n",
        "unknown_top_key": 'precison = "int8"\n',
        "wrong_type": '[data]\nbatch_size = "four"\n',
        "wrong_value": 'precision = "int3"\n',
        "wrong_target": 'target = "cpu-x87"\n',
        "no_toml": "precision: int8\n",
    }
    for name, text in recipes.items():
        (folder / f"{name}.toml").write_text(text)
    found = {
        "found_data": NAMED + "[data]\ncalibration = '../bad_input_code.py:feeds'\n" + QUICK,
        "found_metric": f'{QUICK}metric = "bad_input_code:half"\n',
    }
    for name, text in found.items():
        (folder / name).mkdir()
        shutil.copy(folder / "net.onnx", folder / name)
        (folder / name / "net.onnxq.toml").write_text(text)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, build: Callable[[str], Model]) -> Path:
    """A folder with everything that can be wrong; a refused call must leave it as it is."""
    folder = tmp_path_factory.mktemp("shelf")
    _write_models(folder, build)
    _write_data(folder)
    _write_recipes(folder)
    return folder


@pytest.fixture
def refused(
    shelf: Path,
    onnxq: Callable[..., object],
    files_in: Callable[[Path], object],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., None]:
    """Call ``onnxq``, and check that it refuses as it should."""

    def call(code: int, words: tuple[str, ...], *args: object, command: str = "quantize") -> None:
        monkeypatch.chdir(shelf)
        before = files_in(shelf)
        run = onnxq(command, *args)
        assert run.code == code, run.err
        assert run.out == ""
        assert files_in(shelf) == before
        *usage, message = run.err.splitlines()
        assert message.lower().startswith("error: "), run.err
        # click says how a command is called before it says what is wrong with the call
        assert not usage or usage[0].startswith("Usage: onnxq"), run.err
        assert all(word in message for word in words), message

    return call


MODEL_CASES = {
    "missing": ("missing.onnx", ("'missing.onnx'", "does not exist", "give the path")),
    "missing folder": ("nowhere/net.onnx", ("'nowhere/net.onnx'", "does not exist")),
    "folder": ("folder", ("'folder'", "is a folder", "give the path of an .onnx file")),
    "working directory": (".", ("'.'", "is a folder")),
    "empty name": ("", ("is a folder",)),
    "text": ("text.onnx", ("'text.onnx'", "not an ONNX model", "export or copy it again")),
    "random bytes": ("random.onnx", ("'random.onnx'", "not an ONNX model", "4096 bytes")),
    "empty file": ("empty.onnx", ("'empty.onnx'", "no complete graph", "export or copy")),
    "truncated": ("truncated.onnx", ("'truncated.onnx'", "truncated", "export or copy it again")),
    "custom domain": ("custom.onnx", ("'spell'", "acme::Enchant", "cut the model before")),
    "sparse": ("sparse.onnx", ("'sparse.onnx'", "sparse initializers (holes)", "dense")),
    "training info": ("training.onnx", ("'training.onnx'", "training_info", "for inference")),
}


@pytest.mark.parametrize("command", ["quantize", "inspect"])
@pytest.mark.parametrize(("model", "words"), MODEL_CASES.values(), ids=MODEL_CASES)
def test_unusable_model(
    refused: Callable[..., None], model: str, words: tuple[str, ...], command: str
) -> None:
    refused(3, words, model, command=command)


def test_old_opset_without_prepare(refused: Callable[..., None]) -> None:
    words = ("'old.onnx'", "opset 9", "13", "leave out --no-prepare")
    refused(3, words, "old.onnx", "--no-prepare")


def test_quantized_model(
    refused: Callable[..., None], shelf: Path, onnxq: Callable[..., object], tmp_path: Path
) -> None:
    once = tmp_path / "once.onnx"
    args = ("--recipe", shelf / "quick.toml", "--data", shelf / "good.npz")
    run = onnxq("quantize", shelf / "net.onnx", *args, "-o", once)
    assert run.code == 0, run.err
    words = (
        "once.onnx'",
        "already quantized by onnxq",
        "QuantizeLinear",
        "quantize the float model",
    )
    refused(3, words, once, "-o", "twice.onnx")


DATA_CASES = {
    "missing": ("missing.npz", ("missing.npz", "no such file or folder", "FILE.npz")),
    "wrong name": ("wrong_name.npz", ("no input 'imagge'", "did you mean 'image'?")),
    "wrong shape": ("wrong_shape.npz", ("'image'", "[N, 1, 4, 4]", "[1, 1, 4, 5]", "reshape")),
    "wrong type": ("wrong_dtype.npz", ("'image'", "float32", "float64", ".astype")),
    "NaN": ("nan.npz", ("nan.npz", "'image' holds NaN in sample 7", "leave out that sample")),
    "Inf": ("inf.npz", ("inf.npz", "'image' holds Inf in sample 7", "leave out that sample")),
    "no rows": ("no_rows.npz", ("no_rows.npz", "empty", "at least one sample")),
    "empty folder": ("no_files", ("no_files", "no .npz, .npy or input_0.pb", "FILE.npz")),
    "other file": ("notes.txt", ("notes.txt", "not a kind of data", "FILE.npz")),
    "no module": ("no_such_module:feeds", ("no_such_module", "cannot be imported")),
    "no function": ("bad_input_code:feed", ("'feed'", "did you mean 'feeds'?")),
    "raises": (
        "bad_input_code.py:broken",
        ("bad_input_code.py:broken", "ZeroDivisionError: no luck", "bad_input_code.py:9"),
    ),
    "no data set": ("dataset:digitz", ("'digitz'", "did you mean 'digits'?")),
}


@pytest.mark.parametrize(("data", "words"), DATA_CASES.values(), ids=DATA_CASES)
def test_unusable_data(refused: Callable[..., None], data: str, words: tuple[str, ...]) -> None:
    refused(3, words, "net.onnx", "--recipe", "quick.toml", "--data", data)


def test_missing_input(refused: Callable[..., None]) -> None:
    words = ("one_input.npz", "nothing for the model's input 'right'", "found 'left'")
    refused(3, words, "two_inputs.onnx", "--data", "one_input.npz")


USAGE_CASES = {
    "int8 without data": (("--precision", "int8"), ("needs samples", "--data", "int8-weights")),
    "pattern": (("--keep-float", "haed"), ("'haed'", "did you mean 'head'?", "onnxq inspect")),
    "operator": (("--keep-float-op", "Cnov"), ("'Cnov'", "did you mean 'Conv'?")),
    "metric": (("--metric", "top5"), ("'top5'", "'top1', 'module:function'")),
    "metric without module": (("--metric", ":half"), ("unknown metric ':half'", "'top1',")),
    "target": (("--target", "cpu-x87"), ("'cpu-x87'", "'cpu-x86'")),
    "option": (("--fast",), ("No such option '--fast'",)),
    "negative seed": (("--seed", "-1"), ("'--seed'", "-1")),
    "no samples": (("--samples", "0"), ("'--samples'", "0")),
    "no recipe": (("--recipe", "missing.toml"), ("'missing.toml'", "No such file")),
    "recipe of a folder": (("--recipe", "folder"), ("'folder'", "Is a directory")),
    "recipe's key": (
        ("--recipe", "unknown_key.toml"),
        ("'unknown_key.toml'", "'data.batchsize'", "did you mean 'batch_size'?"),
    ),
    "recipe's first key": (
        ("--recipe", "unknown_top_key.toml"),
        ("'unknown_top_key.toml'", "'precison'", "did you mean 'precision'?"),
    ),
    "recipe's type": (
        ("--recipe", "wrong_type.toml"),
        ("'wrong_type.toml'", "`int`", "`str`", "'data.batch_size'"),
    ),
    "recipe's value": (
        ("--recipe", "wrong_value.toml"),
        ("'wrong_value.toml'", "int3", "'precision'"),
    ),
    "recipe's target": (
        ("--recipe", "wrong_target.toml"),
        ("'cpu-x87'", "did you mean 'cpu-x86'?"),
    ),
    "no TOML": (("--recipe", "no_toml.toml"), ("'no_toml.toml'", "not TOML", "line 1")),
}


@pytest.mark.parametrize(("args", "words"), USAGE_CASES.values(), ids=USAGE_CASES)
def test_wrong_usage(
    refused: Callable[..., None], args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(2, words, "net.onnx", *args)


def test_no_model(refused: Callable[..., None]) -> None:
    refused(2, ("Missing argument 'MODEL'",))


def test_unknown_command(refused: Callable[..., None]) -> None:
    refused(2, ("'quantise'", "did you mean 'quantize'?"), "net.onnx", command="quantise")


METRIC_CASES = {
    "no module": ("no_such_module:f", ("no_such_module cannot be imported",)),
    "no function": ("bad_input_code:halve", ("'halve'", "did you mean 'half'?")),
    "raises": (
        "bad_input_code:fell",
        ("'bad_input_code:fell' failed", "LookupError: no such class", "bad_input_code.py:13"),
    ),
    "no number": ("bad_input_code:nan", ("'bad_input_code:nan' returned nan", "finite number")),
}


@pytest.mark.parametrize(("metric", "words"), METRIC_CASES.values(), ids=METRIC_CASES)
def test_failing_metric(refused: Callable[..., None], metric: str, words: tuple[str, ...]) -> None:
    args = ("net.onnx", "--recipe", "quick.toml", "--data", "good.npz", "--metric", metric)
    refused(3, words, *args)


class TestFoundRecipe:
    """A recipe that merely lies beside the model must not run code; one that is named may."""

    def test_data_refused(self, refused: Callable[..., None]) -> None:
        words = ("bad_input_code.py:feeds", "merely found", "--recipe or --data")
        refused(2, words, "found_data/net.onnx")

    def test_data_of_a_named_recipe(
        self, shelf: Path, onnxq: Callable[..., object], tmp_path: Path
    ) -> None:
        model, recipe = shelf / "found_data/net.onnx", shelf / "found_data/net.onnxq.toml"
        run = onnxq("quantize", model, "--recipe", recipe, "-o", tmp_path / "made.onnx", "--json")
        assert run.code == 0, run.err
        assert run.json["measured"]["samples"] == 4  # a fifth of 20 feeds is held back

    def test_metric_refused(self, refused: Callable[..., None]) -> None:
        words = ("'bad_input_code:half'", "merely found", "--recipe", "--metric")
        refused(2, words, "found_metric/net.onnx")

    def test_metric_refused_with_data_of_the_callers(self, refused: Callable[..., None]) -> None:
        refused(2, ("'bad_input_code:half'",), "found_metric/net.onnx", "--data", "good.npz")

    @pytest.mark.parametrize("named", ["recipe", "metric"])
    def test_metric_named_by_the_caller(
        self,
        shelf: Path,
        onnxq: Callable[..., object],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        named: str,
    ) -> None:
        monkeypatch.chdir(shelf)
        said = {
            "recipe": ("--recipe", "found_metric/net.onnxq.toml"),
            "metric": ("--metric", "bad_input_code:half"),
        }[named]
        output = tmp_path / "made.onnx"
        args = ("found_metric/net.onnx", "--data", "good.npz", "-o", output, "--json")
        run = onnxq("quantize", *args, *said)
        assert run.code == 0, run.err
        assert run.json["measured"]["metric"]["name"] == "bad_input_code:half"
        assert run.json["measured"]["metric"]["output"] == 0.5


def test_paths_start_where_they_were_said(
    shelf: Path, onnxq: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe's paths start from its folder, those of options from the working directory."""
    (tmp_path / "lab").mkdir()
    for folder, value in ((tmp_path, 1), (tmp_path / "lab", 2)):
        (folder / "fixed.py").write_text(f"def value(outputs, labels): return {value}\n")
    (tmp_path / "lab/lab.toml").write_text(f'{QUICK}metric = "fixed.py:value"\n')
    shutil.copy(shelf / "good.npz", tmp_path)
    monkeypatch.chdir(tmp_path)
    args = ("quantize", shelf / "net.onnx", "--recipe", "lab/lab.toml", "--data", "good.npz")
    args = (*args, "-o", "made.onnx", "--force", "--json")
    assert onnxq(*args).json["measured"]["metric"]["output"] == 2
    said = onnxq(*args, "--metric", "fixed.py:value")
    assert said.json["measured"]["metric"]["output"] == 1


OUTPUT_CASES = {
    "missing folder": ("nowhere/out.onnx", ("'nowhere/out.onnx'", "No such file", "-o")),
    "file as folder": ("notes.txt/out.onnx", ("'notes.txt/out.onnx'", "Not a directory", "-o")),
    "folder": ("folder", ("'folder' is a folder", "-o")),
    "exists": ("two_inputs.onnx", ("'two_inputs.onnx' exists already", "--force")),
    "the model": ("net.onnx", ("'net.onnx' is one of the files that are read", "-o")),
    "the model, said otherwise": (
        "./folder/../net.onnx",
        ("is one of the files that are read", "-o"),
    ),
}


@pytest.mark.parametrize(("output", "words"), OUTPUT_CASES.values(), ids=OUTPUT_CASES)
def test_unusable_output(refused: Callable[..., None], output: str, words: tuple[str, ...]) -> None:
    refused(3, words, "net.onnx", "-o", output)


def test_force_does_not_overwrite_the_model(refused: Callable[..., None]) -> None:
    refused(3, ("is one of the files that are read",), "net.onnx", "-o", "net.onnx", "--force")


def test_receipt_that_exists(
    refused: Callable[..., None], shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = shelf / "lonely.receipt.json"
    receipt.write_text("{}")
    refused(3, ("'lonely.receipt.json' exists already", "--force"), "net.onnx", "-o", "lonely.onnx")
    receipt.unlink()


def test_read_only_folder(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_args: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", deny)
    refused(3, ("cannot write 'out.onnx'", "Permission denied", "-o"), "net.onnx", "-o", "out.onnx")


@pytest.mark.parametrize("suffix", [".onnx", ".json"])
def test_folder_that_turns_read_only(
    refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Neither a model without its receipt nor a half-written file is left."""
    replace = Path.replace

    def deny(self: Path, target: Path) -> Path:
        if target.suffix == suffix:
            raise PermissionError(errno.EACCES, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", deny)
    args = ("net.onnx", "--recipe", "quick.toml", "-o", "out.onnx")
    refused(3, ("cannot write 'out.", "Permission denied", "-o"), *args)


SUBPROCESS_CASES = {
    "usage": (["quantize"], 2, "Missing argument"),
    "model": (["quantize", "missing.onnx"], 3, "does not exist"),
    "data": (["quantize", "net.onnx", "--data", "nan.npz"], 3, "holds NaN in sample 7"),
}


@pytest.mark.parametrize(("args", "code", "word"), SUBPROCESS_CASES.values(), ids=SUBPROCESS_CASES)
def test_in_a_process_of_its_own(
    shelf: Path, files_in: Callable[[Path], object], args: list[str], code: int, word: str
) -> None:
    before = files_in(shelf)
    done = subprocess.run(
        [sys.executable, "-B", "-m", "onnxq", *args],
        cwd=shelf,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert files_in(shelf) == before
