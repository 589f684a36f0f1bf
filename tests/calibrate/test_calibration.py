"""``Calibration``: merging, files, and reading the same observations by another observer."""

from __future__ import annotations

import base64
import json
import zlib
from functools import reduce

import msgspec
import numpy as np
import pytest

from onnxq.calibrate import OBSERVERS, Calibration, ObserverSpec, decode, encode
from onnxq.calibrate.calibration import _Saved, joined_spans
from onnxq.calibrate.state import to_json
from onnxq.errors import DataError, UsageError
from onnxq.types import Grid

EACH_OBSERVER = pytest.mark.parametrize("observer", OBSERVERS)
NET = "g (float[N,50] x) => (float[N,50] y) { t = Relu (x) y = Neg (t) }"
TAPS = ("x", "t", "y")


def normal(samples: int, seed: int, size: int = 50) -> np.ndarray:
    values = np.random.RandomState(seed).standard_normal((samples, size)) * (1 + seed)
    return values.astype(np.float32)


@pytest.fixture
def shards(build, observe):
    """Five calibrations on data of their own, of other sizes."""

    def run(observer="mse", **options) -> list[Calibration]:
        data = [normal(samples, seed) for seed, samples in enumerate((30, 7, 1, 64, 90))]
        return [observe(build(NET), {"x": x}, TAPS, observer, **options) for x in data]

    return run


@EACH_OBSERVER
def test_order_and_grouping_of_merging_do_not_matter(shards, observer) -> None:
    parts = shards(observer, keep_histogram=True)
    rng = np.random.RandomState(0)
    expected = encode(reduce(Calibration.merge, parts))
    for _ in range(12):
        group = [parts[i] for i in rng.permutation(len(parts))]
        while len(group) > 1:  # join two at random
            one = group.pop(rng.randint(len(group)))
            other = group.pop(rng.randint(len(group)))
            group.insert(rng.randint(len(group) + 1), one.merge(other))
        assert encode(group[0]) == expected
    assert group[0].samples == 192


@EACH_OBSERVER
def test_merging_leaves_its_parts_alone(shards, observer) -> None:
    parts = shards(observer)
    before = [encode(part) for part in parts]
    merged = reduce(Calibration.merge, parts)
    merged.ranges(Grid())
    assert [encode(part) for part in parts] == before


@pytest.mark.parametrize("observer", ["minmax", "mse", "percentile", "entropy", "sigma", "trimmed"])
def test_merged_is_as_seen_together(build, observe, observer) -> None:
    """But for moving averages, whose streams count one after the other."""
    one, other = normal(40, 0), normal(25, 3)
    whole = observe(build(NET), {"x": np.concatenate([one, other])}, TAPS, observer)
    parts = [observe(build(NET), {"x": x}, TAPS, observer) for x in (one, other)]
    assert reduce(Calibration.merge, parts).ranges(Grid()) == whole.ranges(Grid())


def test_merging_the_same_samples_twice_is_refused(build, observe, shards) -> None:
    one, other, *_ = shards()
    with pytest.raises(UsageError, match="both saw samples 0 to 29 of the same data") as caught:
        one.merge(other).merge(one)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_together_is_refused(build, observe) -> None:
    def make(x=0, observer="mse", taps=TAPS, exact=False, **options) -> Calibration:
        return observe(build(NET), {"x": normal(9, x)}, taps, observer, exact=exact, **options)

    one = make()
    others = {
        "models": Calibration(
            "another", one.observer, one.exact, make(1).tensors, {"a": ((0, 9),)}, {"a": 9}
        ),
        "observers": make(1, observer="minmax"),
        "settings of --exact": make(1, exact=True),
        "tensors": make(1, taps=("x", "t")),
    }
    others["observers "] = make(1, observer="percentile", options={"percentile": 99.0})
    for what, other in others.items():
        for pair in ((one, other), (other, one)):
            with pytest.raises(UsageError) as caught:
                pair[0].merge(pair[1])
            message = f"cannot merge calibrations of different {what.strip()}"
            assert str(caught.value) == message


def test_other_options_are_another_observer(build, observe) -> None:
    made = [
        observe(
            build(NET), {"x": normal(9, seed)}, TAPS, "percentile", options={"percentile": share}
        )
        for seed, share in enumerate((99.0, 99.9))
    ]
    with pytest.raises(UsageError, match="different observers"):
        made[0].merge(made[1])


@pytest.mark.parametrize(
    ("spans", "joined"),
    [
        ([], ()),
        ([(0, 4)], ((0, 4),)),
        ([(4, 8), (0, 4)], ((0, 8),)),
        ([(8, 9), (0, 4)], ((0, 4), (8, 9))),
        ([(4, 6), (8, 9), (6, 8), (0, 1)], ((0, 1), (4, 9))),
    ],
)
def test_joined_spans(spans, joined) -> None:
    assert joined_spans(spans) == joined


@EACH_OBSERVER
@pytest.mark.parametrize("keep_histogram", [False, True])
def test_a_file_holds_everything(shards, observer, keep_histogram) -> None:
    made = reduce(Calibration.merge, shards(observer, keep_histogram=keep_histogram))
    written = encode(made)
    again = decode(written, "file")
    assert encode(again) == written
    for grid in (Grid(), Grid(4, symmetric=True)):
        assert again.ranges(grid) == made.ranges(grid)
    assert (again.samples, again.seen, again.sizes) == (made.samples, made.seen, made.sizes)


def test_facts_are_for_people(shards) -> None:
    made = shards()[0]
    written = encode(made, {"t": {"anything": [1]}})
    assert json.loads(written)["ranges"] == {"t": {"anything": [1]}}
    assert encode(decode(written, "file")) == encode(made)
    assert decode(written.replace(b"anything", b"whatever"), "file").samples == 30


def test_an_observer_that_is_code_must_be_expected(tmp_path, build, observe) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    made = observe(build(NET), {"x": normal(9, 0)}, TAPS, f"{file}:Mine")
    written = encode(made)
    assert encode(decode(written, "file", code=f"{file}:Mine")) == written
    for expected in ("", f"{file}:Yours"):
        with pytest.raises(UsageError, match="which is Python code; to run it, add --calibrator"):
            decode(written, "file", code=expected)


MINE = """
class Mine:
    def __init__(self):
        self.sums = {}
    def observe(self, tap):
        for low in tap.lows.tolist():
            key = str(round(low))
            self.sums[key] = self.sums.get(key, 0) + 1
    def merge(self, other):
        for key, count in other.sums.items():
            self.sums[key] = self.sums.get(key, 0) + count
    def range(self, grid):
        return min(map(float, self.sums)), 10.0
"""


def test_a_users_observer_merges_as_onnxqs_do(tmp_path, build, observe) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    made = [observe(build(NET), {"x": normal(40, i)}, TAPS, f"{file}:Mine") for i in range(3)]
    one = made[0].merge(made[1]).merge(made[2])
    other = made[2].merge(made[0].merge(made[1]))
    assert encode(one) == encode(other)
    assert encode(decode(encode(one), "file", code=f"{file}:Mine")) == encode(one)


# Damage.


def signed(tree: dict) -> bytes:
    """A file with a right checksum, whatever it says: not damaged, but made up."""
    saved = msgspec.convert(tree, _Saved)
    return msgspec.json.encode(msgspec.structs.replace(saved, sha256=saved.digest()))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"PK\x03\x04", b"{}", b'{"schema": 1}',
     b"[" * 100_000, b'{"schema": "1"}', b'{"schema": 1, "ranges": ' + b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_file_of_ranges(content) -> None:
    with pytest.raises(DataError, match="'somewhere' holds no ranges of onnxq") as caught:
        decode(content, "somewhere")
    assert "\n" not in str(caught.value)


def test_another_schema_is_named(shards) -> None:
    tree = json.loads(encode(shards("minmax")[0])) | {"schema": 7, "novelty": 1}
    with pytest.raises(DataError, match="'f' has schema 7, this version reads 1"):
        decode(json.dumps(tree).encode(), "f")


@EACH_OBSERVER
def test_random_damage_is_found(shards, observer) -> None:
    """Bytes that are changed, lost, doubled or cut off: an error, or the very same content."""
    written = encode(shards(observer)[1], {"x": {"min": 1.5}})
    content = encode(decode(written, "f"))
    rng = np.random.RandomState(0)
    found = 0
    for kind in range(250):
        damaged = bytearray(written)
        at = rng.randint(len(damaged))
        length = 1 + rng.randint(40)
        if kind % 5 == 0:
            damaged[at] ^= 1 << rng.randint(8)
        elif kind % 5 == 1:
            damaged[at] = rng.choice(list(b'0123456789-.eE{}[]",:truefalsn'))
        elif kind % 5 == 2:
            del damaged[at:]
        elif kind % 5 == 3:
            del damaged[at : at + length]
        else:
            damaged[at:at] = damaged[at : at + length]
        try:
            again = decode(bytes(damaged), "f")
        except DataError as error:
            assert "\n" not in str(error)
            found += 1
        else:
            assert encode(again) == content
    assert found > 150  # what is not: white space, and the facts for people


REPLACEMENTS = [None, True, 3, -1, 1.5, "x", "inf", [], [1], {}, {"array": 1}, {"float": "x"},
                {"dict": {"a": 1}}, 10**30, {"a": {"b": [1, 2]}}, {"data": {"0/0": [1, 2]}},
                {"data": {"x/y": [1.0, 1.0, 1.0, 1.0]}}]  # fmt: skip


@EACH_OBSERVER
def test_made_up_files_are_data_errors(shards, observer) -> None:
    """Any part of a file replaced by something else, and the checksum made anew."""
    written = encode(shards(observer)[1])
    rng = np.random.RandomState(0)
    refused = 0
    for _ in range(300):
        tree = json.loads(written)
        place, key = tree, "states" if rng.rand() < 0.8 else rng.choice(list(tree))
        while isinstance(place[key], dict) and place[key] and rng.rand() < 0.85:
            place = place[key]
            key = list(place)[rng.randint(len(place))]
        place[key] = REPLACEMENTS[rng.randint(len(REPLACEMENTS))]
        try:
            content = signed(tree)
        except msgspec.ValidationError:
            content = json.dumps(tree).encode()
        try:
            decode(content, "f")
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("observer", "name"), "mso"),
        (("observer", "options"), {"percentile": 99}),
        (("states", "t"), {}),
        (("states", "t", "body"), None),
        (("states", "t", "body", "observer", "min"), "1"),
        (("states", "t", "body", "observer", "min"), 1),
        (("states", "t", "body", "observer", "more"), 1),
        (("states", "t", "tail", "finite"), "true"),
        (("states", "t", "body", "observer", "histogram"), {"counts": 1}),
        (("states", "t", "body", "observer", "histogram", "counts"), {"array": 3}),
        (("states", "t", "body", "observer", "histogram", "top"), "127"),
    ],
)
def test_wrong_parts_are_data_errors(shards, where, value) -> None:
    tree = json.loads(encode(shards()[1]))
    place = tree
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(DataError, match="'f' holds a damaged state"):
        decode(signed(tree), "f")


def test_an_array_of_a_file_does_not_expand_beyond_its_shape(shards) -> None:
    tree = json.loads(encode(shards()[1]))
    array = tree["states"]["t"]["body"]["observer"]["histogram"]["counts"]["array"]
    array["zlib"] = base64.b64encode(zlib.compress(bytes(30_000_000))).decode()
    with pytest.raises(DataError, match="array of the state is damaged"):
        decode(signed(tree), "f")


@pytest.mark.parametrize(
    "spans", [[[3, 3]], [[5, 2]], [[-4, 2]], [[0, 2], [2, 4]], [[4, 5], [0, 1]]]
)
def test_wrong_spans_are_damage(shards, spans) -> None:
    tree = json.loads(encode(shards("minmax")[0]))
    (stream,) = tree["seen"]
    tree["seen"][stream] = spans
    with pytest.raises(DataError, match="is damaged"):
        decode(signed(tree), "f")


# Another observer.

COUNTING = ["mse", "percentile", "entropy", "sigma", "trimmed"]


@pytest.mark.parametrize("wanted", [*COUNTING, "minmax"])
@pytest.mark.parametrize("made", [*COUNTING, "minmax"])
def test_the_same_observations_by_another_observer(build, observe, made, wanted) -> None:
    def make(observer: str) -> Calibration:
        x = {"x": normal(80, 0)}
        return observe(build(NET), x, TAPS, observer, keep_histogram=True)

    source = make(made)
    before = encode(source)
    read = source.with_observer(ObserverSpec(wanted))
    for grid in (Grid(), Grid(symmetric=True)):
        assert read.ranges(grid) == make(wanted).ranges(grid)
    read.merge(Calibration.empty("the model", read.observer, TAPS, exact=False))
    assert encode(source) == before
    assert decode(encode(read), "f").ranges(Grid()) == read.ranges(Grid())


@EACH_OBSERVER
def test_the_same_observer_reads_it_whether_or_not_a_histogram_was_kept(shards, observer) -> None:
    for kept in (True, False):
        made = shards(observer, keep_histogram=kept)[0]
        read = made.with_observer(ObserverSpec(observer, keep_histogram=not kept))
        assert read.ranges(Grid()) == made.ranges(Grid())


@pytest.mark.parametrize(
    ("made", "wanted"),
    [("minmax", "mse"), ("moving-average", "mse"), ("mse", "moving-average")],
)
def test_what_was_not_observed_cannot_be_read(shards, made, wanted) -> None:
    with pytest.raises(UsageError, match=f"'{made}' cannot be read by '{wanted}'") as caught:
        shards(made)[0].with_observer(ObserverSpec(wanted))
    assert "\n" not in str(caught.value)


def test_the_ends_can_be_read_of_any_observer(shards) -> None:
    made = shards("moving-average")[0]
    read = made.with_observer(ObserverSpec("minmax")).ranges(Grid()).tensors
    for tensor, range_ in made.ranges(Grid()).tensors.items():
        assert (read[tensor].lo, read[tensor].hi) == (range_.min, range_.max)


def test_empty() -> None:
    empty = Calibration.empty("m", ObserverSpec("mse"), TAPS, exact=False)
    assert empty.samples == 0
    assert empty.ranges(Grid()).tensors == {}
    assert encode(decode(encode(empty), "f")) == encode(empty)
    assert encode(empty.merge(empty)) == encode(empty)


def _state(tree: dict) -> dict:
    return tree["states"]["t"]["body"]["observer"]


def _counts(tree: dict, value: int) -> None:
    _state(tree)["histogram"]["counts"] = to_json(np.full((2, 16384), value, np.int64))


@pytest.mark.parametrize(
    ("observer", "change"),
    [
        ("mse", lambda tree: _counts(tree, -7)),
        ("mse", lambda tree: _counts(tree, 2**62)),
        ("mse", lambda tree: _counts(tree, 0) or _state(tree)["histogram"].update(zeros=0)),
        *[("mse", lambda tree, top=top: _state(tree)["histogram"].update(top=top))
          for top in (-1, 255, 10**6, 2**70)],
        *[("mse", lambda tree, zeros=zeros: _state(tree)["histogram"].update(zeros=zeros))
          for zeros in (-5, 2**63, 2**2000)],
        *[(name, lambda tree, low=low: _state(tree).update(min=low))
          for name in ("mse", "minmax", "moving-average")
          for low in (9.0, -1e39, {"float": "nan"}, {"float": "-inf"})],
        *[("moving-average", lambda tree, runs=runs: _state(tree).update(streams=runs))
          for runs in ({}, {"a": {}}, {"a": 5}, {"a": {"0/0": [1.0, 0.0, 0.0, 0.0]}},
                       {"a": {"0/0": [1.0, 1e-320, 1e300, 1e300]}}, {"a": {"0/0": [1.0, 1.0]}},
                       {"a": {"0/0": ["1", 1.0, 1.0, 1.0]}}, {"a": {"0": [1.0, 1.0, 1.0, 1.0]}},
                       {"a": {"0/0": [1.0, {"float": "nan"}, 1.0, 1.0]}},
                       {"a": {"0/-3": [1.0, 1.0, 1.0, 1.0]}},
                       # 2 to that power would not fit into any memory
                       {"a": {"999999999999/0": [1.0, 1.0, 1.0, 1.0]}})],
    ],
)  # fmt: skip
def test_a_state_that_no_data_leave_is_refused(build, observe, observer, change) -> None:
    x = normal(100, 0)
    tree = json.loads(encode(observe(build(NET), {"x": x}, TAPS, observer)))
    assert decode(signed(tree), "f").samples == 100
    change(tree)
    with pytest.raises(DataError, match="'f' holds a damaged state"):
        decode(signed(tree), "f")
