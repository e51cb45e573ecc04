"""A query's answer as an Excel workbook of one sheet."""

import math
from contextlib import closing
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from engine.errors import UserError
from flows.result_rows import Rows, rows_of
from tasks.source.cells import text_of

# What a sheet holds: https://support.microsoft.com/office/excel-specifications-and-limits
MOST_ROWS, MOST_COLUMNS, LONGEST_TEXT = 1_048_576, 16_384, 32_767
# A number of Excel's is a float64.
LARGEST_WHOLE = 2**53
_OPTIONS = {
    "constant_memory": True,  # rows go to a file below `tmpdir` as they come
    "strings_to_formulas": False,  # a row's text runs nothing in whoever's Excel
    "strings_to_urls": False,
    "strings_to_numbers": False,
}


def write_workbook(result: Rows, out: BinaryIO) -> None:
    """Numbers stay numbers where Excel holds them exactly; everything else, nested values as JSON, is text.

    Raises UserError where rows, columns or a text are more than a sheet holds.
    """
    try:
        import xlsxwriter
    except ImportError:
        raise UserError("--format xlsx needs XlsxWriter: pip install 'trunkline[xlsx]'") from None
    if len(result.columns) > MOST_COLUMNS:
        raise UserError(f"a sheet holds {MOST_COLUMNS:,} columns, not {len(result.columns):,}")
    with TemporaryDirectory(prefix="trunkline-xlsx-") as spill:
        book = xlsxwriter.Workbook(out, _OPTIONS | {"tmpdir": spill})
        sheet = book.add_worksheet("answer")
        # The library closes the rows' file with a workbook that is whole; of another its bytes would stay on the disk.
        with closing(sheet.row_data_fh):
            _write_sheet(result, book, sheet)


def _write_sheet(result: Rows, book: Any, sheet: Any) -> None:
    sheet.freeze_panes(1, 0)
    bold = book.add_format({"bold": True})
    for place, name in enumerate(result.columns):
        sheet.write_string(0, place, name, bold)
    at = 0
    for batch in result.batches():
        for row in rows_of(batch):
            at += 1
            if at == MOST_ROWS:
                raise UserError(f"a sheet holds {MOST_ROWS - 1:,} rows; say LIMIT, or take --to FILE.parquet")
            for place, value in enumerate(row):
                _write_cell(sheet, at, place, value, result.columns[place])
    book.close()


def _write_cell(sheet: Any, row: int, place: int, value: Any, column: str) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        sheet.write_boolean(row, place, value)
    elif isinstance(value, int | float) and math.isfinite(value) and abs(value) <= LARGEST_WHOLE:
        sheet.write_number(row, place, value)
    elif isinstance(value, Decimal) and Decimal(float(value)) == value:
        sheet.write_number(row, place, float(value))
    else:
        text = text_of(value)
        # Excel counts in UTF-16.
        if len(text.encode("utf-16-le", "surrogatepass")) // 2 > LONGEST_TEXT:
            said = f"row {row:,}, column {column}: a cell holds {LONGEST_TEXT:,} characters, not {len(text):,}"
            raise UserError(f"{said}; cut it with left({column}, {LONGEST_TEXT}), or take --to FILE.parquet")
        sheet.write_string(row, place, text)
