"""Series from CSV files, as spreadsheets, loggers and pandas write them in any country.

Read is what has one meaning alone: every rule that tells columns, headers and marks apart ends in DataError, which says
what was seen, where it leaves two.
"""

import csv
import io
import math
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.images import SUFFIXES, DataError, list_images, note

KINDS = (*SUFFIXES, ".csv")  # of files that hold a series
LONGEST = 1_000_000  # samples of a series
LARGEST = 1e100  # absolute value of a sample
LARGEST_FILE = 200_000_000  # bytes
RESOLUTION = 1e-12  # least range of a series, as a share of its largest absolute value
COLUMNS = ("data", "value")  # names of a series that need no choice
TIMES = re.compile(  # words of the name of an index or clock
    r"(^|[^a-z])(index|idx|id|no|nr|row|sample|step|frame|tick|t|ts|time|timestamp|datetime|date|epoch|unix|year|month|day|"
    r"hour|minute|min|second|sec|seconds|ms|us|ns|zeit|datum|jahr|monat|tag)([^a-z]|$)"
)
MISSING = {"", "nan", "na", "n/a", "#n/a", "null", "none", "-"}
GROUPS = "'\N{RIGHT SINGLE QUOTATION MARK}\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"  # between thousands
# decimal mark -> numbers written with it; thousands are parted by the other mark, or by those in GROUPS
READINGS = {
    mark: re.compile(
        rf"[+-]?((\d+|[1-9]\d{{0,2}}([{other}{GROUPS}]\d{{3}})+)([{mark}]\d*)?|[{mark}]\d+)(e[+-]?\d+)?|[+-]?inf", re.I
    )
    for mark, other in (".,", ",.")
}


class Column(NamedTuple):
    """A column of numbers: float64 (n,), NaN where a cell is blank; ``fault``: what keeps it from being read."""

    name: str
    values: np.ndarray
    fault: str
    is_time: bool


def list_inputs(folder: Path) -> list[Path]:
    """The series that lie directly in a folder, sorted by path, each once: what is left out is printed."""
    listed = list_images(folder, KINDS)
    inputs = without_doubles(listed)
    if len(inputs) < len(listed):
        note(folder, f"read {len(listed) - len(inputs)} series from plots, not from the CSV files of their names")
    return inputs


def without_doubles(paths: list[Path]) -> list[Path]:
    """Plots, and CSV files that have no plot of their name beside them."""
    plotted = {path.stem for path in paths if path.suffix.lower() != ".csv"}
    return [path for path in paths if path.suffix.lower() != ".csv" or path.stem not in plotted]


def read_csv(path: Path | str, column: str = "") -> np.ndarray:
    """The values float64 (n,) of a series: the ``column`` named, else ``data``, else ``value``, else the only numbers.

    An index or clock is told by its name or its even steps, and left out. A column without a name goes by its number,
    from 1. Raises DataError naming the file where several columns could be the series or a number could be read in two
    ways, and for what is no table, or empty, constant, huge or with values missing.
    """
    path = Path(path)
    rows = _rows(_text(path), path)
    if len(rows) > LONGEST + 1:
        raise _huge(path)
    columns = _columns(rows, path)
    if not columns:
        seen = f"; line {rows[-1][0]} holds {rows[-1][1]}" if len(rows) > 1 else ": it is empty"
        raise DataError(f"{path} has no column of numbers{seen}; part cells by commas, and leave out units")
    width = max(len(row) for _, row in rows)
    chosen = columns[0] if width == 1 and not column else _choose(columns, column, path)
    if chosen.fault:
        raise DataError(f"{path}, {chosen.fault}")
    check(chosen.values, path)
    if width > 1:
        note(path.parent, f"column {chosen.name} of its CSV files is read")
    return chosen.values


def check(values: np.ndarray, place: Path | str) -> None:
    """DataError naming the ``place`` of a series (n,) that cannot be plotted and classified."""
    if not len(values):
        raise DataError(f"{place} is empty: a series has two samples or more")
    is_finite = np.isfinite(values)
    if len(values) > LONGEST or abs(values[is_finite]).max(initial=0) > LARGEST:
        raise _huge(place)
    if not is_finite.all():
        first = int(is_finite.argmin())
        raise DataError(f"{place} holds {values[first]} at sample {first}: fill in or remove what is missing")
    if values.max() - values.min() <= RESOLUTION * abs(values).max():
        raise DataError(f"{place} is constant ({values[0]:g}): a class shows only where values change")


def _huge(place: Path | str) -> DataError:
    return DataError(f"{place} is huge: thin it out to {LONGEST:,} samples at most, and scale it below {LARGEST:g}")


# ------------------------------------------------------------------------------------------ text and rows
def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise _huge(path)
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no table in CSV and UTF-8 ({error}): correct the path or the file") from error
    if "\0" in text:
        raise DataError(f"{path} is no table in CSV and UTF-8 (it holds zero bytes): correct the path or the file")
    return text.replace("\N{MINUS SIGN}", "-")


def _rows(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """(number of its line, cells) of every row that is not blank, a comment or a spreadsheet's ``sep=;``."""
    lines = ["\n" if line.startswith(("#", "%", "//")) else line for line in io.StringIO(text, newline="")]
    declared = re.match(r'"?sep=(.)"?\s*$', lines[0], re.I) if lines else None
    if declared:
        lines[0] = "\n"
    try:
        return _split(lines, declared[1] if declared else _delimiter(lines))
    except csv.Error as error:
        raise DataError(f"{path} is no table in CSV and UTF-8 ({error}): correct the path or the file") from error


def _split(lines: list[str], delimiter: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    return [(line, row) for line, row in rows if any(row)]


def _delimiter(lines: list[str]) -> str:
    """What parts the cells: of ``;``, tab, ``|`` and comma the first in most lines; where a header names one column
    alone, commas are decimal."""
    for delimiter in ";\t|":
        rows = _split(lines[:1000], delimiter)
        if sum(len(row) > 1 for _, row in rows) > len(rows) / 2:
            return delimiter
    rows = [row for _, row in _split(lines[:1000], ",")]
    start = next((i for i, row in enumerate(rows) if any(map(_is_number, row))), 0)
    has_several = len(rows[start - 1]) > 1 if start else sum(len(row) > 1 for row in rows) > len(rows) / 2
    return "," if has_several else "\x1f"


def _is_number(cell: str) -> bool:
    return any(pattern.fullmatch(cell) for pattern in READINGS.values())


# ------------------------------------------------------------------------------------------------ columns
def _columns(rows: list[tuple[int, list[str]]], path: Path) -> list[Column]:
    """The columns of which at least half the cells that are not blank are numbers."""
    width = max((len(row) for _, row in rows), default=0)
    table = [row + [""] * (width - len(row)) for _, row in rows]
    filled = [[cell for cell in cells if cell.lower() not in MISSING] for cells in zip(*table, strict=True)]
    numeric = [i for i, cells in enumerate(filled) if 2 * sum(map(_is_number, cells)) >= len(cells) > 0]
    if not numeric:
        return []
    start = _first_data(table, numeric, path)
    header = max(table[:start], key=lambda row: sum(map(bool, row)), default=[])
    names = [header[i] if header and header[i] and header.count(header[i]) == 1 else str(i + 1) for i in range(width)]
    used = max(i for i, cell in enumerate(header or table[0], 1) if cell)
    lines, table = [line for line, _ in rows[start:]], table[start:]
    for line, row in zip(lines, table, strict=True):
        if any(row[used:]):
            raise DataError(
                f"{path}, line {line} has more cells than line {rows[0][0]}: put cells with commas in quotes"
            )
    columns = [_column(names[i], [row[i] for row in table], lines) for i in numeric]
    if header and not header[0] and numeric[0] == 0:  # by pandas
        columns[0] = columns[0]._replace(is_time=True)
    integers = not header and width == 2 and all(re.fullmatch(r"[+-]?\d+", cell) for row in table for cell in row)
    if integers and not columns[0].is_time:
        example = ",".join(table[0])
        raise DataError(f"{path} holds {example}: two columns, or a decimal comma? Name the columns in a first row")
    return columns


def _first_data(table: list[list[str]], numeric: list[int], path: Path) -> int:
    """The first row with numbers or blanks in all columns ``numeric``, where it is no row of pandas' labels 0, 1..."""
    table = [[row[0], *(row[i] for i in numeric)] for row in table]
    start = next((i for i, (_, *cells) in enumerate(table) if any(cells) and all(map(_is_cell, cells))), 0)
    labels = [cell for cell in table[start][1:] if cell]
    if start or labels != [str(i) for i in range(len(labels))]:
        return start
    if table[0][0] and any(re.fullmatch(r"[+-]?\d*", cell) for row in table[1:] for cell in row[1:]):
        raise DataError(f"{path} begins with {','.join(labels)}: numbers, or labels? Name the columns in a first row")
    return 1


def _is_cell(cell: str) -> bool:
    return cell.lower() in MISSING or _is_number(cell)


def _column(name: str, cells: list[str], lines: list[int]) -> Column:
    readings = [np.array([_value(cell, mark) for cell in cells]) for mark in ".,"]
    is_missing = np.array([cell.lower() in MISSING for cell in cells])
    unread = [np.isnan(values) & ~is_missing for values in readings]
    values, wrong = min(zip(readings, unread, strict=True), key=lambda reading: reading[1].sum())
    fault = ""
    if wrong.any():
        first = int(wrong.argmax())
        fault = f"line {lines[first]}: {cells[first]!r} is not a number; correct it"
    elif not unread[0].any() and not unread[1].any() and not _are_proportional(*readings):
        first = int((readings[0] != readings[1]).argmax())
        fault = (
            f"line {lines[first]}: {cells[first]!r} may hold a decimal mark or thousands; write it without the latter"
        )
    return Column(name, values, fault, _is_time(name, values))


def _value(cell: str, mark: str) -> float:
    if not READINGS[mark].fullmatch(cell):
        return math.nan
    return float(re.sub(f"[{'.,'.replace(mark, '')}{GROUPS}]", "", cell).replace(mark, "."))


def _are_proportional(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two readings draw one shape, as that of 1,234 as 1.234 and 1234 does where no cell is shorter."""
    is_used = np.isfinite(b) & (b != 0)
    ratios = a[is_used] / b[is_used]
    return bool(np.allclose(ratios, ratios[:1], rtol=1e-9, atol=0))


def _is_time(name: str, values: np.ndarray) -> bool:
    """Whether a column counts or dates the samples: its steps are even, or none falls and its name says so."""
    steps = np.diff(values)
    if not len(steps) or not np.isfinite(steps).all() or not steps.any():
        return False
    is_even = abs(steps - steps.mean()).max() <= 0.01 * abs(steps.mean())  # times are rounded
    return bool(is_even or ((steps >= 0).all() and TIMES.search(name.lower())))


def _choose(columns: list[Column], wanted: str, path: Path) -> Column:
    listed = ", ".join(column.name for column in columns)
    if wanted:
        chosen = [column for column in columns if column.name.lower() == wanted.lower()]
        if len(chosen) != 1:
            raise DataError(
                f"{path} has no column {wanted!r} of numbers; there are {listed}: choose with --column NAME"
            )
        return chosen[0]
    measured = [column for column in columns if not column.is_time]
    named = [column for name in COLUMNS for column in measured if column.name.lower() == name]
    varying = [column for column in measured if column.fault or np.ptp(column.values) != 0]
    chosen = named[:1] or varying or measured
    if len(chosen) != 1:
        raise DataError(
            f"{path} has {len(chosen)} columns that may be the series, of {listed}: choose with --column NAME "
            "(predict, evaluate), or name it value"
        )
    return chosen[0]
