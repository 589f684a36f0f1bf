"""The reader: samples in a fixed order, in batches, in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from onnxq.data.npz import Rows
from onnxq.data.preprocess import Preprocess
from onnxq.data.sources import Raw, Source
from onnxq.data.validate import check_feed, check_labels, check_names
from onnxq.errors import DataError, UsageError
from onnxq.types import Array, Feed, TensorSpec


@dataclass(frozen=True, eq=False)
class Batch:
    """What one call of a session takes.

    Attributes:
        feed: Arrays by input name, checked against the model.
        labels: What the outputs should say, one entry per sample; None when not known.
        count: Number of samples: rows of an array source; for whole feeds the number of
            labels, 1 without labels.
        numbers: Which samples of the source these are: one number per row, or one for a whole
            feed.
    """

    feed: Feed
    labels: Array | None
    count: int
    numbers: Rows


class Reader:
    """Reads samples lazily; memory holds one batch, however many samples there are.

    Readers are values: taking a part gives another reader of the same source.

    Args:
        spec: What the user named; for messages.
        source: Where samples come from.
        inputs: The model's inputs.
        preprocess: What is done to the arrays of float32 inputs that are not optional.
        rows: Ascending indices of the samples to read; all when None.
        optional: Names of inputs that a feed may leave out.
        shared: Set by `split`.

    Attributes:
        spec: What the user named.
        shared: True when `split` could not hold anything back, so that both of its readers
            read the same samples.
    """

    def __init__(
        self,
        spec: str,
        source: Source,
        inputs: Sequence[TensorSpec],
        preprocess: Preprocess | None = None,
        rows: Rows | None = None,
        *,
        optional: Collection[str] = (),
        shared: bool = False,
    ) -> None:
        self.spec = spec
        self.shared = shared
        self._optional = optional
        self._source, self._inputs, self._preprocess = source, inputs, preprocess
        self._rows = rows

    @property
    def size(self) -> int:
        """Number of samples (of files or feeds where each holds a whole feed)."""
        return self._source.size if self._rows is None else len(self._rows)

    @property
    def has_labels(self) -> bool:
        """Whether batches carry labels."""
        return self._source.has_labels

    @property
    def fixed_batch(self) -> int:
        """Samples come in batches of exactly this many; 1 when the model takes any number."""
        return self._source.unit

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Read all samples once, in order.

        Args:
            batch_size: Samples per batch; the last may hold fewer. Sources of whole feeds and
                models with a fixed batch have their own.

        Raises:
            DataError: A feed does not fit the model or cannot be read.
        """
        if batch_size < 1:
            raise UsageError(f"a batch of {batch_size} samples", "use 1 or more")
        return self._batches(batch_size)

    def _batches(self, batch_size: int) -> Iterator[Batch]:
        labelled: bool | None = None
        for raw in self._source.read(self._rows, batch_size):
            batch = self._checked(raw)
            if labelled is None:
                labelled = batch.labels is not None
            if labelled != (batch.labels is not None):
                has, had = ("labels", "none") if batch.labels is not None else ("none", "labels")
                raise DataError(
                    f"{raw.where}: has {has}, but what came before has {had}",
                    "label all of the feeds or none",
                )
            yield batch

    def _checked(self, raw: Raw) -> Batch:
        check_names(raw.feed, self._inputs, raw.where, self._optional)
        feed = dict(raw.feed)
        if self._preprocess is not None:
            for spec in self._inputs:
                if spec.dtype == "float32" and spec.name not in self._optional:
                    where = f"{raw.where}: input '{spec.name}'"
                    feed[spec.name] = self._preprocess.apply(feed[spec.name], where)
        check_feed(feed, self._inputs, raw.where, raw.samples, self._optional)
        if raw.labels is None:
            return Batch(feed, None, len(raw.samples), raw.samples)
        check_labels(feed, raw.labels, raw.where)
        return Batch(feed, raw.labels, len(raw.labels), raw.samples)

    def select(self, indices: Iterable[int]) -> Reader:
        """The samples at ``indices`` of this reader, in this reader's order, each once."""
        chosen = sorted(set(indices))
        if not chosen or chosen[0] < 0 or chosen[-1] >= self.size:
            which = f"samples {chosen[0]} to {chosen[-1]}" if chosen else "no sample"
            raise UsageError(
                f"{self.spec}: cannot select {which}", f"it has samples 0 to {self.size - 1}"
            )
        rows = np.array(chosen, np.int64)
        return self._part(rows if self._rows is None else self._rows[rows])

    def take(self, n: int) -> Reader:
        """The first ``n`` samples; all when there are no more."""
        self._check_count(n)
        return self if n >= self.size else self.select(range(n))

    def sample(self, n: int, seed: int) -> Reader:
        """Samples drawn at random without replacement, kept in order; all when no more."""
        self._check_count(n)
        if n >= self.size:
            return self
        drawn = np.random.default_rng(seed).choice(self.size, n, replace=False)
        return self.select(drawn.tolist())

    def split(self, holdout: float = 0.2) -> tuple[Reader, Reader]:
        """Hold back the tail for testing.

        Args:
            holdout: Share of the samples to hold back, between 0 and 1. At least one sample is
                held back and one is left, or one batch each when the model fixes its batch.

        Returns:
            A reader to calibrate with and one to test with. When there is only one sample (or
            one fixed batch), both read it and are marked `shared`.
        """
        if not 0 < holdout < 1:
            raise UsageError(f"cannot hold back {holdout} of the data", "use a share like 0.2")
        unit = self._source.unit
        units = self.size // unit
        if units < 2:
            return self._part(self._rows, shared=True), self._part(self._rows, shared=True)
        cut = self.size - unit * min(max(1, round(units * holdout)), units - 1)
        return self.select(range(cut)), self.select(range(cut, self.size))

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the raw content and of which samples are read.

        For one ``.npz`` or ``.npy`` file read whole it is the SHA-256 of the file.
        """
        whole = self._source.digest()
        if self._rows is None:
            return whole
        return hashlib.sha256(f"{whole} {self._rows.tolist()}".encode()).hexdigest()

    def identity(self) -> str:
        """The digest, and how the content is preprocessed: the same, the same feeds."""
        if self._preprocess is None:
            return self.digest()
        settings = msgspec.json.encode(self._preprocess)
        return hashlib.sha256(self.digest().encode() + settings).hexdigest()

    def _part(self, rows: Rows | None, *, shared: bool = False) -> Reader:
        return Reader(
            self.spec,
            self._source,
            self._inputs,
            self._preprocess,
            rows,
            optional=self._optional,
            shared=shared,
        )

    def _check_count(self, n: int) -> None:
        if n < 1:
            raise UsageError(f"{self.spec}: cannot read {n} samples", "use 1 or more")
