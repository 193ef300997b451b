"""One self-contained HTML page from the records of an evaluation, for an inspection engineer to open in a browser.

The page carries all it shows: pictures as data URIs, CSS and JavaScript inline, from the template ``report.html``
beside this module. It asks nothing of a network. Each picture is embedded once, as JPEG of ``QUALITY`` where that
is smaller than its file, and masks as two-colour PNG: about 55 kB an image of 256x256 pixels with its maps.
"""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from src import settings

QUALITY = 85
MASK_COLOR = (220, 38, 38)  # red; what is no defect is transparent
TEMPLATE = Path(__file__).with_suffix(".html")
REMEDY = "`python -m src defects report --out DIR` evaluates anew and writes all that it needs"
NUMBER = int | float
SUMMARY = {"dataset": str, "split": str, "threshold": NUMBER, "threshold_rule": str, "metrics": dict, "images": list}
RECORD = {"filename": str, "category": str, "defect": str, "anomaly_score": NUMBER, "ground_truth": dict,
          "prediction": dict, "image_path": str, "heatmap_path": str, "uncertainty_path": str,
          "mask_path": str | None}  # fmt: skip
LABEL = {"is_anomalous": bool}


class ReportError(settings.InputError):
    """Records, or a picture they name, that are missing, damaged or contradict themselves."""


def write(folder: Path, out: Path) -> Path:
    """Write the report on the evaluation in ``folder`` as the HTML page ``out``; returns ``out``.

    ``folder`` holds ``records.json`` and the pictures it names by paths relative to ``folder``: image, heatmap,
    uncertainty and mask of one size, PNG or JPEG. A score at or above the threshold means anomalous.
    Raises ReportError naming the file or the entry that is missing, damaged or contradictory.
    """
    folder, out = Path(folder), Path(out)
    records = json.dumps(_page_data(folder), allow_nan=False).replace("<", "\\u003c")  # no "</script>", no "<!--"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(TEMPLATE.read_text(encoding="utf-8").replace("__RECORDS__", records), encoding="utf-8")
    return out


def _page_data(folder: Path) -> dict[str, Any]:
    path = folder / "records.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} is missing or not JSON ({error}); {REMEDY}") from error
    _check(summary, SUMMARY, str(path))
    if not summary["images"]:
        raise ReportError(f"{path} lists no images; {REMEDY}")
    numbers = {key: value for key, value in summary["metrics"].items() if isinstance(value, float | None)}
    metrics = {key: value if value is not None and math.isfinite(value) else None for key, value in numbers.items()}
    images = [_image_data(folder, record, summary["threshold"], f"{path}: images[{number}]")
              for number, record in enumerate(summary["images"])]  # fmt: skip
    return summary | {"metrics": metrics, "images": images}


def _check(entry: Any, kinds: dict[str, Any], place: str) -> None:
    """ReportError unless a JSON object holds every key with a value of its kind; numbers must be finite."""
    for key, kind in kinds.items():
        if not isinstance(entry, dict) or key not in entry:
            raise ReportError(f"{place} has no entry {key!r}; {REMEDY}")
        value = entry[key]
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not fits or (kind is NUMBER and not math.isfinite(value)):
            raise ReportError(f"{place}: {key!r} is {value!r}, which the report cannot show; {REMEDY}")


def _image_data(folder: Path, record: Any, threshold: float, place: str) -> dict[str, Any]:
    _check(record, RECORD, place)
    _check(record["ground_truth"], LABEL, f"{place}.ground_truth")
    _check(record["prediction"], LABEL, f"{place}.prediction")
    if record["prediction"]["is_anomalous"] != (record["anomaly_score"] >= threshold):
        raise ReportError(f"{place} ({record['filename']}): the prediction contradicts score and threshold; {REMEDY}")
    named = {name: record[f"{name}_path"] for name in ("image", "heatmap", "uncertainty", "mask")}
    pictures = {name: path and _embedded(folder, path, name == "mask") for name, path in named.items()}
    if len({size for _, size in filter(None, pictures.values())}) > 1:
        raise ReportError(f"{place} ({record['filename']}): its pictures differ in size; {REMEDY}")
    return {"name": record["filename"], "category": record["category"], "defect": record["defect"],
            "score": record["anomaly_score"], "anomalous": record["ground_truth"]["is_anomalous"],
            **{name: picture and picture[0] for name, picture in pictures.items()}}  # fmt: skip


def _embedded(folder: Path, name: str, is_mask: bool) -> tuple[str, tuple[int, int]]:
    """(data URI, (width, height)) of a picture inside ``folder``; a mask's defect is red on transparent."""
    path, buffer = folder / name, io.BytesIO()
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ReportError(f"{name} lies outside {folder}; {REMEDY}")
    try:
        raw = path.read_bytes()
        image = Image.open(io.BytesIO(raw), formats=("PNG", "JPEG"))
        if is_mask:
            binary = image.convert("L").point(lambda value: value >= 128).convert("P")
            binary.putpalette((0, 0, 0, *MASK_COLOR))
            binary.save(buffer, "PNG", bits=1, transparency=0)
            kind, content = "PNG", buffer.getvalue()
        else:
            image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
            kind, content = min(("JPEG", buffer.getvalue()), (image.format, raw), key=lambda pair: len(pair[1]))
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise ReportError(f"{path} is missing or no readable PNG or JPEG ({error}); {REMEDY}") from error
    return f"data:{Image.MIME[kind]};base64,{base64.b64encode(content).decode()}", image.size
