"""Feeds from a user's Python function."""

import sys
import textwrap

import pytest

from onnxq.data import open_data
from onnxq.errors import DataError, UsageError
from onnxq.types import TensorSpec

X = TensorSpec("x", "float32", ("n", 2))
GOOD = """
    import numpy as np
    calls = []
    def feeds():
        calls.append(1)
        for index in range(5):
            yield {"x": np.full((1, 2), index, np.float32)}
"""


@pytest.fixture
def write(tmp_path):
    def write_module(code):
        path = tmp_path / "feeds.py"
        path.write_text(textwrap.dedent(code))
        return f"{path}:feeds"

    return write_module


def body(lines):
    """A function whose body is ``lines``."""
    return "import numpy as np\nx = np.ones((1, 2), np.float32)\ndef feeds():\n" + textwrap.indent(
        textwrap.dedent(lines), "    "
    )


def refusal(spec, **options):
    with pytest.raises(DataError) as caught:
        list(open_data(spec, [X], **options).batches(4))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_feed_is_a_batch(write):
    reader = open_data(write(GOOD), [X])
    for _ in range(2):
        batches = list(reader.batches(64))
        assert [b.feed["x"][0, 0] for b in batches] == [0, 1, 2, 3, 4]
        assert all(b.count == 1 and b.labels is None for b in batches)


def test_size_takes_one_pass_and_is_remembered(write):
    reader = open_data(write(GOOD), [X])
    calls = sys.modules[reader._source._function.__module__].calls
    assert not calls
    assert (reader.size, reader.has_labels, reader.size, len(reader.digest())) == (5, False, 5, 64)
    assert len(calls) == 1


def test_parts(write):
    reader = open_data(write(GOOD), [X])
    assert [b.feed["x"][0, 0] for b in reader.select([1, 3]).batches(1)] == [1, 3]
    calibration, test = reader.split(0.4)
    assert (calibration.size, test.size) == (3, 2)
    assert [b.feed["x"][0, 0] for b in test.batches(1)] == [3, 4]


def test_labels_inside_or_beside_the_feed(write):
    inside = open_data(write(body('yield {"x": x, "labels": [3]}')), [X])
    assert inside.has_labels
    assert next(inside.batches(1)).labels.tolist() == [3]
    beside = open_data(write(body('yield {"x": x}, 3')), [X])
    assert next(beside.batches(1)).labels.tolist() == [3]
    without = open_data(write(body('yield {"x": x}, None')), [X])
    assert next(without.batches(1)).labels is None


def test_a_list_of_feeds_will_do(write):
    assert open_data(write(body('return [{"x": x}] * 3')), [X]).size == 3


def test_digest_covers_the_values(write):
    first = open_data(write(GOOD), [X]).digest()
    assert open_data(write(GOOD), [X]).digest() == first
    assert open_data(write(GOOD.replace("range(5)", "range(4)")), [X]).digest() != first


def test_a_dotted_module_in_the_working_directory(tmp_path, monkeypatch):
    package = tmp_path / "calibration_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "data.py").write_text(textwrap.dedent(GOOD))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert open_data("calibration_package.data:feeds", [X]).size == 5
    assert sys.path == before


def test_a_file_relative_to_the_recipe_with_a_sibling(write, tmp_path):
    (tmp_path / "sibling_of_feeds.py").write_text("COUNT = 2\n")
    write(
        """
        import numpy as np
        from dataclasses import dataclass
        from sibling_of_feeds import COUNT
        @dataclass
        class Config:
            count: int = COUNT
        def feeds():
            return [{"x": np.ones((1, 2), np.float32)}] * Config().count
        """
    )
    assert open_data("feeds.py:feeds", [X], base=tmp_path).size == 2


def test_code_may_be_forbidden(write):
    spec = write("raise SystemExit('this must not run')")
    with pytest.raises(UsageError, match="may not name Python code") as caught:
        open_data(spec, [X], allow_code=False)
    assert caught.value.exit_code == 2
    assert "pass it with --recipe or --data" in str(caught.value)


def test_import_errors(write):
    message = refusal("no_such_module_here:feeds")
    assert "no_such_module_here cannot be imported: ModuleNotFoundError" in message
    assert "importlib" not in message
    assert "feeds.py cannot be imported: ZeroDivisionError: division by zero (feeds.py:2)" in (
        refusal(write("\n1 / 0\n"))
    )
    assert "cannot be imported: SyntaxError" in refusal(write("def"))


def test_no_such_file():
    assert "nowhere.py: no such Python file" in refusal("nowhere.py:feeds")


def test_no_such_function(write):
    assert "has no function 'feeds'; did you mean 'feed'?" in refusal(write("def feed(): ..."))
    assert "it defines no function" in refusal(write("feeds = 1"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            'yield {"x": x}\nraise RuntimeError("no\\nmore")',
            "failed at feed 1: RuntimeError: no mo",
        ),
        ("return []", "feeds yields no feed"),
        ("return 3", "failed: TypeError: 'int' object is not iterable"),
        ("yield 3", "feed 0: expected a dictionary of arrays or (feed, labels), found int"),
        ('yield {"x": [[1.0, 2.0]]}', "feed 0: input 'x' takes a NumPy array, found list"),
        ('yield {"x": x}\nyield {"y": x}', "feed 1: the model has no input 'y'"),
        ('yield {"x": x.astype(float)}', "feed 0: input 'x' takes float32, found float64"),
        ('yield {"x": x, "labels": [{}]}', "the labels are no array of numbers"),
        ('yield {"x": x}, [[1, 2], [3]]', "the labels are no array"),
        ('yield {"x": x}, 1\nyield {"x": x}', "feed 1: has none, but what came before has labels"),
        ('yield {"x": x * np.nan}', "feed 0: input 'x' holds NaN in sample 0"),
    ],
)
def test_feeds_that_cannot_be_used(write, lines, message):
    assert message in refusal(write(body(lines)))


def test_the_line_that_failed_is_named(write):
    message = refusal(write(body("yield {}['key']")))
    assert "KeyError: 'key' (feeds.py:4)" in message


def test_arguments_are_not_given(write):
    assert "missing 1 required positional argument" in refusal(write("def feeds(path): ..."))


def test_a_function_that_does_not_start_anew(write):
    code = """
        import numpy as np
        once = iter([{"x": np.ones((1, 2), np.float32)}] * 4)
        def feeds():
            return once
    """
    part = open_data(write(code), [X]).select([0, 3])
    with pytest.raises(DataError, match="yields no feed; every call must start anew"):
        list(part.batches(1))


def test_a_function_that_yields_less_the_second_time(write):
    code = """
        import numpy as np
        counts = [4, 2]
        def feeds():
            return [{"x": np.ones((1, 2), np.float32)}] * counts.pop(0)
    """
    part = open_data(write(code), [X]).select([0, 3])
    with pytest.raises(DataError, match="yields 2 feeds, fewer than in an earlier pass"):
        list(part.batches(1))
