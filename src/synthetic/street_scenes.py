"""A miniature StreetHazards: procedural street scenes, written in the official on-disk layout.

Layout and classes follow StreetHazards (Hendrycks et al., arXiv:1911.11132): a scene is a street of some town in some
weather, and in test it holds objects that belong to none of the known classes. One seed gives the same bytes again.
"""

import json
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np

from src import settings
from src.synthetic.folders import fresh, run_tasks, save_png
from src.synthetic.paint import halve, mix, rgb, soften, to_uint8
from src.synthetic.street_anomalies import add_anomalies
from src.synthetic.street_canvas import UP, Canvas, X, Z, cloudy
from src.synthetic.street_objects import LINE, ROAD, Street, draw_skyline, furnish

VERSION = 4  # raise it whenever a scene's pixels change, so that old data sets are recognised
COUNTS = {"train": 600, "val": 100, "test": 150}
Split = namedtuple("Split", "top list folder towns")  # images are <top>/images/<folder>/<town>/<index>.png
SPLITS = {
    "train": Split("train", "train.odgt", "training", ("t1", "t2", "t3")),
    "val": Split("train", "validation.odgt", "validation", ("t4",)),
    "test": Split("test", "test.odgt", "test", ("t5", "t6")),
}
# gable and trees are shares, lengths are in metres (floors apart), haze is an extinction per metre
Town = namedtuple("Town", "facades gable floors setback half_road trees leaf weathers")
TOWNS = {
    "t1": Town(rgb("#954 #a75 #ba9"), 0.3, (2, 4), (0.3, 4), (4, 6), 0.35, rgb("#352"), "clear overcast rain"),
    "t2": Town(rgb("#cba #9ab #ba8"), 0.9, (1, 2), (4, 9), (3.5, 5), 0.5, rgb("#462"), "clear clear fog"),
    "t3": Town(rgb("#789 #bbb #667"), 0.0, (3, 6), (1, 6), (5.5, 8), 0.3, rgb("#353"), "clear overcast dusk"),
    "t4": Town(rgb("#cb8 #b86 #9a9"), 0.5, (2, 3), (1, 6), (4.5, 6.5), 0.4, rgb("#462"), "clear overcast fog"),
    "t5": Town(rgb("#a97 #854 #9ab"), 0.4, (2, 5), (0.3, 5), (4.5, 7), 0.35, rgb("#452"), "overcast dusk clear rain"),
    "t6": Town(rgb("#bba #a86 #8a9"), 0.8, (1, 3), (3, 8), (3.5, 6), 0.5, rgb("#662"), "clear clear overcast fog"),
}
Weather = namedtuple("Weather", "zenith horizon sun ambient haze clouds wet")
WEATHERS = {
    "clear": Weather(rgb("#47c"), rgb("#bde"), rgb("#ccbb9a"), rgb("#75808f"), 0.0022, 0.25, 0),
    "overcast": Weather(rgb("#949eab"), rgb("#ccd1d6"), rgb("#292929"), rgb("#c2c4c9"), 0.004, 0.9, 0),
    "fog": Weather(rgb("#adb5bd"), rgb("#c7ccce"), rgb("#1a1a1a"), rgb("#c2c4c7"), 0.017, 0.5, 0),
    "dusk": Weather(rgb("#4d5785"), rgb("#f0a87a"), rgb("#8f5c38"), rgb("#85808f"), 0.004, 0.4, 0),
    "rain": Weather(rgb("#707a87"), rgb("#a3abb3"), rgb("#141417"), rgb("#adb3ba"), 0.008, 1.0, 0.28),
}


def draw_sky(canvas, rng):
    """Fill what no ray has hit: a gradient, the glow of the sun and flat clouds in perspective."""
    weather, empty = canvas.weather, np.isinf(canvas.depth)
    rays = canvas.on_rays(np.stack([X, UP, Z]))[:, empty].T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    climb = np.clip(rays[:, 1:2], 0, 1)
    sky = mix(weather.horizon, weather.zenith, climb**0.6)
    place = rays[:, ::2] / (climb + 0.12) * rng.uniform(10, 22) + rng.uniform(0, 256, 2)
    cover = np.clip(0.55 * cloudy(*place.T) + 1.4 * weather.clouds - 0.9, 0, 0.85)[:, None]
    sky += cover * (np.clip(weather.ambient * 1.25 + weather.sun * 0.35, 0, 1) - sky)
    glow = np.clip(rays @ canvas.sun, 0, 1)[:, None] ** 24
    canvas.rgb[empty] = sky + 0.35 * glow * weather.sun


def _reflect(light, canvas):
    """Add the picture above the horizon, upside down, to a wet road."""
    horizon = canvas.project(canvas.eye + canvas.ahead * (1e6, 0, 1e6))[0]
    mirrored = np.clip(2 * horizon - np.arange(len(light)), 0, len(light) - 1).astype(int)
    road = np.isin(canvas.label, (ROAD, LINE))
    light[road] += canvas.weather.wet * (light[mirrored][road] - light[road])


def develop(canvas, rng) -> np.ndarray:
    """The camera: haze, wet road, 2x2 averaging, blur, exposure, vignette and noise; returns uint8 (H,W,3)."""
    weather = canvas.weather
    distance = np.where(np.isinf(canvas.depth), 0, canvas.depth)
    light = mix(weather.horizon, canvas.rgb, np.exp(-weather.haze * distance)[..., None])
    if weather.wet:
        _reflect(light, canvas)
    light = soften(halve(light), rng.uniform(0, 0.5))
    height, width = light.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[:, None]
    light = light * rng.uniform(0.82, 1.12) * (1 - rng.uniform(0.02, 0.12) * (x * x + y * y))
    light += rng.normal(0, rng.uniform(0.006, 0.02), (height, width, 1)) + rng.normal(0, 0.006, light.shape)
    return to_uint8(255 * light)


def _town(split, index):
    return SPLITS[split].towns[index % len(SPLITS[split].towns)]


def render_scene(split: str, index: int, size=(180, 320), seed=settings.SEED, anomalous: bool | None = None):
    """Draw scene `index` of a split; the same arguments always give the same bytes. `anomalous`: None = in test alone.

    Returns (image uint8 (H, W, 3), mask uint8 (H, W) with classes 0..12 and in test 13, info dict with the town,
    the weather and for every anomaly its family and visible box (x0, y0, x1, y1) in pixels, ends exclusive).
    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"render_scene: unknown split {split!r}; use one of {', '.join(SPLITS)}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, list(SPLITS).index(split), index]))
    town = TOWNS[_town(split, index)]
    weather, street = str(rng.choice(town.weathers.split())), Street(town, rng)
    canvas = Canvas(size, WEATHERS[weather], rng, street.half * rng.uniform(0.2, 0.6))
    canvas.quad(-500 * X, X, Z, (1000, 600), street.ground)
    draw_skyline(canvas, town, rng)
    furnish(canvas, street, town, rng)
    wanted = split == "test" if anomalous is None else anomalous
    anomalies = add_anomalies(canvas, street, rng) if wanted else []
    draw_sky(canvas, rng)
    info = {"town": _town(split, index), "weather": weather, "anomalies": anomalies}
    return develop(canvas, rng), canvas.label[::2, ::2].copy(), info


def _row(split, index, size) -> dict:
    """A scene's entry in the list of its split; its paths are relative to the root of the data set."""
    top, place = SPLITS[split].top, f"{SPLITS[split].folder}/{_town(split, index)}/{index}.png"
    files = {"fpath_img": f"{top}/images/{place}", "fpath_segm": f"{top}/annotations/{place}"}
    return files | {"width": size[1], "height": size[0]}


def _write_scene(scene, folder, size, seed):
    image, mask, _ = render_scene(*scene, size, seed)
    row = _row(*scene, size)
    save_png(image, folder / row["fpath_img"])
    save_png(mask + 1, folder / row["fpath_segm"])


def write_dataset(root: Path, counts=COUNTS, size=(180, 320), seed=settings.SEED, workers=None) -> None:
    """Write the miniature data set under root in StreetHazards' layout: labels 1..14 and .odgt lists.

    counts maps split to number of scenes, size is (H,W) in pixels; for workers see `folders.run_tasks`. A data set of
    this version, seed, counts and size is kept. Raises InputError as `folders.fresh` does.
    """
    with fresh(root, "scenes", VERSION, seed=seed, counts=dict(counts), size=list(size)) as folder:
        if folder is None:
            return
        scenes = [(split, index) for split, count in counts.items() for index in range(count)]
        run_tasks(partial(_write_scene, folder=folder, size=tuple(size), seed=seed), scenes, "scenes", workers)
        for split, count in counts.items():
            rows = [_row(split, index, size) for index in range(count)]
            (folder / SPLITS[split].top / SPLITS[split].list).write_text(json.dumps(rows, indent=1))
