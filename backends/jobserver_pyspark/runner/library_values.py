"""Values of the libraries that jobs use with Spark, as plain Python values.

None of these libraries is imported here: a value of one says that the job has imported it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobserver_pyspark.protocol.failures import UnusableResult

__all__ = ["CONVERTERS"]

Simplify = Callable[[Any], Any]
Key = Callable[[Any], str]

_SHORT = 1000
"""Up to how many values an array is converted at once; longer ones are gone through in slices."""


def _from_numpy(value: Any, simplified: Simplify, key: Key) -> Any:
    numpy = sys.modules["numpy"]
    if getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):
        value = value.astype(str)  # nanoseconds would become bare integers
    if isinstance(value, numpy.ndarray) and value.ndim > 0:
        return _from_array(value)
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        plain = value.item()
        return str(value) if isinstance(plain, numpy.generic) else simplified(plain)
    return str(value)


def _from_array(value: Any) -> Any:
    if value.ndim > 1:
        return iter(value)
    if value.dtype.names:
        return (dict(zip(value.dtype.names, row.tolist(), strict=True)) for row in value)
    return _slices(value)


def _slices(array: Any) -> Iterator[Any]:
    """The elements of a long array as Python values, a slice at a time; a short array as a list."""
    if len(array) <= _SHORT:
        values: Any = array.tolist()
        return values  # type: ignore[no-any-return] # a list is as good as its iterator
    return itertools.chain.from_iterable(
        array[start : start + 4096].tolist() for start in range(0, len(array), 4096)
    )


def _from_pandas(value: Any, simplified: Simplify, key: Key) -> Any:
    pandas = sys.modules["pandas"]
    if isinstance(value, pandas.DataFrame):
        return _frame_records(value, key)
    if isinstance(value, (pandas.Series, pandas.Index)):
        return iter(value.tolist()) if len(value) > _SHORT else value.tolist()
    return None if value is pandas.NaT or value is pandas.NA else str(value)


def _frame_records(frame: Any, key: Key) -> Any:
    names = [key(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise UnusableResult(f"two columns of the table have one name: {', '.join(names)}")
    records = (dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None))
    return list(records) if frame.size <= _SHORT else records


def _from_arrow(value: Any, simplified: Simplify, key: Key) -> Any:
    arrow = sys.modules["pyarrow"]
    if isinstance(value, arrow.RecordBatch):
        value = arrow.Table.from_batches([value])
    if isinstance(value, arrow.Table):
        slices = (part for batch in value.to_batches() for part in _arrow_slices(batch, batch.num_rows))
        return _arrow_values(slices, value.num_rows * value.num_columns)
    if isinstance(value, (arrow.Array, arrow.ChunkedArray)):
        return _arrow_values(_arrow_slices(value, len(value)), len(value))
    return simplified(value.as_py()) if isinstance(value, arrow.Scalar) else str(value)


def _arrow_slices(value: Any, length: int) -> Iterator[Any]:
    return (value.slice(start, 4096) for start in range(0, length, 4096))


def _arrow_values(slices: Iterator[Any], size: int) -> Any:
    values = itertools.chain.from_iterable(part.to_pylist() for part in slices)
    return list(values) if size <= _SHORT else values


def _from_pyspark(value: Any, simplified: Simplify, key: Key) -> Any:
    for base in type(value).__mro__:
        if base.__name__ in ("DataFrame", "RDD"):
            raise UnusableResult(
                f"a job cannot return a distributed {base.__name__}: return its rows, for example with "
                "collect() or take(n), or write it somewhere and return the place"
            )
    if hasattr(value, "toArray") and type(value).__module__.endswith(".linalg"):
        return _from_numpy(value.toArray(), simplified, key)
    return str(value)


def _from_py4j(value: Any, simplified: Simplify, key: Key) -> Any:
    """Collections of the JVM behave as Python's; other objects of it have a text."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if type(value).__name__ in ("JavaList", "JavaArray", "JavaSet", "JavaIterator"):
        return list(value)
    return str(value)


CONVERTERS: dict[str, Callable[[Any, Simplify, Key], Any]] = {
    "numpy": _from_numpy,
    "pandas": _from_pandas,
    "pyarrow": _from_arrow,
    "pyspark": _from_pyspark,
    "py4j": _from_py4j,
}
