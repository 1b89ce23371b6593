"""Merge definitions of one key, and concatenate adjacent values.

Objects merge key by key; any other value hides the definitions below it. A definition that contains a
substitution may resolve to an object, and may refer to the definitions below it: so both are kept in a
:class:`Merge` until substitutions are resolved. The reference implementation determines which definitions
are merged, and substitutions make this visible.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from jobserver_core.config.hocon.nodes import (
    ABSENT,
    Array,
    Blank,
    Concat,
    Merge,
    Node,
    Object,
    Reference,
    Step,
    is_resolved,
    leaf_text,
)


class MixedValues(Exception):
    """Text, lists and objects are mixed in one value."""


# -- while parsing: in place -----------------------------------------------------------------------


def define(obj: Object, key: str, node: Node) -> None:
    """Define a key of an object that the parser is building, over its earlier definition."""
    if key in obj.fields:
        old = obj.fields[key]
        obj.unresolved -= not is_resolved(old)
        node = _over(node, old)
    obj.fields[key] = node
    obj.unresolved += not is_resolved(node)


def merge_into(obj: Object, other: Object) -> None:
    """Define all keys of another object over those of an object that the parser is building."""
    for key, node in other.fields.items():
        define(obj, key, node)


def _over(new: Node, old: Node) -> Node:
    """Return a definition over an earlier one; both belong to the parser, which may change them."""
    if isinstance(new, Object) and not new.final:
        return _object_over(new, old)
    if isinstance(new, Merge):
        if hides(new):
            return new
        lower = old if isinstance(old, Merge) else Merge([old])
        for layer in new.layers:
            lower.push(layer)
        return lower
    if hides(new):
        return new
    if not isinstance(old, Merge):
        return Merge([old, new])
    old.push(new)
    return old


def _object_over(new: Object, old: Node) -> Node:
    if isinstance(old, Object):
        old.laid_on(new)
        merge_into(old, new)
        return old
    if isinstance(old, Merge):
        top = old.layers[-1]
        if isinstance(top, Object) and not top.unresolved and not new.unresolved:
            merge_into(top, new)
        else:
            old.push(new)
        return old
    if isinstance(old, (Reference, Concat)) or new.unresolved:
        return Merge([old, new])
    new.final = True
    return new


def hides(node: Node) -> bool:
    """Return whether a definition always hides everything below it."""
    if isinstance(node, Merge):
        return hides(node.layers[0])
    return node.final if isinstance(node, Object) else is_resolved(node)


# -- while resolving: copies -----------------------------------------------------------------------


def laid_over(values: list[Node], step: Step) -> Node:
    """Return the merge of at least one definition, the uppermost first."""
    if len(values) == 1:
        return values[0]
    first = values[0]
    if not isinstance(first, Object):
        return first if hides(first) else _merge(values, step)
    count = 1
    while count < len(values) and isinstance(values[count], Object) and not values[count - 1].final:
        count += 1
    top = _merged_objects(values[:count], step)
    rest = values[count:]
    if top.final or not rest:
        return top
    if isinstance(rest[0], (Merge, Reference, Concat)) or top.unresolved:
        return _merge([top, *rest], step)
    step(len(top) // 4)
    return Object(dict(top.items()), final=True)


def _merge(values: list[Node], step: Step) -> Merge:
    """Keep definitions, the uppermost first, down to the first that hides the others."""
    kept: list[Node] = []
    for value in values:
        if isinstance(value, Merge):
            step(value.size)
            kept += value.layers[value.size - 1 :: -1]
        else:
            kept.append(value)
        if hides(kept[-1]):
            break
    return Merge(kept[::-1], twice=len(set(map(id, kept))) < len(kept))


def _merged_objects(objects: list[Object], step: Step) -> Object:
    distinct = list(
        {id(obj) if is_resolved(obj) else -index: obj for index, obj in enumerate(objects)}.values()
    )
    if len(distinct) == 1:
        return objects[0]
    merged: dict[str, list[Node]] = {}
    for obj in distinct:
        step(1 + len(obj))
        for key in obj.order().keys:
            if (node := obj.child(key)) is not ABSENT:
                merged.setdefault(key, []).append(node)
    fields = {key: laid_over(nodes, step) for key, nodes in merged.items()}
    first = objects[0]
    if first.final == objects[-1].final and _same(first, fields):
        return first
    return Object(fields, final=objects[-1].final, twice=True)


def _same(obj: Object, fields: dict[str, Node]) -> bool:
    return len(dict(obj.items())) == len(fields) and all(obj.child(key) is fields[key] for key in fields)


# -- side by side ----------------------------------------------------------------------------------


def joined(pieces: Iterable[Node], step: Step | None = None) -> list[Node]:
    """Join adjacent values that are not substitutions.

    Without ``step`` the pieces belong to the parser, which may change them.

    Raises:
        MixedValues: Lists, objects and strings are side by side.
    """
    result: list[Node] = []
    run: list[Node] = []
    for piece in pieces:
        if isinstance(piece, (Reference, Concat, Merge)):
            result += [*_run(run, step), piece]
            run = []
        else:
            run.append(piece)
    return result + _run(run, step)


def _run(run: list[Node], step: Step | None) -> list[Node]:
    if len(run) < 2:
        return run
    first = run[0]
    if not isinstance(first, (Array, Object)):
        texts = [leaf_text(leaf) for leaf in run]
        if step is not None:
            step(len(run) // 4 + sum(len(text) for text in texts if text is not None) // 64)
        if None in texts:
            raise MixedValues
        return ["".join(text for text in texts if text is not None)]
    containers = [piece for piece in run if not isinstance(piece, Blank)]
    if not all(isinstance(piece, (Array, Object)) for piece in containers):
        raise MixedValues
    if all(isinstance(piece, Object) for piece in containers):
        return [_joined_objects(containers, step)]
    return [_joined_lists(containers, step)]


def _joined_objects(objects: list[Node], step: Step | None) -> Node:
    if step is not None:
        return laid_over(objects[::-1], step)
    return functools.reduce(lambda lower, upper: _over(upper, lower), objects)


def _joined_lists(containers: list[Node], step: Step | None) -> Array:
    first = next(index for index, piece in enumerate(containers) if isinstance(piece, Array))
    lists = [_as_list(piece, step) for piece in containers[first:]]
    if first:
        lists.insert(0, _as_list(_joined_objects(containers[:first], step), step))
    if step is not None:
        step(sum(map(len, lists[1:])))
    items = [item for array in lists[1:] for item in array.items]
    return Array(items, lists[0]) if items else lists[0]


def _as_list(node: Node, step: Step | None) -> Array:
    """Return a list unchanged; convert an object with numeric keys to the list that it stands for."""
    if isinstance(node, Array):
        return node
    if step is not None:
        step(len(node) // 4)
    items = {
        int(key): item for key, item in node.items() if key.isascii() and key.isdigit() and len(key) < 10
    }
    if not items:
        raise MixedValues
    return Array([items[index] for index in sorted(items)])
