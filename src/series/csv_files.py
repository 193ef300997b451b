"""Series from CSV files."""

import csv
import math
from itertools import islice
from pathlib import Path

import numpy as np

from src.images import DataError

LONGEST = 1_000_000  # samples of a series
LARGEST = 1e100  # absolute value of a sample
RESOLUTION = 1e-12  # least range of a series, as a share of its largest absolute value
COLUMNS = ("data", "value")  # in order of preference


def read_csv(path: Path | str) -> np.ndarray:
    """The values float64 (n,) of a series: the column ``data`` of a CSV file, else ``value``, else the first numeric.

    The first row may be a header; blank lines are passed over, cells left blank are missing. Raises DataError naming
    the file where it is no such table, or empty, constant, huge or with values missing.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in islice(filter(None, reader), LONGEST + 2)]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no table in CSV and UTF-8 ({error}): correct the path or the file") from error
    has_header = rows and not any(map(_is_number, rows[0][1]))
    header = rows.pop(0)[1] if has_header else []
    column = _column(header, rows[0][1], path) if rows else 0
    values = np.array([_number(row, column, f"{path}, line {line}") for line, row in rows])
    check(values, path)
    return values


def check(values: np.ndarray, place: Path | str) -> None:
    """DataError naming the ``place`` of a series (n,) that cannot be plotted and classified."""
    if not len(values):
        raise DataError(f"{place} is empty: a series has two samples or more")
    is_finite = np.isfinite(values)
    if len(values) > LONGEST or abs(values[is_finite]).max(initial=0) > LARGEST:
        raise DataError(f"{place} is huge: thin it out to {LONGEST:,} samples at most, and scale it below {LARGEST:g}")
    if not is_finite.all():
        first = int(is_finite.argmin())
        raise DataError(f"{place} holds {values[first]} at sample {first}: fill in or remove what is missing")
    if values.max() - values.min() <= RESOLUTION * abs(values).max():
        raise DataError(f"{place} is constant ({values[0]:g}): a class shows only where values change")


def _column(header: list[str], first_row: list[str], path: Path) -> int:
    names = [name.strip().lower() for name in header]
    for name in COLUMNS:
        if name in names:
            return names.index(name)
    numeric = [index for index, cell in enumerate(first_row) if _is_number(cell)]
    if not numeric:
        raise DataError(
            f"{path} has no column of numbers in its first row of data {first_row}: separate them by commas"
        )
    return numeric[0]


def _number(row: list[str], column: int, place: str) -> float:
    cell = row[column].strip() if column < len(row) else ""
    if not cell:
        return math.nan
    if not _is_number(cell):
        raise DataError(f"{place}: {cell!r} is not a number; correct it")
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
