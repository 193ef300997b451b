"""Which value of a set's masks marks anomalies, and which sets are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.images import DataError
from src.road import data
from tests.road.test_data import SIZE, write


def write_set(root: Path, folder: str, masks: list[list[int]]) -> None:
    """A set whose masks hold these values, one a row of six."""
    for number, rows in enumerate(masks):
        write(root / "images" / f"{number}.jpg", np.zeros((*SIZE, 3), np.uint8))
        write(root / folder / f"{number}.png", np.repeat(np.uint8(rows)[:, None], SIZE[1], axis=1))


def read_set(root: Path, kind: str, masks: list[list[int]]) -> list[list[int]]:
    write_set(root, "masks" if kind == "road_anomaly" else "labels_masks", masks)
    return [sample["mask"][0, :, 0].tolist() for sample in data.open_split(kind, root, "test")]


NONE = [0] * 6


@pytest.mark.parametrize(
    "kind, stored, labels, printed",
    [
        ("smiyc", [0, 1, 0, 0, 0, 255], [0, 1, 0, 0, 0, 255], ""),
        ("smiyc", [0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], ""),
        ("smiyc", [0, 2, 0, 0, 0, 255], [0, 1, 0, 0, 0, 255], "2 is read as anomalous"),
        ("smiyc", [0, 255, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], "255 is read as anomalous"),
        ("road_anomaly", [0, 2, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0], ""),
        ("road_anomaly", [0, 1, 0, 0, 0, 255], [0, 1, 0, 0, 0, 255], "1 is read as anomalous"),
        ("road_anomaly", [0, 255, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], "255 is read as anomalous"),
    ],
)
def test_the_values_of_the_set_say_what_is_anomalous(tmp_path, capsys, kind, stored, labels, printed):
    assert read_set(tmp_path, kind, [NONE, stored]) == [NONE, labels]
    out = capsys.readouterr().out
    assert printed in out and bool(out) == bool(printed)


@pytest.mark.parametrize(
    "kind, masks, message",
    [
        ("smiyc", [NONE, NONE], "2 mask.*no pixel is marked"),
        ("road_anomaly", [NONE], "no pixel is marked"),
        ("smiyc", [NONE, [0, 1, 2, 0, 0, 0]], "1.png holds the label 2"),
        ("smiyc", [NONE, [0, 128, 255, 0, 0, 0]], "1.png holds the label 128"),
        ("road_anomaly", [[0, 7, 2, 0, 0, 0]], "0.png holds the label 7"),
        ("smiyc", [[1, 1, 1, 1, 0, 255], [1, 1, 1, 0, 0, 0]], "0.png marks more than half.*inverted"),
        ("smiyc", [[255] * 5 + [0]], "0.png marks more than half.*inverted"),
    ],
)
def test_what_marks_nothing_or_nearly_all_is_refused(tmp_path, kind, masks, message):
    with pytest.raises(DataError, match=message):
        read_set(tmp_path, kind, masks)


def test_what_may_be_wrong_is_printed(tmp_path, capsys):
    read_set(tmp_path / "inverted", "smiyc", [[0, 1, 0, 0, 0, 0]] * 3 + [[1, 0, 1, 1, 1, 1]])
    assert "3.png marks more than half" in capsys.readouterr().out
    read_set(tmp_path / "mixed", "smiyc", [[0, 1, 0, 0, 0, 0], [0, 255, 0, 0, 0, 0]])
    assert "1.png holds 255 and no 1" in capsys.readouterr().out


def test_a_mask_of_one_bit_is_read(tmp_path):
    write_set(tmp_path, "labels_masks", [[0, 1, 0, 0, 0, 0]])
    path = tmp_path / "labels_masks" / "0.png"
    Image.fromarray(np.array(Image.open(path)) == 1).save(path)
    assert data.open_split("smiyc", tmp_path, "test").read_mask(0)[:, 0].tolist() == [0, 1, 0, 0, 0, 0]
