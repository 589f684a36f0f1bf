"""Edge cases: models, data, names and folders as they are met in practice.

Either the output is right, or one line says what is wrong and what to do; then nothing is written
and nothing is lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from onnxruntime.quantization import quantize_dynamic

import onnxq
from onnxq import errors


def newest_opset() -> int:
    """The newest that the installed ONNX Runtime loads: it refuses those that are not released."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    for version in range(onnx.defs.onnx_opset_version(), 7, -1):
        imports = [helper.make_opsetid("", version)]
        content = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
        with contextlib.suppress(Fail):
            ort.InferenceSession(content, providers=["CPUExecutionProvider"])
            return version
    raise AssertionError("this ONNX Runtime loads nothing")


@pytest.fixture
def make(quick, opened, tmp_path) -> Callable[..., Any]:
    """Quantize into this test's folder: the file that comes out."""

    def run(source: Path, data: Any = None, precision: str = "int8", **settings: Any) -> Any:
        output = tmp_path / "made.onnx"
        recipe = quick(precision=precision, **settings)
        onnxq.quantize(source, data=data, recipe=recipe, output=output)
        return opened(output)

    return run


@pytest.fixture
def saved(build, tmp_path) -> Callable[[str], Path]:
    """A model from text, in a file."""

    def write(text: str) -> Path:
        onnxq.save(build(text), tmp_path / "net.onnx")
        return tmp_path / "net.onnx"

    return write


@pytest.fixture
def changed(shipped, tmp_path) -> Callable[..., Path]:
    """The digits model, changed by a function of its protobuf."""

    def write(change: Callable[[onnx.ModelProto], Any], name: str = "net.onnx") -> Path:
        proto = onnx.load(shipped / "digits_cnn.onnx")
        onnx.save(change(proto) or proto, tmp_path / name)
        return tmp_path / name

    return write


def feeds(shapes: dict[str, tuple[int, ...]], count: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.RandomState(0)
    return [
        {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


class TestData:
    @pytest.mark.parametrize("data", [np.empty((0, 1, 8, 8), np.float32), [], iter(())])
    def test_no_samples_are_refused(self, data, make, shipped, tmp_path) -> None:
        with pytest.raises(errors.DataError, match=r"empty|no feed|at least one"):
            make(shipped / "digits_cnn.onnx", data)
        assert list(tmp_path.iterdir()) == []

    def test_one_sample_is_enough(self, make, shipped, digits, digits_test) -> None:
        assert make(shipped / "digits_cnn.onnx", digits[:1]).top1(digits_test) > 0.9


class TestShapes:
    TEXT = """net (float[N,2,H,W] x) => (float[N,4,h,w] y)
      <float[8,2,3,3] w = seeded, float[4,8,3,3] v = seeded> {
      [first] a = Conv <pads = [1,1,1,1]> (x, w) [relu] b = Relu (a)
      [second] y = Conv <strides = [2,2]> (b, v) }"""

    def test_any_size_runs_whatever_was_calibrated_with(self, saved, make, opened, sqnr) -> None:
        source = saved(self.TEXT)
        made = make(source, feeds({"x": (2, 2, 9, 12)}, 64))
        for shape in ((2, 2, 9, 12), (1, 2, 31, 17), (5, 2, 6, 6)):
            (feed,) = feeds({"x": shape}, 1)
            signal_, found = (one.run(feed)["y"] for one in (opened(source), made))
            assert found.shape == signal_.shape
            assert sqnr(signal_, found) > 25  # random weights and values

    def test_sizes_may_differ_from_sample_to_sample(self, saved, make) -> None:
        data = [feeds({"x": (1, 2, size, 40 - size)}, 1)[0] for size in range(8, 24)]
        assert make(saved(self.TEXT), data).kernels["QLinearConv"] == 2

    def test_a_fixed_batch_stays(self, changed, make, digits) -> None:
        def fix(proto: onnx.ModelProto) -> None:
            for value in (*proto.graph.input, *proto.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = 4

        made = make(changed(fix), digits)
        assert [shape[0] for _, _, shape in made.signature] == [4, 4]


class TestGraphs:
    def test_nodes_without_names_get_one_each(self, changed, make, digits, digits_test) -> None:
        def forget(proto: onnx.ModelProto) -> None:
            for node in proto.graph.node:
                node.name = ""

        made = make(changed(forget), digits)
        names = [node.name for node in made.proto.graph.node]
        assert all(names)
        assert len(set(names)) == len(names)
        assert made.top1(digits_test) > 0.98

    def test_stored_weights_that_are_inputs_too_are_inputs_no_longer(
        self, changed, make, shipped, opened, digits, digits_test
    ) -> None:
        """As exporters wrote them until 2019; nothing could be folded otherwise."""

        def declare(proto: onnx.ModelProto) -> None:
            for tensor in proto.graph.initializer:
                value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                proto.graph.input.append(value)

        made = make(changed(declare), digits)
        assert [value.name for value in made.proto.graph.input] == ["image"]
        assert made.top1(digits_test) > 0.98

    def test_a_weight_that_two_layers_share_is_stored_once(self, saved, make) -> None:
        made = make(
            saved("""net (float[N,32] x) => (float[N,32] y) <float[32,32] w = seeded> {
              [first] a = MatMul (x, w) [relu] b = Relu (a) [second] y = MatMul (b, w) }"""),
            feeds({"x": (4, 32)}),
        )
        stored = [c.dtype for c in made.constants.values() if c.size == 32 * 32]
        assert stored == [np.int8]
        assert made.weight_types == {"first": "INT8", "second": "INT8"}

    def test_several_inputs_one_of_integers(self, saved, make, opened, sqnr) -> None:
        """Tokens and features, as recommenders take them."""
        source = saved("""net (int64[N,3] ids, float[N,16] x) => (float[N,8] y)
          <float[50,16] table = seeded, float[64,32] w = seeded, float[32,8] v = seeded,
           int64[2] flat = {-1, 48}> {
          [rows] r = Gather (table, ids) [flatten] f = Reshape (r, flat)
          [join] c = Concat <axis = 1> (f, x) [first] a = MatMul (c, w) [relu] b = Relu (a)
          [second] y = MatMul (b, v) }""")
        rng = np.random.RandomState(1)
        data = [feed | {"ids": rng.randint(0, 50, (4, 3))} for feed in feeds({"x": (4, 16)})]
        made = make(source, data)
        assert {made.weight_types[name] for name in ("first", "second")} == {"INT8"}
        signal_, found = (
            np.concatenate([one.run(feed)["y"] for feed in data]) for one in (opened(source), made)
        )
        assert sqnr(signal_, found) > 30

    @pytest.mark.parametrize("name", ["if", "loop", "scan"])
    def test_bodies_read_weights_that_are_stored_as_int8(
        self, name, saved, make, opened, sqnr
    ) -> None:
        source = saved(BODIES[name])
        made = make(source, precision="int8-weights")
        assert max(c.size for c in made.constants.values() if c.dtype == np.int8) == 64 * 64
        feed = {
            spec.name: np.array(True)
            if spec.type == "tensor(bool)"
            else feeds({"x": tuple(spec.shape)}, 1)[0]["x"]
            for spec in opened(source).session.get_inputs()
        }
        assert sqnr(opened(source).run(feed)["y"], made.run(feed)["y"]) > 30

    def test_an_output_that_is_a_constant_stays(self, saved, make) -> None:
        made = make(
            saved("""net (float[N,32] x) => (float[N,32] y, float[2] version)
              <float[32,32] w = seeded, float[2] v = {1.5, -2}> {
              [layer] y = MatMul (x, w) [say] version = Identity (v) }"""),
            feeds({"x": (4, 32)}),
        )
        assert made.run(feeds({"x": (1, 32)}, 1)[0])["version"].tolist() == [1.5, -2]

    def test_an_output_that_is_used_inside_too(self, saved, make, opened, sqnr) -> None:
        source = saved("""net (float[N,32] x) => (float[N,32] a, float[N,8] y)
          <float[32,32] w = seeded, float[32,8] v = seeded> {
          [first] a = MatMul (x, w) [second] y = MatMul (a, v) }""")
        made = make(source, feeds({"x": (4, 32)}))
        (feed,) = feeds({"x": (64, 32)}, 1)
        wanted, found = opened(source).run(feed), made.run(feed)
        assert all(sqnr(wanted[name], found[name]) > 30 for name in ("a", "y"))


BODIES = {
    "if": """net (bool c, float[2,64] x) => (float[2,64] y) <float[64,64] w = seeded> {
      [choose] y = If (c) <
        then_branch = a () => (float[2,64] p) { p = MatMul (x, w) },
        else_branch = b () => (float[2,64] q) { q = Neg (x) }> }""",
    "loop": """net (float[2,64] x) => (float[2,64] y)
      <float[64,64] w = seeded, int64 n = {3}, bool go = {1}> {
      [loop] y = Loop (n, go, x) <body = b (int64 k, bool more, float[2,64] h)
        => (bool again, float[2,64] after) {
          again = Identity (more) m = MatMul (h, w) after = Tanh (m) }> }""",
    "scan": """net (float[3,2,64] x) => (float[3,2,64] y) <float[64,64] w = seeded> {
      [scan] y = Scan <num_scan_inputs = 1, body = s (float[2,64] row) => (float[2,64] made) {
          made = MatMul (row, w) }> (x) }""",
}


class TestVersions:
    @pytest.mark.parametrize("opset", [7, newest_opset()])
    def test_the_oldest_and_the_newest_opset(
        self, opset, changed, make, digits, digits_test
    ) -> None:
        """Conv, Relu, MaxPool, Flatten and Gemm mean the same in all of them."""

        def stamp(proto: onnx.ModelProto) -> None:
            proto.opset_import[0].version = opset
            for node in proto.graph.node:  # opset 10 brought the others, at their defaults here
                known = [a for a in node.attribute if a.name not in ("ceil_mode", "dilations")]
                kept = known if node.op_type == "MaxPool" else list(node.attribute)
                del node.attribute[:]
                node.attribute.extend(kept)

        made = make(changed(stamp), digits)
        assert made.top1(digits_test) > 0.98
        assert made.proto.opset_import[0].version >= 13

    def test_what_another_quantizer_made_is_refused(self, shipped, make, digits, tmp_path) -> None:
        theirs = tmp_path / "theirs.onnx"
        quantize_dynamic(
            shipped / "digits_cnn.onnx", theirs, op_types_to_quantize=["Gemm", "MatMul"]
        )
        with pytest.raises(errors.AlreadyQuantizedError, match="quantize the float model"):
            make(theirs, digits)
        assert not (tmp_path / "made.onnx").exists()

    def test_what_onnxq_made_is_refused(self, shipped, make, quick, digits, tmp_path) -> None:
        first, again = make(shipped / "digits_cnn.onnx", digits), tmp_path / "again.onnx"
        with pytest.raises(errors.AlreadyQuantizedError, match="already quantized by onnxq"):
            onnxq.quantize(first.path, data=digits, recipe=quick(), output=again)
        assert not again.exists()


class TestFiles:
    def test_external_data_move_into_the_output(
        self, shipped, opened, make, digits, digits_test, tmp_path
    ) -> None:
        folder = tmp_path / "export"
        folder.mkdir()
        onnx.save(
            onnx.load(shipped / "digits_cnn.onnx"), folder / "net.onnx",
            save_as_external_data=True, location="net.weights", size_threshold=0,
        )  # fmt: skip
        made = make(folder / "net.onnx", digits)
        shutil.rmtree(folder)
        assert made.top1(digits_test) > 0.98

    @pytest.mark.parametrize("name", ["my model.onnx", "modèle – 数字.onnx", "a'b\"c;$(x).onnx"])
    def test_any_name_of_a_file(self, name, shipped, quick_file, process, tmp_path) -> None:
        folder = tmp_path / "a folder"
        folder.mkdir()
        shutil.copy(shipped / "digits_cnn.onnx", folder / name)
        run = process("quantize", folder / name, "--recipe", quick_file)
        assert run.code == 0, run.err
        stem = name.removesuffix(".onnx")
        assert {path.name for path in folder.iterdir()} == {
            name, f"{stem}.int8-weights.onnx", f"{stem}.int8-weights.receipt.json",
        }  # fmt: skip

    def test_names_inside_are_kept_and_no_terminal_obeys_them(
        self, changed, cli, opened, quick_file, digits, tmp_path
    ) -> None:
        evil = "bild ü/\x1b[31m\x07\n::error::x"

        def rename(proto: onnx.ModelProto) -> None:
            for node in proto.graph.node:
                node.name = f"{evil} {node.name}"
                node.input[:] = [evil if name == "image" else name for name in node.input]
            proto.graph.input[0].name = evil

        source, output = changed(rename), tmp_path / "made.onnx"
        np.save(tmp_path / "samples.npy", digits)
        said = ("--recipe", quick_file, "--data", tmp_path / "samples.npy", "--precision", "int8")
        for command in (("inspect", source), ("quantize", source, *said, "-o", output)):
            run = cli(*command)
            assert run.code == 0, run.err
            assert not set(run.out + run.err) & {"\x1b", "\x07"}
            assert not any(line.startswith("::") for line in run.out.splitlines())
        made = opened(output)
        assert made.signature == opened(source).signature
        kept = {node.name for node in made.proto.graph.node}
        assert {node.name for node in opened(source).proto.graph.node} <= kept

    def test_a_link_to_a_model_stays_a_link(self, bare, cli, quick_file, tmp_path) -> None:
        store, work = tmp_path / "store", tmp_path / "work"
        store.mkdir()
        work.mkdir()
        target = bare("digits_cnn").rename(store / "digits.onnx")
        content = target.read_bytes()
        (work / "net.onnx").symlink_to(target)
        assert cli("quantize", work / "net.onnx", "--recipe", quick_file).code == 0
        assert (work / "net.onnx").is_symlink()
        assert [path.name for path in store.iterdir()] == ["digits.onnx"]
        assert target.read_bytes() == content
        assert (work / "net.int8-weights.onnx").is_file()

    def test_a_link_cannot_be_the_way_to_overwrite_the_source(
        self, bare, cli, quick_file, tmp_path
    ) -> None:
        source = bare("digits_cnn")
        content = source.read_bytes()
        (tmp_path / "out.onnx").symlink_to(source)
        said = ("--recipe", quick_file, "-o", tmp_path / "out.onnx", "--force")
        run = cli("quantize", source, *said)
        assert (run.code, source.read_bytes()) == (3, content)
        assert "one of the files that are read" in run.err

    @pytest.mark.skipif(sys.platform == "win32", reason="folders have no such modes there")
    def test_a_folder_that_may_not_be_written_to(self, bare, tmp_path) -> None:
        """Root may write anywhere, unless it gives up that right."""
        bare("digits_cnn")
        command = [sys.executable, "-m", "onnxq", "quantize", "digits_cnn.onnx"]
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                pytest.skip("this is root, and there is no setpriv to give up its rights")
            command = ["setpriv", "--bounding-set", "-dac_override", *command]
        tmp_path.chmod(0o555)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        tmp_path.chmod(0o755)
        assert done.returncode == 3, done.stderr
        assert done.stderr.startswith("error: cannot write 'digits_cnn.int8-weights.onnx'")
        assert [path.name for path in tmp_path.iterdir()] == ["digits_cnn.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_kill_while_writing_leaves_the_old_model_or_the_new_one(
    shipped, opened, quick_file, tmp_path
) -> None:
    """Never half of one, and never a receipt beside another model."""
    source, output = shipped / "cifar10_resnet.onnx", tmp_path / "made.onnx"
    receipt = tmp_path / "made.receipt.json"
    command = [sys.executable, "-m", "onnxq", "quantize", str(source), "-o", str(output)]
    command += ["--recipe", str(quick_file), "--force", "--quiet", "--precision"]
    subprocess.run([*command, "fp16"], check=True)
    old = output.read_bytes()
    subprocess.run([*command, "int8-weights"], check=True)
    new = output.read_bytes()
    subprocess.run([*command, "fp16"], check=True)
    known = set(tmp_path.iterdir())
    with subprocess.Popen([*command, "int8-weights"]) as running:
        while set(tmp_path.iterdir()) == known and running.poll() is None:
            time.sleep(0.0005)  # until the first byte of anything new
        running.send_signal(signal.SIGKILL)
    assert running.returncode in (-signal.SIGKILL, 0)
    assert output.read_bytes() in (old, new)
    assert opened(output).weight_types
    if receipt.is_file():
        sha = hashlib.sha256(output.read_bytes()).hexdigest()
        assert sha in receipt.read_text(encoding="utf-8")
    subprocess.run([*command, "int8-weights"], check=True)
    assert output.read_bytes() == new


def test_a_loop_of_others(real, make, opened) -> None:
    """Letters to sounds: the decoder is the body of a Loop, and writes as many as it likes."""
    model = real("g2p_gru_loop")
    made, source = make(model.path, precision="int8-weights"), opened(model.path)
    assert max(c.size for c in made.constants.values() if c.dtype == np.int8) > 100_000
    wanted, found = (
        np.concatenate([one.run(feed)["phonemes"].ravel() for feed in model.test])
        for one in (source, made)
    )
    # one sound that is chosen otherwise changes those that follow
    assert (wanted == found).mean() > 0.9
