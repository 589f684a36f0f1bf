"""Loading refuses what it cannot keep; saving writes whole files or none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError, OutputError
from onnxq.graph import (
    check_writable,
    copy_model,
    encoded_size,
    files_of,
    load,
    read_tensor,
    save,
    serialize,
    sha256,
    write_bytes,
)
from onnxq.runtime import Session

REAL = Path(__file__).resolve().parents[2] / "models" / "digits_cnn.onnx"
CHAIN = """g (float[1,4] x) => (float[1,4] y)
<float[4] w = {1, 2, 3, 4}> { t = Mul (x, w) y = Relu (t) }"""


@pytest.fixture
def proto(build) -> onnx.ModelProto:
    return onnx.load_model_from_string(serialize(build(CHAIN)))


def write(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.onnx' does not exist"):
        load(tmp_path / "nothing.onnx")


def test_folder_is_named(tmp_path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"no model at all\n", b"{}", b"\0" * 64, bytes(range(256))]
)
def test_file_that_is_no_model_is_refused(tmp_path, content) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not an ONNX model"):
        load(path)


def test_truncated_model_is_refused_or_whole(tmp_path) -> None:
    """A cut is an error wherever it falls; protobuf has no end mark, so a cut between the fields
    behind the graph cannot be seen, and then the graph must be whole."""
    whole = REAL.read_bytes()
    nodes = load(REAL).view().nodes
    path, refused = tmp_path / "model.onnx", 0
    cuts = sorted(
        {*range(0, 200), *range(0, len(whole), 997), *range(len(whole) - 200, len(whole))}
    )
    for cut in cuts:
        path.write_bytes(whole[:cut])
        try:
            loaded = load(path)
        except ModelError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert loaded.view().nodes == nodes
    assert refused > len(cuts) / 2


def test_sparse_initializer_is_refused(proto, tmp_path) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "at")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(ModelError, match=r"sparse initializers \(thin\)"):
        load(write(proto, tmp_path))


def test_sparse_initializer_in_a_subgraph_is_refused(build, tmp_path) -> None:
    model = build("""g (bool c, float[1,4] x) => (float[1,4] y) { y = If (c) <
        then_branch = t () => (float[1,4] a) { a = Relu (x) },
        else_branch = e () => (float[1,4] b) { b = Neg (x) } > }""")
    proto = onnx.load_model_from_string(serialize(model))
    values = numpy_helper.from_array(np.ones(1, np.float32), "deep")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "at")
    branch = proto.graph.node[0].attribute[0].g
    branch.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(ModelError, match=r"sparse initializers \(deep\)"):
        load(write(proto, tmp_path))


def test_training_info_is_refused(proto, tmp_path) -> None:
    proto.training_info.add()
    with pytest.raises(ModelError, match="training_info"):
        load(write(proto, tmp_path))


def test_nodes_out_of_order_are_sorted(proto, tmp_path) -> None:
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [n.op for n in load(write(proto, tmp_path)).view().nodes] == ["Mul", "Relu"]


def test_cycle_is_refused(proto, tmp_path) -> None:
    proto.graph.node[0].input[1] = "y"
    with pytest.raises(ModelError, match="inconsistent graph"):
        load(write(proto, tmp_path))


def test_output_that_no_node_makes_is_refused(proto, tmp_path) -> None:
    proto.graph.output[0].name = "z"
    with pytest.raises(ModelError, match="no node of graph 'g' makes its output 'z'"):
        load(write(proto, tmp_path))


def test_output_that_is_listed_twice_is_refused(proto, tmp_path) -> None:
    proto.graph.output.append(proto.graph.output[0])
    with pytest.raises(ModelError, match="lists its output 'y' twice"):
        load(write(proto, tmp_path))


def test_input_that_nothing_makes_is_refused(proto, tmp_path, caplog) -> None:
    proto.graph.node[1].input[0] = "nothing"
    proto.graph.node[1].name = "relu"
    with pytest.raises(ModelError, match=r"node 'relu' \(Relu\) reads 'nothing', which nothing"):
        load(write(proto, tmp_path))
    assert not caplog.records, "onnx_ir told it too"


def test_branch_that_returns_an_outer_tensor_is_refused(tmp_path) -> None:
    """ONNX Runtime refuses it too, and onnx_ir cannot copy it."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[1,4] x) => (float[1,4] y) {
            t = Relu (x)
            y = If (c) <then_branch = a () => (float[1,4] p) { p = Neg (t) },
                        else_branch = b () => (float[1,4] t) { }> }""")
    with pytest.raises(ModelError, match="no node of graph 'b' makes its output 't'"):
        load(write(proto, tmp_path))


def test_negative_size_is_an_unknown_one(proto, tmp_path) -> None:
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    view = load(write(proto, tmp_path)).view()
    assert [spec.shape for spec in (*view.inputs, *view.outputs)] == [(None, 4), (None, 4)]


# --- external data ---------------------------------------------------------------------------


def with_external(proto: onnx.ModelProto, location: str, length: int = 16) -> onnx.ModelProto:
    tensor = proto.graph.initializer[0]
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return proto


def test_external_data_are_read(proto, tmp_path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    model = load(write(with_external(proto, "w.bin"), tmp_path))
    np.testing.assert_array_equal(model.view().constant("w"), [0, 1, 2, 3])


@pytest.mark.parametrize("absolute", [False, True])
def test_external_data_outside_the_folder_are_refused(proto, tmp_path, absolute) -> None:
    outside, folder = tmp_path / "secret.bin", tmp_path / "inside"
    outside.write_bytes(bytes(16))
    folder.mkdir()
    location = str(outside) if absolute else "../secret.bin"
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(write(with_external(proto, location), folder))


def test_external_data_behind_a_link_that_leaves_the_folder_are_refused(proto, tmp_path) -> None:
    outside, folder = tmp_path / "secret.bin", tmp_path / "inside"
    outside.write_bytes(bytes(16))
    folder.mkdir()
    (folder / "w.bin").symlink_to(outside)
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(write(with_external(proto, "w.bin"), folder))


def test_missing_external_data_are_named(proto, tmp_path) -> None:
    with pytest.raises(ModelError, match=r"external data of 'w' .* are missing: .*w\.bin"):
        load(write(with_external(proto, "w.bin"), tmp_path))


def test_truncated_external_data_are_refused(proto, tmp_path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(15))
    with pytest.raises(ModelError, match="are truncated"):
        load(write(with_external(proto, "w.bin"), tmp_path))


@pytest.fixture
def large(proto, tmp_path) -> Path:
    """A model whose weight of 4 KiB lies in ``w.bin``; under 256 bytes it would move inside."""
    values = np.arange(1024, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(values.tobytes())
    proto.graph.initializer[0].dims[:] = [1024]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        value.type.tensor_type.shape.dim[-1].dim_value = 1024
    return write(with_external(proto, "w.bin", length=4096), tmp_path)


@pytest.fixture
def small_protobuf(monkeypatch) -> None:
    """As if a protobuf file could hold no more than 1000 bytes."""
    monkeypatch.setattr("onnxq.graph.model.ONE_PROTOBUF", 1000)


def test_external_data_move_into_the_model_when_they_fit(large, tmp_path) -> None:
    model, again = load(large), tmp_path / "again"
    assert encoded_size(model) > 4096 > large.stat().st_size
    again.mkdir()
    save(model, again / "model.onnx")
    assert [p.name for p in again.iterdir()] == ["model.onnx"]
    assert (again / "model.onnx").stat().st_size == encoded_size(model)
    np.testing.assert_array_equal(load(again / "model.onnx").view().constant("w"), np.arange(1024))
    assert model.has_external_data, "the model was changed"


@pytest.mark.usefixtures("small_protobuf")
def test_data_beyond_one_file_are_external_and_memory_mapped(large, tmp_path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    save(load(large), again / "model.onnx")
    assert sorted(p.name for p in again.iterdir()) == ["model.onnx", "model.onnx.data"]
    loaded = load(again / "model.onnx")
    tensor = loaded.ir.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(loaded.view().constant("w"), np.arange(1024))
    assert isinstance(values := loaded.view().constant("w"), np.memmap)
    assert Path(str(values.filename)) == again / "model.onnx.data"
    assert tensor.raw is None, "it is mapped for as long as the model lives"


def test_small_external_data_move_into_the_model(proto, tmp_path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    model = load(write(with_external(proto, "w.bin"), tmp_path))
    again = tmp_path / "again"
    again.mkdir()
    save(model, again / "model.onnx")
    assert [p.name for p in again.iterdir()] == ["model.onnx"]
    np.testing.assert_array_equal(load(again / "model.onnx").view().constant("w"), [0, 1, 2, 3])


@pytest.mark.usefixtures("small_protobuf")
def test_model_can_be_saved_over_its_own_external_data(large, tmp_path) -> None:
    path = tmp_path / "out.onnx"
    save(load(large), path)
    for _ in range(2):
        save(load(path), path)
        np.testing.assert_array_equal(load(path).view().constant("w"), np.arange(1024))


def test_data_of_the_model_that_stood_there_are_removed(large, tmp_path, monkeypatch) -> None:
    path, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    with monkeypatch.context() as patch:
        patch.setattr("onnxq.graph.model.ONE_PROTOBUF", 1000)
        save(load(large), path)
    assert data.is_file()
    save(load(large), path)
    assert not data.exists()
    data.write_text("somebody else's")
    save(load(large), path)
    assert data.read_text() == "somebody else's"


def test_data_that_are_read_at_once_may_go(large, tmp_path) -> None:
    model = load(large, in_memory=True)
    (tmp_path / "w.bin").unlink()
    assert not model.has_external_data
    np.testing.assert_array_equal(model.view().constant("w"), np.arange(1024))


# --- external data in attributes -------------------------------------------------------------


@pytest.fixture(params=["graph", "branch", "function"])
def constant(request, tmp_path) -> Path:
    """A Constant, somewhere in the model, whose value of 4 KiB lies in ``w.bin``."""
    text = {
        "graph": "{ w = Constant () y = Add (x, w) }",
        "branch": """{ y = If (c) <then_branch = t () => (float[1024] a)
            { w = Constant () a = Add (x, w) }, else_branch = e () => (float[1024] b)
            { b = Neg (x) }> }""",
        "function": """{ y = mine.shift (x) } <domain: "mine", opset_import: ["" : 17]>
            shift (a) => (b) { w = Constant () b = Add (a, w) }""",
    }[request.param]
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "mine" : 1]> '
        f"g (bool c, float[1024] x) => (float[1024] y) {text}"
    )
    inside = {
        "graph": lambda: proto.graph.node[0],
        "branch": lambda: proto.graph.node[0].attribute[0].g.node[0],
        "function": lambda: proto.functions[0].node[0],
    }[request.param]()
    value = TensorProto(dims=[1024], data_type=1, data_location=TensorProto.EXTERNAL)
    for key, entry in (("location", "w.bin"), ("offset", "0"), ("length", "4096")):
        value.external_data.add(key=key, value=entry)
    inside.attribute.append(helper.make_attribute("value", value))
    (tmp_path / "w.bin").write_bytes(np.arange(1024, dtype=np.float32).tobytes())
    return write(proto, tmp_path)


def test_external_attribute_is_the_models(constant, tmp_path) -> None:
    model = load(constant)
    assert model.has_external_data
    assert files_of(model) == [constant, tmp_path / "w.bin"]
    assert model.weight_bytes == 4096
    feed = {"c": np.array(True), "x": np.ones(1024, np.float32)}
    (tmp_path / "again").mkdir()
    save(model, tmp_path / "again" / "model.onnx")
    for one in (model, load(tmp_path / "again" / "model.onnx")):
        np.testing.assert_array_equal(Session(one).run(feed)["y"], np.arange(1024) + 1)


def test_external_attribute_must_be_there_and_inside(constant, tmp_path) -> None:
    data = (tmp_path / "w.bin").rename(tmp_path / "moved.bin")
    with pytest.raises(ModelError, match="are missing"):
        load(constant)
    outside = tmp_path.parent / f"{tmp_path.name}.bin"
    data.rename(outside)
    (tmp_path / "w.bin").symlink_to(outside)
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(constant)


# --- saving ----------------------------------------------------------------------------------


def test_saved_model_is_the_same(build, tmp_path) -> None:
    model = build(CHAIN)
    save(model, tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert serialize(load(tmp_path / "out.onnx")) == serialize(model)


@pytest.mark.usefixtures("small_protobuf")
@pytest.mark.parametrize("external", [False, True])
def test_failed_rename_leaves_nothing(build, large, tmp_path, monkeypatch, external) -> None:
    model = load(large) if external else build(CHAIN)
    out = tmp_path / "out"
    out.mkdir()

    def refuse(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        save(model, out / "out.onnx")
    assert list(out.iterdir()) == []


def test_failed_rename_keeps_the_old_model(build, tmp_path, monkeypatch) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        save(build(CHAIN), path)
    assert path.read_bytes() == b"old"


@pytest.mark.usefixtures("small_protobuf")
def test_model_is_never_beside_wrong_data(large, tmp_path, monkeypatch) -> None:
    """A kill between the two renames leaves the new data without any model."""
    model = load(large)
    out = tmp_path / "out.onnx"
    save(model, out)

    def refuse(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(KeyboardInterrupt):
        save(model, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx.data", "w.bin"]


def test_read_only_folder_is_told(build, tmp_path, monkeypatch) -> None:
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    with pytest.raises(OutputError, match=r"cannot write '.*out\.onnx': Permission denied"):
        save(build(CHAIN), tmp_path / "out.onnx")


def test_missing_folder_is_told(build, tmp_path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        save(build(CHAIN), tmp_path / "nowhere" / "out.onnx")


def test_unchanged_model_is_copied_byte_for_byte(build, tmp_path) -> None:
    copy_model(load(REAL), tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == REAL.read_bytes()
    copy_model(build(CHAIN), tmp_path / "made.onnx")
    assert serialize(load(tmp_path / "made.onnx")) == serialize(build(CHAIN))


def test_bytes_are_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    target = tmp_path / "receipt.json"
    write_bytes(b"new", target)
    assert [p.name for p in tmp_path.iterdir()] == ["receipt.json"]

    def refuse(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        write_bytes(b"newer", target)
    assert [p.name for p in tmp_path.iterdir()] == ["receipt.json"]
    assert target.read_bytes() == b"new"


def test_output_is_checked_before_the_work(tmp_path) -> None:
    source, taken = tmp_path / "model.onnx", tmp_path / "taken.onnx"
    source.write_bytes(b"")
    taken.write_bytes(b"")
    with pytest.raises(OutputError, match="is one of the files that are read"):
        check_writable(tmp_path / "." / "model.onnx", [source], force=True)
    with pytest.raises(OutputError, match="exists already"):
        check_writable(taken, [source], force=False)
    with pytest.raises(OutputError, match="No such file"):
        check_writable(tmp_path / "nowhere" / "out.onnx", [source], force=False)
    check_writable(taken, [source], force=True)
    check_writable(tmp_path / "free.onnx", [source], force=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "taken.onnx"]


# --- hashes and single tensors ---------------------------------------------------------------


def test_hash_covers_external_data(proto, tmp_path) -> None:
    data = tmp_path / "w.bin"
    data.write_bytes(bytes(16))
    path = write(with_external(proto, "w.bin"), tmp_path)
    before = sha256(load(path))
    assert sha256(load(path)) == before
    data.write_bytes(bytes(15) + b"\1")
    assert sha256(load(path)) != before


def test_hash_of_a_model_in_memory_is_that_of_its_bytes(build) -> None:
    model = build(CHAIN)
    assert sha256(model) == hashlib.sha256(serialize(model)).hexdigest()
    assert sha256(model) != sha256(build(CHAIN.replace("1, 2, 3, 4", "1, 2, 3, 5")))


def test_tensor_file_is_read(tmp_path) -> None:
    path = tmp_path / "input_0.pb"
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    path.write_bytes(numpy_helper.from_array(values).SerializeToString())
    np.testing.assert_array_equal(read_tensor(path), values)


@pytest.mark.parametrize("content", [b"", b"no tensor", b"\xff" * 9])
def test_file_that_is_no_tensor_is_refused(tmp_path, content) -> None:
    path = tmp_path / "input_0.pb"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not an ONNX tensor"):
        read_tensor(path)
