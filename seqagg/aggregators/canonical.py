"""An order of columns that does not depend on the one in which they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def order_of_columns(values: Array, has: Array | None = None) -> npt.NDArray[np.int64]:
    """Order columns by mean and spread; where these are equal, by what stands in them.

    They are where frames are certain and the classes equally frequent.

    Parameters
    ----------
    values : ndarray of shape (n_frames, n_columns)
    has : ndarray of shape (n_songs, n_columns), optional
        Which songs have the class of a column: tells columns of equal values apart.

    Returns
    -------
    ndarray of shape (n_columns,)
        Columns that are equal in all this, and so interchangeable, stay in their order.
    """
    n_columns = values.shape[1]
    # What is infinite is farther than float32 goes, and its square still a double.
    exact = np.nan_to_num(values.astype(np.float64), copy=False, posinf=1e39, neginf=-1e39)
    mean, spread = np.zeros((2, n_columns))
    if len(values):
        mean, spread = exact.mean(axis=0), exact.std(axis=0)
    _, rank, n_equal = np.unique(
        np.stack([mean, spread]), axis=1, return_inverse=True, return_counts=True
    )

    def key(k: int) -> tuple[int, bytes, bytes]:
        if n_equal[rank[k]] == 1:
            return int(rank[k]), b"", b""
        return int(rank[k]), values[:, k].tobytes(), b"" if has is None else has[:, k].tobytes()

    return np.array(sorted(range(n_columns), key=key), dtype=np.int64)
