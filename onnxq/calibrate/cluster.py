"""A Dask cluster as an executor (extra ``cluster``)."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from onnxq.calibrate.run import Workers
from onnxq.errors import RuntimeFailure


@contextmanager
def connect(address: str, *, timeout: float = 10.0) -> Iterator[Workers]:
    """The workers of a Dask scheduler, such as ``tcp://host:8786``; onnxq is installed there too.

    Args:
        address: Where the scheduler listens.
        timeout: Seconds to wait for it.

    Raises:
        RuntimeFailure: Dask is not installed, or the scheduler cannot be reached or has no worker,
            or is lost later on, or its workers die.
    """
    try:
        distributed = importlib.import_module("distributed")
        comm = importlib.import_module("distributed.comm")
    except ImportError as error:
        raise RuntimeFailure(
            "--cluster needs Dask, which cannot be imported", "pip install 'onnxq[cluster]'"
        ) from error
    try:
        client = distributed.Client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise RuntimeFailure(
            f"the Dask scheduler at '{address}' cannot be reached: {error}",
            "start one with `dask scheduler`, and workers with `dask worker ADDRESS`",
        ) from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise RuntimeFailure(
                f"the Dask scheduler at '{address}' has no worker",
                f"start one with `dask worker {address}`",
            )
        try:
            with warnings.catch_warnings():
                # the model, which goes to each worker once
                warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
                yield Workers(threads, client.get_executor())
        except (distributed.KilledWorker, comm.CommClosedError) as error:
            raise RuntimeFailure(
                f"the workers of the Dask scheduler at '{address}' died or were lost: {error}",
                "run again: what was finished is kept",
            ) from error
