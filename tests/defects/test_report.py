"""The HTML report: what it embeds and refuses, and how it behaves in headless Chromium where that is installed."""

import base64
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src import plots
from src.defects import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
THRESHOLD, SIZE = 1.6180339887498949, 96
ODD_NAME = "test/hole/</script><img src=x onerror=alert(1)> <!-- & \"é\" 'ß' \udcff.png"
KINDS = {"fabric": ("good", "hole", "scratch"), "tiles": ("good", "hole", "stain")}


# --- 24 made-up records ---------------------------------------------------------------------------------------
def _pictures(rng: np.random.Generator, shade: int, strength: float) -> dict[str, np.ndarray]:
    """A woven texture with a round flaw and what a model might say of it, uint8 (SIZE,SIZE[,3])."""
    y, x = np.mgrid[:SIZE, :SIZE]
    weave = shade + 25 * np.sin(x / 2) * np.sin(y / 3) + rng.normal(0, 8, (SIZE, SIZE))
    center, radius = rng.uniform(SIZE * 0.25, SIZE * 0.75, 2), rng.uniform(6, 14)
    distance = np.hypot(x - center[0], y - center[1])
    flaw = distance < radius
    image = np.clip(weave[..., None] * [1.0, 0.95, 0.85] - 60 * strength * flaw[..., None], 0, 255)
    glow = strength * np.exp(-(distance**2) / 300) + rng.uniform(0, 0.3, (SIZE, SIZE))
    return {
        "image": np.uint8(image),
        "heatmap": plots.heat(glow, 0, 1.3),
        "mask": np.uint8(255 * flaw),
        "uncertainty": plots.heat(np.sqrt(glow), 0, 1.3),
    }


def _record(folder: Path, number: int, category: str, defect: str, rng: np.random.Generator) -> dict:
    anomalous = defect != "good"
    pictures = _pictures(rng, 150 if category == "fabric" else 110, float(anomalous))
    paths = {}
    for name, array in pictures.items():
        paths[f"{name}_path"] = f"{name}/{number:03d}.png"
        Image.fromarray(array).save(folder / paths[f"{name}_path"])
    if not anomalous or number % 12 == 5:  # an anomalous image now and then has no mask
        paths["mask_path"] = None
    score = THRESHOLD if number == 3 else float(rng.normal(2.4 if anomalous else 1.0, 0.7))
    return {
        "filename": f"{category}/test/{defect}/{number:03d}.png",
        "category": category,
        "defect": defect,
        "ground_truth": {"type": "anomaly", "is_anomalous": anomalous},
        "anomaly_score": score,
        "prediction": {"is_anomalous": score >= THRESHOLD},
        **paths,
        "correct": anomalous == (score >= THRESHOLD),
    }


def write_records(folder: Path, count: int = 24) -> dict:
    """Four kinds of pictures as an evaluation leaves them in a folder; returns the content of its ``records.json``."""
    rng = np.random.default_rng(7)
    for name in ("image", "heatmap", "uncertainty", "mask"):
        (folder / name).mkdir(parents=True)
    images = []
    for number in range(count):
        category = list(KINDS)[number % 2]
        defect = KINDS[category][number // 2 % 4 % 3] if number % 8 < 6 else "good"
        images.append(_record(folder, number, category, defect, rng))
    images[min(4, count - 1)]["filename"] = ODD_NAME
    metrics = {"image_auroc": 0.912345, "pixel_auroc": 0.95, "aupro": None, "f1": 0.8}
    summary = {
        "dataset": "mini <woven>",
        "split": "test",
        "threshold": THRESHOLD,
        "metrics": metrics,
        "threshold_rule": "best F1 on validation",
        "images": images,
    }
    return summary


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> tuple[Path, dict]:
    """(folder, summary) of 24 records."""
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, write_records(folder)


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory) -> Path:
    folder, summary = evaluation
    return report.write_page(summary, folder, tmp_path_factory.mktemp("report") / "new" / "report.html")


class _Page(HTMLParser):
    """Attributes of every element and the embedded records of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.attributes, self.scripts, self.tag = [], [], ""
        self.feed(text)
        self.records = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        self.attributes += attrs

    def handle_data(self, data):
        if self.tag == "script" and data.strip():
            self.scripts.append(data)


# --- the file -------------------------------------------------------------------------------------------------
def test_the_page_asks_nothing_of_files_or_network(page):
    text = page.read_text(encoding="utf-8")
    parsed = _Page(text)
    assert not [pair for pair in parsed.attributes if pair[0] in ("src", "href", "srcset", "action")]
    code = text.replace("http://www.w3.org/2000/svg", "")  # a name that is never fetched
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|\bfetch\(|XMLHttpRequest|import\(", code)
    assert len(parsed.scripts) == 2 and "default-src 'none'" in text


def test_every_record_is_embedded_with_its_pictures(page, evaluation):
    records = _Page(page.read_text(encoding="utf-8")).records
    assert len(records["images"]) == 24
    for shown, record in zip(records["images"], evaluation[1]["images"], strict=True):
        assert (shown["name"], shown["score"]) == (record["filename"], record["anomaly_score"])
        assert shown["anomalous"] == record["ground_truth"]["is_anomalous"]
        assert (shown["category"], shown["defect"]) == (record["category"], record["defect"])
        assert (shown["mask"] is None) == (record["mask_path"] is None)
    assert records["threshold"] == THRESHOLD and records["metrics"]["aupro"] is None
    assert set(records["metrics"]) == {"image_auroc", "pixel_auroc", "aupro", "f1"}


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_pictures_survive_their_encoding(page, evaluation):
    folder, summary = evaluation
    shown = _Page(page.read_text(encoding="utf-8")).records["images"][2]
    record = summary["images"][2]
    for name in ("image", "heatmap", "uncertainty"):
        original = np.asarray(Image.open(folder / record[f"{name}_path"]), dtype=float)
        embedded = _decoded(shown[name])
        assert abs(np.asarray(embedded, dtype=float) - original).mean() < 16  # noise is what JPEG keeps worst
        assert len(shown[name]) * 3 / 4 <= (folder / record[f"{name}_path"]).stat().st_size + 100
    mask = np.asarray(_decoded(shown["mask"]).convert("RGBA"))
    defect = np.asarray(Image.open(folder / record["mask_path"])) == 255
    assert defect.any() and (mask[defect] == (*report.MASK_COLOR, 255)).all() and (mask[~defect, 3] == 0).all()


def test_a_picture_smaller_than_its_jpeg_stays_as_it_is(tmp_path):
    summary = write_records(tmp_path, 1)
    path = tmp_path / summary["images"][0]["image_path"]
    Image.new("RGB", (SIZE, SIZE), (10, 20, 30)).save(path)
    text = report.write_page(summary, tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert base64.b64encode(path.read_bytes()).decode() in text


def test_names_cannot_leave_the_embedded_records(page):
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text and text.count("</script>") == 2 and "<woven>" not in text
    assert any(image["name"] == ODD_NAME for image in _Page(text).records["images"])


# --- in the browser -------------------------------------------------------------------------------------------
class Browser:
    """Headless Chromium through its DevTools pipe: JSON messages, each ended by a zero byte, on descriptors 3 and 4."""

    KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "ArrowLeft": 37, "ArrowRight": 39}

    def __init__(self, profile: Path):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]
        launch = "import os, sys; read, write, *command = sys.argv[1:]; os.dup2(int(read), 3); os.dup2(int(write), 4); "
        launch += "os.execv(command[0], command)"  # pipes are numbered upwards from 3, so write is neither 3 nor 4
        command = [sys.executable, "-c", launch, str(to_read), str(to_write), CHROMIUM, *flags]
        self._process = subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self._rest, self._number, self._session, self.errors, self._loaded = b"", 0, {}, [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def close(self) -> None:
        self._session = {}
        self.call("Browser.close")
        self._process.wait(60)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params) -> dict:
        """Send a command and wait for its result; events that pass by are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], 120)[0], "Chromium does not answer"
            piece = os.read(self._read, 1 << 20)
            assert piece, "Chromium has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict) -> None:
        method, params = event.get("method"), event.get("params", {})
        self._loaded |= method == "Page.loadEventFired"
        if method in ("Runtime.exceptionThrown", "Log.entryAdded") or params.get("type") in ("error", "warning"):
            self.errors.append(params)

    def open(self, page: Path, width: int = 1400, height: int = 1000, scheme: str = "light") -> None:
        """Load a page in a window of the given size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.errors, self._loaded = [], False
        self.call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._note(self._next())

    def run(self, expression: str):
        """The value of a JavaScript expression (promises awaited)."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, expected) -> None:
        """Wait until an expression has the value that it is about to take; AssertionError after a minute."""
        end = time.monotonic() + 60
        while (value := self.run(expression)) != expected:
            assert time.monotonic() < end, (expression, value, expected)
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Real key strokes, as from a keyboard."""
        for key in keys:
            text = {"text": "\r"} if key == "Enter" else {}
            names = {"key": key, "code": key, "windowsVirtualKeyCode": self.KEYS[key]}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **names, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **names)

    def set(self, name: str, value) -> None:
        """Give a control a value and say so, as a user's input does."""
        self.run(f"""(control => {{ control.value = {json.dumps(value)};
            control.dispatchEvent(new Event("input", {{bubbles: true}})); }})(byId("{name}"))""")

    def screenshot(self, path: Path) -> np.ndarray:
        """What the window shows, once its pictures are decoded, uint8 (H,W,3)."""
        self.run("""new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))).then(() =>
            Promise.all([...document.images].filter(each => each.src).map(each => each.decode())).then(() => 1))""")
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome here")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, page):
    """The browser with the report loaded; the test fails if the page logged an error."""
    browser.open(page)
    yield browser
    assert browser.errors == []


COUNTS = """Object.fromEntries([...document.querySelectorAll("#counts div")].map(each =>
    [...each.children].map(child => child.textContent)))"""
NAMES = "[...document.querySelectorAll('#%s .name')].map(each => each.textContent.replaceAll('\\u200b', ''))"
FOCUS = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"


def expected_counts(images: list[dict], threshold: float) -> dict[str, str]:
    """What the page should show at a threshold."""
    pairs = [(r["anomaly_score"] >= threshold, r["ground_truth"]["is_anomalous"]) for r in images]
    tp, fp, tn, fn = (pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True)))

    def fraction(part: int, whole: int) -> str:
        return f"{part / whole:.3f}" if whole else "–"

    return {
        "TP: found": str(tp),
        "FP: false alarms": str(fp),
        "TN: passed": str(tn),
        "FN: missed": str(fn),
        "Precision": fraction(tp, tp + fp),
        "Recall": fraction(tp, tp + fn),
        "F1": fraction(2 * tp, 2 * tp + fp + fn),
    }


def is_wrong(record: dict, threshold: float = THRESHOLD) -> bool:
    return (record["anomaly_score"] >= threshold) != record["ground_truth"]["is_anomalous"]


def test_the_header_says_what_was_evaluated(opened):
    facts = opened.run("byId('facts').innerText")
    for words in (
        "mini <woven>",
        "test",
        "24: 12 normal, 12 anomalous",
        "1.618 (best F1 on validation)",
        "Image AUROC",
        "0.912",
        "AUPRO\n–",
    ):
        assert words in facts
    assert opened.run("document.title") == "Defect report: mini <woven>, test"


def test_counts_follow_the_threshold(opened, evaluation):
    images = evaluation[1]["images"]
    assert opened.run(COUNTS) == expected_counts(images, THRESHOLD)  # one score equals the threshold exactly
    seen = set()
    for control in ("slider", "number"):
        for threshold in (-5.0, 0.7, 1.2, 2.0, 2.5, 99.0):
            opened.set(control, str(threshold))
            applied = opened.run("state.threshold")
            assert applied == pytest.approx(min(max(threshold, opened.run("low")), opened.run("high")), abs=1e-3) or (
                control == "number" and applied == threshold
            )
            assert opened.run(COUNTS) == expected_counts(images, applied)
            wrong = sum(is_wrong(record, applied) for record in images)
            assert opened.run("document.querySelectorAll('.card.wrong').length") == wrong
            summary = opened.run("document.querySelector('#summary[aria-live=polite]').textContent")
            assert f"{applied:.3f}" in summary
            seen.add(summary)
    assert len(seen) > 6
    opened.set("number", "")  # half-typed numbers change nothing
    assert opened.run("state.threshold") == 99
    opened.run("byId('reset').click()")
    assert opened.run("[state.threshold, byId('number').value]") == [THRESHOLD, "1.618"]
    assert opened.run(COUNTS) == expected_counts(images, THRESHOLD)


def test_badges_go_from_green_to_red_and_say_it_in_words(opened, evaluation):
    cards = opened.run("""[...document.querySelectorAll("#evaluation .card")].map(card => [card.className,
        card.querySelector(".badge").textContent, card.querySelector(".badge").style.background.match(/[\\d.]+/g)[2],
        card.querySelector(".verdict").textContent])""")
    scores = sorted((record["anomaly_score"] for record in evaluation[1]["images"]), reverse=True)
    assert [text.split()[0] for _, text, _, _ in cards] == [f"{score:.3f}" for score in scores]
    assert [text.split()[1] == "anomalous" for _, text, _, _ in cards] == [score >= THRESHOLD for score in scores]
    hues = [float(hue) for _, _, hue, _ in cards]
    assert hues == sorted(hues) and hues[0] == pytest.approx(25) and hues[-1] == pytest.approx(145)
    assert {(kind, verdict) for kind, _, _, verdict in cards} == {
        ("card correct", "✓ Correct"),
        ("card wrong", "✗ False alarm"),
        ("card wrong", "✗ Missed"),
    }


def test_order_and_filters(opened, evaluation):
    images = evaluation[1]["images"]
    wrong = [record for record in images if is_wrong(record)]

    def shown(view: str = "evaluation") -> list[str]:
        return opened.run(NAMES % view)

    def names(records) -> list[str]:
        return [record["filename"] for record in records]

    assert shown() == names(sorted(images, key=lambda record: -record["anomaly_score"]))
    opened.set("sort", "error")
    margin = {r["filename"]: abs(r["anomaly_score"] - THRESHOLD) for r in images}
    worst = sorted(wrong, key=lambda record: -margin[record["filename"]])
    closest = sorted((r for r in images if not is_wrong(r)), key=lambda record: margin[record["filename"]])
    assert shown() == names(worst) + names(closest)
    opened.set("sort", "name")
    order = [name for name in shown() if name != ODD_NAME]
    assert order == sorted(order) and len(order) == 23
    for value, kept in (
        ("wrong", wrong),
        ("fp", [r for r in wrong if r["defect"] == "good"]),
        ("fn", [r for r in wrong if r["defect"] != "good"]),
    ):
        opened.set("show", value)
        assert kept and sorted(shown()) == sorted(names(kept))
    opened.set("show", "")
    opened.set("category", "tiles")
    opened.set("defect", "stain")
    stains = [r for r in images if (r["category"], r["defect"]) == ("tiles", "stain")]
    assert stains and sorted(shown()) == sorted(names(stains))
    assert opened.run("byId('shown').textContent") == f"Showing {len(stains)} of 24 images"
    assert opened.run(COUNTS) == expected_counts(images, THRESHOLD)  # of all images
    opened.run("byId('dataset-tab').click()")
    assert sorted(shown("dataset")) == sorted(names(stains))


def test_overlay_opacity_and_uncertainty(opened, page):
    first = "document.querySelector('#evaluation .map')"
    embedded = _Page(page.read_text(encoding="utf-8")).records["images"]
    top = max(embedded, key=lambda image: image["score"])
    opened.screenshot(page.parent / "loaded.png")
    assert opened.run(f"{first}.src") == top["heatmap"]
    opened.set("opacity", "0.85")
    assert set(opened.run("[...document.querySelectorAll('.map')].map(e => getComputedStyle(e).opacity)")) == {"0.85"}
    opened.run("document.querySelector('[name=map][value=uncertainty]').click()")
    assert opened.run(f"{first}.src") == top["uncertainty"]
    opened.run("document.querySelector('[name=map][value=heatmap]').click()")
    assert opened.run(f"{first}.src") == top["heatmap"]


def test_pictures_far_below_are_not_loaded(browser, page):
    browser.open(page, 400, 600)
    browser.screenshot(page.parent / "top.png")
    loaded = "[...document.querySelectorAll('#evaluation .image')].filter(each => each.src).length"
    assert 2 <= browser.run(loaded) < 24
    browser.run("scrollTo(0, document.body.scrollHeight)")
    browser.screenshot(page.parent / "bottom.png")
    assert browser.run("[...document.querySelectorAll('#evaluation .image')].at(-1).naturalWidth") == SIZE
    assert browser.errors == []


def test_the_data_set_view_shows_truth_and_masks(opened, evaluation):
    images = evaluation[1]["images"]
    opened.run("byId('dataset-tab').click()")
    badges = opened.run("[...document.querySelectorAll('#dataset .badge')].map(each => each.textContent)")
    assert badges == ["Anomalous" if record["ground_truth"]["is_anomalous"] else "Normal" for record in images]
    opened.run("scrollTo(0, document.body.scrollHeight)")
    masks = "[...document.querySelectorAll('#dataset .mask')].map(each => each.naturalWidth > 0)"
    opened.wait_for(masks, [record["mask_path"] is not None for record in images])
    summary = opened.run("byId('categories').innerText")
    assert "6 normal, 6 anomalous: hole 3, scratch 3; masks: 6" in summary and "masks: 5" in summary


# --- by keyboard alone ----------------------------------------------------------------------------------------
def test_everything_is_reached_by_tab_with_a_visible_focus(opened):
    order = []
    for _ in range(13):
        opened.press("Tab")
        order.append(opened.run(FOCUS))
        style = opened.run("(s => [s.outlineStyle, s.outlineWidth])(getComputedStyle(document.activeElement))")
        assert style == ["solid", "3px"], order
    assert order == [
        "evaluation-tab",
        "category",
        "defect",
        "slider",
        "number",
        "reset",
        "show",
        "sort",
        "INPUT",
        "opacity",
        "card correct",
        "card correct",
        "card correct",
    ]
    unnamed = opened.run("""[...document.querySelectorAll("button, input, select")].filter(each =>
        !(each.labels?.length || each.textContent.trim() || each.ariaLabel)).length""")
    assert unnamed == 0


def test_slider_and_tabs_obey_arrow_keys(opened, evaluation):
    opened.run("byId('slider').focus()")
    opened.press(*["ArrowRight"] * 6)
    moved = opened.run("state.threshold")
    assert moved > THRESHOLD and opened.run(COUNTS) == expected_counts(evaluation[1]["images"], moved)
    assert opened.run(COUNTS) != expected_counts(evaluation[1]["images"], THRESHOLD)
    opened.run("byId('evaluation-tab').focus()")
    opened.press("ArrowRight")
    assert opened.run(FOCUS) == "dataset-tab"
    visible = "['evaluation', 'dataset'].map(id => byId(id).offsetHeight > 0)"
    selected = "[...document.querySelectorAll('[role=tab]')].map(each => [each.ariaSelected, each.tabIndex])"
    assert opened.run(visible) == [False, True] and opened.run(selected) == [["false", -1], ["true", 0]]
    opened.press("ArrowLeft")
    assert opened.run(visible) == [True, False]


def test_the_large_view_by_keyboard(opened, evaluation):
    ranked = [r["filename"] for r in sorted(evaluation[1]["images"], key=lambda record: -record["anomaly_score"])]
    name = "byId('large').open && byId('large-name').textContent"
    opened.run("document.querySelector('#evaluation .card').focus()")
    opened.press("Enter")
    assert opened.run(name) == ranked[0]
    assert opened.run("[...document.querySelectorAll('#figures img')].length") == 4
    assert "threshold 1.618" in opened.run("byId('large').innerText")
    opened.press("ArrowRight")
    assert opened.run(name) == ranked[1]
    opened.press("ArrowLeft", "ArrowLeft")
    assert opened.run(name) == ranked[-1]  # round the corner
    assert "no defect to mark" in opened.run("byId('figures').innerText")
    opened.press("Escape")
    assert opened.run(name) is False
    opened.wait_for("document.activeElement.querySelector('.name').textContent.replaceAll('\\u200b', '')", ranked[-1])


# --- how it looks ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_the_window(browser, page, tmp_path, width, scheme):
    browser.open(page, width, 900, scheme)
    steps = {
        "evaluation": "document.querySelector('.card').scrollIntoView({block: 'center'})",
        "dialog": "document.querySelector('.card').click()",
        "dataset": "byId('large').close(), byId('dataset-tab').click(), scrollTo(0, 0)",
    }
    for view, action in steps.items():
        browser.run(action)
        shot = browser.screenshot(tmp_path / f"{view}_{width}_{scheme}.png")
        colors = len(np.unique(shot.astype(int) @ (1, 256, 65536)))  # text alone has about 1,000
        assert shot.shape == (900, width, 3) and colors > 3000
        assert browser.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
        clipped = """[...document.querySelectorAll("button, select, input, dd, .text, dialog")].filter(each =>
            each.getBoundingClientRect().right > innerWidth + 0.5).length"""
        assert browser.run(clipped) == 0
    assert (shot[5, 5].mean() < 60) == (scheme == "dark")
    assert browser.errors == []
