"""Matrices of words of 4 bytes, transposed in registers: what turns rows into lanes of vectors and back."""

from typing import Any

from kernels.cpu.language.jit import intrinsic, ir, njit, types
from kernels.cpu.language.openmp import int32_at
from kernels.cpu.language.vectors import LONG, WIDTH, WORDS, Vectors


@intrinsic
def _square(_: Any, source: Any, source_row: Any, target: Any, target_row: Any) -> Any:
    """For numba: target = source transposed, `WIDTH` rows of as many words; addresses, and strides of rows in words."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        source, source_row, target, target_row = arguments
        emit = Vectors(builder)
        rows = [emit.load(WORDS, emit.address(source, builder.mul(source_row, LONG(index)))) for index in range(WIDTH)]
        # Quarters of 2, 4, and at last all rows and lanes change places.
        distance = 1
        while distance < WIDTH:
            lower = [lane if not lane & distance else lane + WIDTH - distance for lane in range(WIDTH)]
            upper = [lane + distance if not lane & distance else lane + WIDTH for lane in range(WIDTH)]
            for index in range(WIDTH):
                if not index & distance:
                    pair = rows[index], rows[index + distance]
                    rows[index] = builder.shuffle_vector(*pair, ir.Constant(WORDS, lower))
                    rows[index + distance] = builder.shuffle_vector(*pair, ir.Constant(WORDS, upper))
            distance *= 2
        for index, row in enumerate(rows):
            emit.store(row, emit.address(target, builder.mul(target_row, LONG(index))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@njit(error_model="numpy")
def transpose(source: int, source_row: int, rows: int, columns: int, target: int, target_row: int) -> None:
    """target (columns, rows) = source (rows, columns) transposed; addresses, and strides of rows in words."""
    whole_rows, whole_columns = rows // WIDTH * WIDTH, columns // WIDTH * WIDTH
    for row in range(0, whole_rows, WIDTH):
        for column in range(0, whole_columns, WIDTH):
            at, to = row * source_row + column, column * target_row + row
            _square(source + 4 * at, source_row, target + 4 * to, target_row)
    words_in, words_out = int32_at(source, rows * source_row), int32_at(target, columns * target_row)
    for row in range(rows):
        for column in range(whole_columns if row < whole_rows else 0, columns):
            words_out[column * target_row + row] = words_in[row * source_row + column]
