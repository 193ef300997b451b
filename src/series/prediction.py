"""Single plots and CSV files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.series import data, figures
from src.system import Trained


def predict(trained: Trained, files: Sequence[Path], out: Path, *, column: str = "") -> list[dict[str, Any]]:
    """The probabilities of every class for plots or CSV files; each one's activation map is drawn below ``out``.

    ``column`` of CSV files: see `csv_files.read_csv`.
    """
    makers = data.item_makers(trained.config)
    items = data.read_items(files, makers, column)
    probabilities = trained.model.probabilities(items)
    figures.write_predictions(trained, files, items, probabilities, out)
    classes, rows = data.class_names(trained.config), []
    for file, row in zip(files, probabilities, strict=True):
        by_class = dict(zip(classes, row.tolist(), strict=True))
        rows.append({"filename": str(file), "class": classes[int(row.argmax())], "probabilities": by_class})
    return rows
