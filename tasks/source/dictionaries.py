"""Columns of dictionaries, as damaged files have them: Arrow reads an index without a look at what it names."""

import pyarrow as pa
import pyarrow.compute as pc


def check_indices(array: pa.Array) -> None:
    """Raises ArrowIndexError where an index of a dictionary, in lists and structs too, names no value of it."""
    kind = array.type
    if not _has_dictionary(kind):
        return
    if isinstance(kind, pa.BaseExtensionType):
        check_indices(array.storage)
    elif pa.types.is_dictionary(kind):
        _check_ends(array)
        check_indices(array.dictionary)
    elif pa.types.is_struct(kind):
        for field in array.flatten():
            check_indices(field)
    elif pa.types.is_map(kind):
        check_indices(array.keys)
        check_indices(array.items)
    else:
        check_indices(array.flatten())


def _has_dictionary(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    return pa.types.is_dictionary(kind) or any(_has_dictionary(kind.field(i).type) for i in range(kind.num_fields))


def _check_ends(array: pa.DictionaryArray) -> None:
    ends, size = pc.min_max(array.indices).as_py(), len(array.dictionary)
    if ends["min"] is not None and not 0 <= ends["min"] <= ends["max"] < size:
        raise pa.ArrowIndexError(f"an index of a dictionary of {size} values is {ends['min']} to {ends['max']}")
