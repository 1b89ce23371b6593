"""Values of the libraries that jobs use with Spark, as plain Python values, and the error for unusable ones.

This module imports none of these libraries: if a value belongs to one, the job has imported it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Simplify = Callable[[Any], Any]
Key = Callable[[Any], str]


RESULT_REFUSED = "ResultRefused"
"""The class of the error of a job whose result was refused, in all launchers and languages."""


class UnusableResult(Exception):
    """A result that has no JSON form; the message is for the job's author."""

    __module__ = "jobserver_core.results"  # which exports it: users see it as the class of a job's error


_SHORT = 1000
"""The maximum number of array values to convert at once; longer arrays are converted in slices."""


# -- numpy -----------------------------------------------------------------------------------------------


def _from_numpy(value: Any, simplified: Simplify, key: Key) -> Any:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.matrix):  # whose rows are matrices again, without end
        value = numpy.asarray(value)
    if isinstance(value, numpy.ndarray) and value.ndim > 0:
        return _from_array(value)
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        return _from_numpy_scalar(value, numpy, simplified)
    return str(value)


def _from_array(value: Any) -> Any:
    if value.ndim > 1 or value.dtype.names or value.dtype.kind in "mM":
        return iter(value)  # times would become bare integers of nanoseconds
    return _slices(value)


def _from_numpy_scalar(value: Any, numpy: Any, simplified: Simplify) -> Any:
    if value.dtype.names:
        return {name: value[name] for name in value.dtype.names}
    if numpy.ma.is_masked(value):
        return None
    if value.dtype.kind in "mM":
        return None if numpy.isnat(value) else str(value)
    plain = value.item()
    return str(value) if isinstance(plain, numpy.generic) else simplified(plain)


def _slices(values: Any) -> Any:
    """The elements of a long array as Python values, a slice at a time; a short array as a list."""
    if len(values) <= _SHORT:
        return values.tolist()
    return itertools.chain.from_iterable(
        values[start : start + 4096].tolist() for start in range(0, len(values), 4096)
    )


# -- pandas ----------------------------------------------------------------------------------------------


def _from_pandas(value: Any, simplified: Simplify, key: Key) -> Any:
    pandas = sys.modules["pandas"]
    if isinstance(value, pandas.DataFrame):
        return _frame_records(value, key)
    if isinstance(value, pandas.Series):
        return _from_series(value, key)
    if isinstance(value, (pandas.Index, pandas.api.extensions.ExtensionArray)):
        return _slices(value)
    return None if value is pandas.NaT or value is pandas.NA else str(value)


def _from_series(series: Any, key: Key) -> Any:
    if not _is_meaningful(series.index):
        return _slices(series)
    if series.index.nlevels == 1 and series.index.is_unique:
        return dict(zip(series.index.tolist(), series.tolist(), strict=True))
    return _frame_records(series.to_frame("value" if series.name is None else series.name), key)


def _is_meaningful(index: Any) -> bool:
    """Return whether an index is more than the positions that its rows have, or once had."""
    positions = index.nlevels == 1 and index.name is None and index.inferred_type == "integer"
    return not positions and len(index) > 0


def _frame_records(frame: Any, key: Key) -> Any:
    indexed = _is_meaningful(frame.index)
    labels = _index_names(frame.index) if indexed else []
    names = [key(name) for name in (*labels, *frame.columns)]
    if len(set(names)) < len(names):
        raise UnusableResult(f"two columns of the table have the same name: {', '.join(names)}")
    rows = frame.itertuples(index=indexed, name=None)
    if indexed and frame.index.nlevels > 1:
        rows = ((*row[0], *row[1:]) for row in rows)
    records = (dict(zip(names, row, strict=True)) for row in rows)
    return list(records) if frame.size <= _SHORT else records


def _index_names(index: Any) -> list[Any]:
    unnamed = ["index"] if index.nlevels == 1 else [f"level_{level}" for level in range(index.nlevels)]
    return [default if name is None else name for name, default in zip(index.names, unnamed, strict=True)]


# -- Arrow -----------------------------------------------------------------------------------------------


def _from_arrow(value: Any, simplified: Simplify, key: Key) -> Any:
    arrow = sys.modules["pyarrow"]
    if isinstance(value, arrow.RecordBatchReader):
        return _arrow_records(value, value.schema)
    if isinstance(value, arrow.RecordBatch):
        value = arrow.Table.from_batches([value])
    if isinstance(value, arrow.Table):
        records = _arrow_records(value.to_batches(), value.schema)
        return list(records) if value.num_rows * value.num_columns <= _SHORT else records
    if isinstance(value, (arrow.Array, arrow.ChunkedArray)):
        values = _arrow_values(_arrow_slices(value, len(value)))
        return list(values) if len(value) <= _SHORT else values
    if isinstance(value, arrow.Tensor):
        return _from_array(value.to_numpy())
    if isinstance(value, (arrow.Scalar, arrow.Buffer)):
        return simplified(value.as_py() if isinstance(value, arrow.Scalar) else value.to_pybytes())
    return str(value)


def _arrow_records(batches: Iterable[Any], schema: Any) -> Iterator[Any]:
    if len(set(schema.names)) < len(schema.names):
        raise UnusableResult(f"two columns of the table have the same name: {', '.join(schema.names)}")
    return _arrow_values(part for batch in batches for part in _arrow_slices(batch, batch.num_rows))


def _arrow_slices(value: Any, length: int) -> Iterator[Any]:
    return (value.slice(start, 4096) for start in range(0, length, 4096))


def _arrow_values(slices: Iterable[Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(part.to_pylist() for part in slices)


# -- Spark -----------------------------------------------------------------------------------------------

_DISTRIBUTED = frozenset(
    {"DataFrame", "RDD", "GroupedData", "DStream", "Series", "Index", "DistributedMatrix"}
)


def _from_pyspark(value: Any, simplified: Simplify, key: Key) -> Any:
    kind = type(value)
    for base in kind.__mro__:
        if base.__name__ in _DISTRIBUTED and base.__module__.startswith("pyspark."):
            raise UnusableResult(
                f"a job cannot return a distributed {base.__name__}: return its rows, for example with "
                "collect() or take(n), or write it somewhere and return its location"
            )
    if hasattr(kind, "toArray") and kind.__module__.endswith(".linalg"):
        return _from_numpy(value.toArray(), simplified, key)
    if hasattr(kind, "jsonValue"):  # a schema, or a part of one
        return value.jsonValue()
    if kind.__name__ in ("Broadcast", "Accumulator"):
        return simplified(value.value)
    if kind.__name__ == "VariantVal":
        return simplified(value.toPython())
    return iter(value) if kind.__name__ == "ResultIterable" else str(value)  # the groups of groupByKey


def _from_py4j(value: Any, simplified: Simplify, key: Key) -> Any:
    """Convert collections of the JVM like Python's, and its other objects to strings."""
    if isinstance(value, Mapping):
        return dict(value.items())
    names = {base.__name__ for base in type(value).__mro__}
    if not names.isdisjoint({"JavaList", "JavaArray", "JavaSet", "JavaIterator"}):
        return list(value)
    return str(value)


CONVERTERS: dict[str, Callable[[Any, Simplify, Key], Any]] = {
    "numpy": _from_numpy,
    "pandas": _from_pandas,
    "pyarrow": _from_arrow,
    "pyspark": _from_pyspark,
    "py4j": _from_py4j,
}
"""By the first part of a module's name."""


# -- protocols -------------------------------------------------------------------------------------------


def from_protocol(value: Any, simplified: Simplify, key: Key, *, otherwise: Simplify) -> Any:
    """Return the data of a table or an array of any other library; ``otherwise`` handles all other values.

    Tables provide a stream of Arrow batches (Polars, DuckDB), arrays convert to numpy (PyTorch, Pillow), or
    can be made dense (SciPy).
    """
    arrow, numpy = sys.modules.get("pyarrow"), sys.modules.get("numpy")
    if arrow is not None and hasattr(type(value), "__arrow_c_stream__"):
        return _from_arrow(arrow.RecordBatchReader.from_stream(value), simplified, key)
    if numpy is not None and hasattr(type(value), "toarray"):
        value = value.toarray()
    if numpy is not None and hasattr(type(value), "__array__"):
        made = numpy.asarray(value)
        if made.dtype.kind != "O":
            return _from_numpy(made, simplified, key)
    return otherwise(value)
