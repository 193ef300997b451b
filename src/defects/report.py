"""What is written of single images: pictures, and one self-contained HTML page for an inspection engineer to open.

The page carries all it shows: pictures as data URIs, CSS and JavaScript inline, from the template ``report.html``
beside this module. It asks nothing of a network. Each picture is embedded once, as JPEG of ``QUALITY`` where that
is smaller than its file, and masks as two-colour PNG: about 55 kB an image of 256x256 pixels with its maps.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src import plots, records, settings
from src.defects.data import DefectDataset, require_upright_masks
from src.defects.evaluation import Meter, Scored, categories_of, samples, scored, summary
from src.defects.layouts import Item
from src.files import atomic
from src.system import Trained

QUALITY = 85
MASK_COLOR = (220, 38, 38)  # red; what is no defect is transparent
TEMPLATE = Path(__file__).with_suffix(".html")
PICTURES = ("image", "heatmap", "uncertainty", "mask")


def predict(trained: Trained, files: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """The record of each image file; its pictures are written below ``out``, as ``write_pictures`` says."""
    categories = categories_of(trained)
    if len(categories) > 1:
        choices = ", ".join(categories)
        raise settings.InputError(f"of which category are the images? Choose one of {choices} with categories=NAME")
    threshold = trained.extras["thresholds"][categories[0]]["value"]
    images, rows = DefectDataset([Item(file) for file in files], Path()), []
    for item in scored(trained, categories[0], images):
        item = replace(item, name=Path(item.name).name)
        rows.append({**write_pictures(item, out, threshold), "threshold": threshold})
    return rows


def write_pictures(item: Scored, folder: Path, threshold: float) -> dict[str, Any]:
    """Image, heat map, uncertainty map (of methods with one) and mask as PNGs below ``folder``; returns its record.

    All are at the size the model works at.
    """
    pictures = {
        "image": item.picture(),
        "heatmap": item.heat(threshold),
    }
    if "uncertainty" in item.maps:
        pictures["uncertainty"] = plots.heat(item.maps["uncertainty"].numpy(), 0, 10)
    if (region := item.region()) is not None:
        pictures["mask"] = np.uint8(region) * 255
    paths = {"uncertainty_path": None, "mask_path": None}
    for kind, picture in pictures.items():
        path = folder / kind / Path(item.name).with_suffix(".png")
        with atomic(path) as file:
            Image.fromarray(picture).save(file, "PNG", compress_level=4)
        paths[f"{kind}_path"] = path.relative_to(folder).as_posix()
    return {
        "filename": item.name,
        "prediction": {"is_anomalous": item.score() >= threshold},
        "anomaly_score": item.score(),
        **paths,
    }


def write_report(trained: Trained, root: Path | None, dataset: str | None, split: str, out: Path) -> list[Path]:
    """Evaluate, and write an HTML page for each category beside its ``records.json`` and pictures below ``out``."""
    pages = []
    for category, images in samples(trained, root, dataset, split).items():
        require_upright_masks(images)
        content = _write_records(trained, category, images, split, out / category)
        pages.append(write_page(content, out / category, out / f"{category}.html"))
    return pages


def _write_records(trained: Trained, category: str, images: DefectDataset, split: str, folder: Path) -> dict[str, Any]:
    """Write the pictures of every image and ``records.json`` into ``folder``; returns the latter's content."""
    threshold, meter, rows = trained.extras["thresholds"][category], Meter(), []
    for item in scored(trained, category, images):
        meter.update(item)
        row = write_pictures(item, folder, threshold["value"])
        is_correct = row["prediction"]["is_anomalous"] == item.is_anomalous
        truth = {"ground_truth": {"type": "anomaly", "is_anomalous": item.is_anomalous}, "defect": item.defect}
        rows.append({**row, "category": category, **truth, "correct": is_correct})
    metrics = summary(trained, category, meter)
    content = {
        "dataset": category,
        "split": split,
        "threshold": threshold["value"],
        "threshold_rule": threshold["rule"],
        "metrics": {key: value for key, value in metrics.items() if isinstance(value, float)},
        "images": rows,
    }
    path = records.write(content, folder / "records.json")
    return json.loads(path.read_text(encoding="utf-8"))  # in which NaN is null


# ------------------------------------------------------------------------------------------ HTML page
def write_page(content: dict[str, Any], folder: Path, out: Path) -> Path:
    """Write the content of a ``records.json`` as the HTML page ``out``; returns ``out``.

    Paths of pictures are relative to ``folder``. A score at or above the threshold means anomalous.
    """
    page = content | {"images": [_image_data(folder, record) for record in content["images"]]}
    data = json.dumps(page, allow_nan=False).replace("<", "\\u003c")  # no "</script>", no "<!--"
    with atomic(out) as file:
        file.write(TEMPLATE.read_text(encoding="utf-8").replace("__RECORDS__", data).encode())
    return out


def _image_data(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    paths = {kind: record[f"{kind}_path"] for kind in PICTURES}
    return {
        "name": record["filename"],
        "category": record["category"],
        "defect": record["defect"],
        "score": record["anomaly_score"],
        "anomalous": record["ground_truth"]["is_anomalous"],
        **{kind: path and _data_uri(folder / path, kind == "mask") for kind, path in paths.items()},
    }


def _data_uri(path: Path, is_mask: bool) -> str:
    """A PNG picture as data URI; a mask's defect is red on transparent."""
    png, buffer = path.read_bytes(), io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        if is_mask:
            binary = image.point(lambda value: value >= 128).convert("P")
            binary.putpalette((0, 0, 0, *MASK_COLOR))
            binary.save(buffer, "PNG", bits=1, transparency=0)
            encodings = {"png": buffer.getvalue()}
        else:
            image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
            encodings = {"jpeg": buffer.getvalue(), "png": png}
    kind = min(encodings, key=lambda kind: len(encodings[kind]))
    return f"data:image/{kind};base64,{base64.b64encode(encodings[kind]).decode()}"
