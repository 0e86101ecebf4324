"""Ask memory for numbers before they are read."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_codegen: Any = cgutils  # it has no types

_READ, _KEEP, _DATA = 0, 3, 1
"""What LLVM calls them: to be read, to stay in all caches, no instructions."""


@intrinsic
def prefetch(_: Any, array: Any, index: Any) -> Any:
    """Have the cache line of ``array[index]`` brought, and do not wait for it.

    For other loops to call, not for Python. The index may lie beyond the end of the array. A
    processor looks ahead by itself, but mostly not beyond the page that it reads.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = signature.args[0]
        where = context.make_array(kind)(context, builder, arguments[0])
        pointer = _codegen.get_item_pointer(context, builder, kind, where, [arguments[1]])
        number = ir.IntType(32)
        made = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        call = _codegen.get_or_insert_function(builder.module, made, "llvm.prefetch.p0")
        builder.call(call, [pointer, *(number(x) for x in (_READ, _KEEP, _DATA))])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
