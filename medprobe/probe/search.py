"""Exact nearest neighbours, with equal ones in a fixed order and whole groups left out on request."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medprobe.errors import UsageError
from medprobe.probe.stopping import may_stop
from medprobe.probe.targets import Codes, Floats

Metric = Literal["cosine", "euclidean"]

_BLOCK = 1 << 22  # numbers held at once by a search
_CACHED = 1 << 17  # numbers that stay in a core's cache
_FEWEST = 256  # queries that are worth a thread
_SPARE = 8  # neighbours beyond the last one, so that a tie with it seldom needs another search
_UNIT_ROWS = 1024
# Queries and rows of one matrix product inside FAISS: its own sizes (4,096 and 1,024) leave the selection of the nearest
# behind the product, these do not.
_TILE = 1024, 2048


def neighbours(
    X_index: Floats,
    X_query: Floats,
    k: int,
    *,
    metric: Metric = "cosine",
    exclude: tuple[NDArray[Any], NDArray[Any]] | None = None,
    device: str = "cpu",
) -> tuple[Floats, Codes]:
    """Return the k nearest rows of the index for every query: similarity or distance, and row number, both (m, k).

    The search is exact. Rows that single precision cannot tell apart are compared again in double precision, and equal
    ones come in the order of their row numbers, so that neither the machine nor the number of queries in a call
    changes the result. float32 rows go through FAISS where it is at hand, float64 rows are searched in float64.

    Args:
        X_index: Rows to search, (n, d), finite.
        X_query: Queries, (m, d), finite.
        k: Neighbours of each query; more than n is taken as n.
        metric: ``"cosine"`` gives the similarity in [-1, 1], descending (a row of zeros has similarity 0 to all);
            ``"euclidean"`` gives the distance, ascending.
        exclude: Group codes of the index rows (n,) and of the queries (m,): no neighbour of a query is of its own
            group. Row numbers as groups give leave-one-out, patients leave-patient-out. A query with fewer than
            k rows allowed has its last places filled with index -1 and similarity -inf (distance inf).
        device: ``"cpu"``, or ``"cuda"`` or ``"cuda:1"`` for FAISS on a GPU, in float32.

    Raises:
        ValueError: k below 1, an unknown metric, an empty index, or shapes that do not fit.
        UsageError: A GPU is asked for, and FAISS has none.

    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")
    if X_index.ndim != 2 or X_query.ndim != 2 or X_index.shape[1] != X_query.shape[1] or len(X_index) == 0:
        raise ValueError(
            f"index {X_index.shape} and queries {X_query.shape} must be rows of one width, index not empty"
        )
    dtype = np.float64 if np.float64 in (X_index.dtype, X_query.dtype) else np.float32
    pairs = _Pairs(np.asarray(X_index, dtype), np.asarray(X_query, dtype), metric, device)
    k = min(k, len(X_index))
    spare = _SPARE
    if exclude is not None:
        groups, query_groups = _group_codes(exclude, len(X_index), len(X_query))
        spare += min(k, int(np.bincount(groups).max()))

    score = np.full((len(X_query), k), -np.inf, dtype)
    index = np.full((len(X_query), k), -1, np.int64)

    def fill(rows: Codes) -> Codes:
        """Fill these rows of the result, and return those that ``width`` neighbours do not settle."""
        found, where = pairs.search(rows, width)
        farthest = found[:, -1].copy()
        pairs.settle_ties(rows, found, where)
        if exclude is not None:
            _drop(groups[where] == query_groups[rows, None], found, where)
        score[rows], index[rows] = found[:, :k], where[:, :k]
        # A row not retrieved may still tie with the last one kept, or be needed in place of an excluded one.
        short = farthest >= found[:, k - 1] - pairs.tolerance[rows]
        return rows[short & (width < len(X_index))]

    pending, width = np.arange(len(X_query)), min(k + spare, len(X_index))
    while len(pending):
        may_stop()
        pending = np.concatenate(pairs.in_blocks(fill, pending, width))
        width = min(4 * width, len(X_index))
    if metric == "euclidean":
        score = np.sqrt(np.maximum(-2 * score, 0))
    return score, index


class _Pairs:
    """Index and query rows as an inner-product search, with double-precision scores of single pairs.

    The score is the cosine, or minus half the squared distance: on rows of unit length the two differ by a constant.
    """

    def __init__(self, index: Floats, queries: Floats, metric: Metric, device: str = "cpu") -> None:
        self.index, self.queries, self.metric = index, queries, metric
        self.epsilon = 4 * float(np.finfo(index.dtype).eps)
        if metric == "cosine":
            self.A, self.B = _unit(index), _unit(queries)
            self.tolerance = np.full(len(queries), self.epsilon, index.dtype)
        else:
            # Distances do not change with the origin, rounding errors do.
            centre = index.mean(axis=0, dtype=np.float64).astype(index.dtype)
            self.A, self.B = index - centre, queries - centre
            largest = float(np.einsum("ij,ij->i", self.A, self.A).max())
            self.tolerance = self.epsilon * (largest + np.einsum("ij,ij->i", self.B, self.B))
        self.gpu = None if device == "cpu" else _gpu(device)
        self.faiss = self.gpu is None and index.dtype == np.float32 and _faiss_is_usable()

    def search(self, rows: Codes, width: int) -> tuple[Floats, Codes]:
        """Return scores, descending, and index rows of the ``width`` nearest, ties in any order."""
        if self.gpu is not None:
            return _search_gpu(self.gpu, self.A, self.B[rows], width, self.metric)
        search = _search_faiss if self.faiss else _search_numpy
        return search(self.A, self.B[rows], width, self.metric)

    def in_blocks(self, function: Callable[[Codes], Codes], rows: Codes, width: int) -> list[Codes]:
        """Return what the function makes of each block of the rows."""
        step = max(1, _BLOCK // width)
        if not self.faiss:
            return [function(rows[start : start + step]) for start in range(0, len(rows), step)]
        import faiss

        # A block a thread is faster than all threads on one block: FAISS has them wait for each other at every tile.
        threads = faiss.omp_get_max_threads()
        step = min(step, max(_FEWEST, -(-len(rows) // (2 * threads))))
        blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
        with _tiles(faiss):
            if threads == 1 or len(blocks) == 1:
                return [function(block) for block in blocks]
            # OpenMP keeps this number for each calling thread: that of the caller stays as it is.
            with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(function, blocks))

    def settle_ties(self, rows: Codes, score: Floats, index: Codes) -> None:
        """Put neighbours whose scores differ by no more than rounding in their true order, in place."""
        close = score[:, :-1] - score[:, 1:] <= self.tolerance[rows, None]
        if not close.any():
            return
        tied = np.zeros(score.shape, bool)
        tied[:, :-1] |= close
        tied[:, 1:] |= close
        starts = np.ones(score.shape, bool)
        starts[:, 1:] = ~close
        run = np.cumsum(starts.ravel())[tied.ravel()]
        query, _ = np.nonzero(tied)
        candidate = index[tied]
        exact = self._exact(rows[query], candidate)
        order = np.lexsort((candidate, -exact, run))
        score[tied], index[tied] = exact[order], candidate[order]

    def _exact(self, query: Codes, candidate: Codes) -> NDArray[np.float64]:
        out = np.empty(len(query))
        step = max(1, _CACHED // self.index.shape[1])
        for start in range(0, len(query), step):
            q, c = query[start : start + step], candidate[start : start + step]
            a, b = self.index[c].astype(np.float64), self.queries[q].astype(np.float64)
            if self.metric == "cosine":
                norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
                out[start : start + step] = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1)
            else:
                out[start : start + step] = -0.5 * ((a - b) ** 2).sum(axis=1)
        return out


def _unit(X: Floats) -> Floats:
    out = np.empty_like(X)

    def fill(start: int) -> None:
        block = X[start : start + _UNIT_ROWS]
        norm: Floats = np.sqrt(np.einsum("ij,ij->i", block, block))
        norm[norm == 0] = 1
        np.divide(block, norm[:, None], out=out[start : start + _UNIT_ROWS])

    starts = range(0, len(X), _UNIT_ROWS)
    if len(starts) == 1:
        fill(0)
    else:
        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, starts))
    return out


def _group_codes(exclude: tuple[NDArray[Any], NDArray[Any]], n: int, m: int) -> tuple[Codes, Codes]:
    groups, query_groups = map(np.asarray, exclude)
    if groups.shape != (n,) or query_groups.shape != (m,):
        raise ValueError(f"exclude must hold groups of {n} index rows and {m} queries")
    _, codes = np.unique(np.concatenate([groups, query_groups]), return_inverse=True)
    return codes[:n], codes[n:]


def _drop(excluded: NDArray[np.bool_], score: Floats, index: Codes) -> None:
    """Move the excluded places to the end of each row and empty them, in place."""
    score[excluded], index[excluded] = -np.inf, -1
    order = np.argsort(excluded, axis=1, kind="stable")
    score[:] = np.take_along_axis(score, order, axis=1)
    index[:] = np.take_along_axis(index, order, axis=1)


def _faiss_is_usable() -> bool:
    # FAISS and torch each bring an OpenMP runtime; on macOS a process that runs both may hang or abort.
    if sys.platform == "darwin" and "torch" in sys.modules:
        return False
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def _gpu(device: str) -> int:
    """Return the number of a GPU that FAISS can use."""
    import faiss

    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise UsageError(f"device {device}: cpu, cuda or cuda:1")
    available = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if int(number or 0) >= available:
        raise UsageError(f"device {device}: FAISS sees {available} GPUs (faiss-gpu in place of faiss-cpu)")
    return int(number or 0)


def _search_gpu(gpu: int, A: Floats, B: Floats, width: int, metric: Metric) -> tuple[Floats, Codes]:
    import faiss

    kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    queries, rows = B.astype(np.float32, copy=False), A.astype(np.float32, copy=False)
    found, index = faiss.knn_gpu(faiss.StandardGpuResources(), queries, rows, width, metric=kind, device=gpu)
    score: Floats = found if metric == "cosine" else -0.5 * found
    return score.astype(A.dtype, copy=False), index


@contextmanager
def _tiles(faiss: Any) -> Iterator[None]:
    """Set the sizes of FAISS's matrix products, which belong to the whole process, and put them back."""
    sizes = faiss.cvar
    before = sizes.distance_compute_blas_query_bs, sizes.distance_compute_blas_database_bs
    sizes.distance_compute_blas_query_bs, sizes.distance_compute_blas_database_bs = _TILE
    try:
        yield
    finally:
        sizes.distance_compute_blas_query_bs, sizes.distance_compute_blas_database_bs = before


def _search_faiss(A: Floats, B: Floats, width: int, metric: Metric) -> tuple[Floats, Codes]:
    import faiss

    # The flat search without the index object, which would hold a second copy of the rows.
    if metric == "cosine":
        score, index = faiss.knn(B, A, width, metric=faiss.METRIC_INNER_PRODUCT)
        return score, index
    squared, index = faiss.knn(B, A, width, metric=faiss.METRIC_L2)
    return -0.5 * squared, index


def _search_numpy(A: Floats, B: Floats, width: int, metric: Metric) -> tuple[Floats, Codes]:
    score = np.empty((len(B), width), B.dtype)
    index = np.empty((len(B), width), np.int64)
    half = 0.5 * np.einsum("ij,ij->i", A, A) if metric == "euclidean" else None
    step = max(1, _BLOCK // len(A))
    for start in range(0, len(B), step):
        rows = slice(start, start + step)
        product = B[rows] @ A.T
        if half is not None:
            product -= half
            product -= 0.5 * np.einsum("ij,ij->i", B[rows], B[rows])[:, None]
        found = np.argpartition(product, len(A) - width, axis=1)[:, len(A) - width :]
        values = np.take_along_axis(product, found, axis=1)
        order = np.argsort(-values, axis=1)
        score[rows] = np.take_along_axis(values, order, axis=1)
        index[rows] = np.take_along_axis(found, order, axis=1)
    return score, index
