"""Miniature inspection photographs with defects, written in MVTec AD's on-disk layout.

Three categories (woven fabric, printed tiles, a bolt) and four kinds of defect in each. The layout is that of MVTec AD
(Bergmann et al., CVPR 2019). A surface has colour and height; a defect changes the surface, and both the faulty and
the sound surface are then photographed by the same camera in the same light, so that their difference is the mask.
"""

import json
import shutil
from collections import namedtuple
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import fft, ndimage
from tqdm import tqdm

from src import settings

__all__ = ["CATEGORIES", "COUNTS", "DEFECTS", "VERSION", "render", "write_dataset"]

VERSION = 1  # raise it whenever a pixel changes, so that old data sets are recognised
CATEGORIES = ("fabric", "tiles", "bolt")
DEFECTS = ("scratch", "hole", "stain", "misplaced")
SPLITS = ("train", "test")
COUNTS = {"train": 80, "test": 20, "defect": 10, "teacher": 160}  # train and test: good images of a category
SIZE, TEACHER_SIZE = 128, 160  # pixels a side
# Strength of defect i is drawn from range i % 10: one in ten nearly invisible, five subtle, four clear
STRENGTHS = ((0.0, 0.05),) + ((0.08, 0.35),) * 5 + ((0.4, 1.0),) * 4
CONTRAST = {"fabric": (16, 80), "tiles": (14, 70), "bolt": (14, 70)}  # strongest change at strength 0 and 1, of 255
VISIBLE = 8  # a pixel belongs to the mask where a channel changes by more than this, of 255
AREA = (0.002, 0.08)  # least and largest mask, share of the image
MARKER = ".version"

Surface = namedtuple("Surface", "colour height body")  # (S,S,3) in 0..1, (S,S) in pixels, (S,S) bool: where defects lie
Slip = namedtuple("Slip", "rng strength")  # what `misplaced` is drawn from
Finish = namedtuple("Finish", "ambient gloss sharpness")
FINISH = {"fabric": Finish(0.45, 0.04, 4), "tiles": Finish(0.6, 0.12, 24), "bolt": Finish(0.3, 0.5, 14)}
Y, X = (np.mgrid[: 2 * SIZE, : 2 * SIZE].astype(np.float32) + 0.5) / 2 - SIZE / 2  # drawn at twice the image's size


def _noise(rng, power: float, side=2 * SIZE) -> np.ndarray:
    """Noise of unit variance (side, side), amplitudes 1 / frequency**power."""
    spectrum = fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    radius[0, 0] = np.inf  # no mean
    noise = fft.irfft2(spectrum / radius**power)
    return (noise / noise.std()).astype(np.float32)


def _turned(x, y, angle: float):
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _step(edge, softness=0.5):
    """0 where edge is negative and 1 where it is positive, with a linear ramp `softness` wide."""
    return np.clip(edge / softness + 0.5, 0, 1)


def _mix(base, other, share):
    return base + np.asarray(share)[..., None] * (np.asarray(other, np.float32) - base)


def _tint(rng, colour, amount: float) -> np.ndarray:
    return np.clip(np.array(colour) * rng.normal(1, amount) * rng.normal(1, amount / 3, 3), 0, 1).astype(np.float32)


def _fabric(rng, slip) -> Surface:
    """A 2/2 twill of dark warp and light weft: `over` says which of the two lies on top at a crossing."""
    x, y = _turned(X, Y, rng.normal(0, np.radians(1.5)))
    pitch, phase = 5.6 * rng.uniform(0.97, 1.03), rng.uniform(64, 128, 2)
    u, v = (axis / pitch + start + 0.22 * _noise(rng, 2.2) for axis, start in zip((x, y), phase, strict=True))
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    if slip:
        thread, start = (int(p) + slip.rng.integers(-7, 8) for p in phase)
        stretch, warp_fails = 3 + 9 * slip.strength, slip.rng.random() < 0.5
        if not warp_fails:
            thread, start = int(phase[1]) + thread - int(phase[0]), int(phase[0]) + start - int(phase[1])

    def over(i, j):
        regular = (i - j) % 4 < 2
        if not slip:
            return regular
        own, along = (i, j) if warp_fails else (j, i)
        return np.where((own == thread) & (abs(along - start) <= stretch / 2), not warp_fails, regular)

    warp = over(i, j)
    across, along = np.where(warp, u - i, v - j) - 0.5, np.where(warp, v - j, u - i) - 0.5
    step = np.where(along > 0, 1, -1)
    dives = np.where(warp, ~over(i, j + step), over(i + step, j))
    tone = 1 + rng.normal(0, 0.07, (2, 256))[np.where(warp, 0, 1), np.where(warp, i, j)]
    width = 0.96 + rng.normal(0, 0.04, (2, 256))[np.where(warp, 0, 1), np.where(warp, i, j)]
    height = np.sqrt(np.clip(1 - (2 * across / width) ** 2, 0, 1)) * (1 - 0.8 * dives * (2 * along) ** 2)
    fibre = 1 + 0.05 * np.sin(2 * np.pi * (1.5 * along + across)) + 0.08 * _noise(rng, 0.2)
    colour = np.where(warp[..., None], _tint(rng, (0.33, 0.41, 0.53), 0.04), _tint(rng, (0.78, 0.75, 0.69), 0.04))
    colour = colour * (tone * fibre * (0.45 + 0.55 * height))[..., None]
    return Surface(colour, 1.3 * height, np.ones_like(warp))


def _tiles(rng, slip) -> Surface:
    """Glazed tiles in a grid; quarters of a printed rosette meet across the grout in blocks of two by two."""
    x, y = _turned(X, Y, rng.normal(0, np.radians(1.5)))
    pitch, phase = 34 * rng.uniform(0.98, 1.02), rng.uniform(8, 10, 2)
    u, v = (axis / pitch + start for axis, start in zip((x, y), phase, strict=True))
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b = np.where(i % 2, u - i, i + 1 - u), np.where(j % 2, v - j, j + 1 - v)  # 0..1 from the rosette's middle
    wear = 0.012 * _noise(rng, 1.2)
    p, q = a + wear, b + wear
    if slip:
        here = (i == int(phase[0]) - slip.rng.integers(2)) & (j == int(phase[1]) - slip.rng.integers(2))
        if slip.strength > 0.3:  # laid the wrong way round
            p, q = np.where(here, 1 - p, p), np.where(here, q if slip.strength < 0.6 else 1 - q, q)
        else:
            shift = (0.035 + 0.2 * slip.strength) * np.exp(1j * slip.rng.uniform(0, 2 * np.pi))
            p, q = p + shift.real * here, q + shift.imag * here
    radius, soft, shape = np.hypot(p, q), 0.03, i.shape
    offset = rng.normal(0, 0.006, (2, 32, 32))[:, i, j]
    radius = radius + offset[0]
    ring = _step(0.09 - abs(radius - 0.72), soft)
    petal = _step(0.34 - abs(p - q) * 1.6 - abs(radius - 0.33), soft)
    corner = _step(0.3 - np.hypot(1 - p, 1 - q) + offset[1], soft)
    eye = _step(0.13 - radius, soft)
    colour = np.broadcast_to(_tint(rng, (0.86, 0.84, 0.78), 0.03), (*shape, 3))
    blue, ochre = _tint(rng, (0.20, 0.31, 0.50), 0.05), _tint(rng, (0.76, 0.54, 0.26), 0.05)
    for share, ink in ((ring, blue), (petal, blue), (corner, ochre), (eye, ochre)):
        colour = _mix(colour, ink, 0.9 * share * np.clip(0.95 + 0.08 * _noise(rng, 0.8), 0, 1))
    glaze = rng.normal(1, 0.025, (32, 32))[i, j] * (1 + 0.02 * _noise(rng, 1.0))
    edge = np.minimum(np.minimum(u - i, i + 1 - u), np.minimum(v - j, j + 1 - v)) * pitch  # pixels to the joint's middle
    joint = _step(1.1 - edge + 0.15 * _noise(rng, 0.8), 0.7)
    grout = _tint(rng, (0.52, 0.50, 0.47), 0.05) * (1 + 0.08 * _noise(rng, 0.3))[..., None]
    height = np.clip(edge - 1, 0, 1.6) ** 0.5 + 0.03 * _noise(rng, 1.3)
    return Surface(_mix(colour * glaze[..., None], grout, joint), height, np.ones(shape, bool))


def _bolt(rng, slip) -> Surface:
    """A hexagon bolt seen from the side, axis within about 12 degrees of its usual direction."""
    angle, (dx, dy) = np.radians(-35 + rng.uniform(-8, 8)), rng.uniform(-4, 4, 2)
    x, y = _turned(X - dx, Y - dy, angle)
    x, y = (axis / rng.uniform(0.97, 1.03) for axis in (x, y))
    thread_from, pitch, shift = rng.uniform(-12, -9), 4.4, 0.0
    cut = np.zeros_like(x)
    if slip and slip.rng.random() < 0.5:
        shift = (0.8 + 4 * slip.strength) * slip.rng.choice((-1, 1))
    elif slip:
        middle, half = slip.rng.uniform(0, 34), 3 + 6 * slip.strength
        cut = _step(half - abs(x - middle), 2) * (0.45 + 0.55 * slip.strength)
    core, side = 10.0, 21.0
    theta = np.arcsin(np.clip(y / core, -1, 1))
    turn = (x / pitch - theta / (2 * np.pi) + rng.uniform(0, 1)) % 1
    ridge = (1 - 2 * abs(turn - 0.5)) * _step(x - thread_from, 3) * (1 - cut)
    radius = np.where(x < thread_from, core, core - 1.9 + 1.9 * ridge) - np.clip(x - 47, 0, 9)
    shank = np.sqrt(np.clip(radius**2 - y**2, 0, None)) * (abs(x - 8) < 42)
    w = abs(y - shift)
    head = np.minimum(side * 0.866, 1.732 * (side - w)) - np.clip(-46.5 - x, 0, 9) - 0.5 * np.clip(w - 12, 0, 9)
    flange = np.sqrt(np.clip(23.5**2 - (y - shift) ** 2, 0, None))
    head = np.where(abs(x + 41) < 8, np.maximum(head, 0), 0) * _step(side - w)
    flange = flange * (abs(x + 33) < 2.2)
    z = np.maximum(np.maximum(shank, head), flange)
    body = z > 0.3
    steel = _tint(rng, (0.52, 0.53, 0.55), 0.04) * (1 + 0.05 * _noise(rng, 0.9))[..., None]
    paper = _tint(rng, (0.70, 0.73, 0.75), 0.03) * (1 + 0.012 * _noise(rng, 0.3))[..., None]
    shadow = ndimage.gaussian_filter(np.roll(body.astype(np.float32), (9, 7), (0, 1)), 7) * 0.5
    brushed = 0.12 * ndimage.gaussian_filter1d(_noise(rng, 0), 3, axis=0)
    colour = np.where(body[..., None], steel, paper * (1 - shadow)[..., None])
    return Surface(colour, np.where(body, z + brushed, 0), body)


DRAW = {"fabric": _fabric, "tiles": _tiles, "bolt": _bolt}


def _line(points, width: int) -> np.ndarray:
    """A soft line (S,S) in 0..1 through points (n,2) given as x, y in pixels from the middle."""
    sheet = Image.new("L", (2 * SIZE, 2 * SIZE))
    ImageDraw.Draw(sheet).line([tuple(p) for p in (np.asarray(points) + SIZE / 2) * 2], 255, width)
    return ndimage.gaussian_filter(np.asarray(sheet, np.float32) / 255, 0.7)


def _curve(rng, middle, length: float) -> np.ndarray:
    """Points (24,2) of an arc around the middle, at random direction and bend."""
    t, direction, bend = np.linspace(-0.5, 0.5, 24), np.exp(1j * rng.uniform(0, 2 * np.pi)), rng.uniform(-0.5, 0.5)
    arc = length * direction * (t + 1j * bend * (t**2 - 0.1))
    return np.stack([arc.real, arc.imag], 1) + middle


def _blob(rng, middle, radius: float, rough: float, softness: float) -> np.ndarray:
    """An irregular ellipse (S,S), 0 outside to 1 inside."""
    x, y = _turned(X - middle[0], Y - middle[1], rng.uniform(0, np.pi))
    reach = np.hypot(x * rng.uniform(0.75, 1), y * rng.uniform(1, 1.3)) / radius
    return _step(1 - reach + rough * np.clip(_noise(rng, 1.6), -2, 2), softness)


def _mark(surface, kind: str, rng) -> Surface:
    """The surface with a scratch, hole or stain of full strength on its body."""
    ys, xs = np.nonzero(surface.body[24:-24, 24:-24])
    at = rng.integers(len(xs))
    middle = (np.array([xs[at], ys[at]]) + 24.5) / 2 - SIZE / 2
    if kind == "scratch":
        share = _line(_curve(rng, middle, rng.uniform(25, 55)), int(rng.integers(2, 5)))
        share *= np.clip(0.75 + 0.35 * _noise(rng, 1.2), 0, 1)
        target, dent = rng.choice([0.1, 0.95]), 0.8
    elif kind == "hole":
        share = _blob(rng, middle, rng.uniform(3.5, 8), 0.12, 0.3)
        target, dent = 0.06 + 0.3 * surface.colour * (0.5 + 0.2 * _noise(rng, 0.8))[..., None], 3.0
    else:
        share = _blob(rng, middle, rng.uniform(8, 17), 0.22, 0.5)
        rim = 4 * share * (1 - share)
        share = share * (0.75 + 0.1 * _noise(rng, 1.0)) + 0.25 * rim
        target, dent = surface.colour * _tint(rng, (0.42, 0.33, 0.22), 0.1), 0.0
    share = np.clip(share, 0, 1) * surface.body
    return surface._replace(colour=_mix(surface.colour, target, share), height=surface.height - dent * share)


def _dusty(surface, rng) -> Surface:
    """Harmless lint and dust, which normal images hold as well."""
    colour = surface.colour
    for _ in range(rng.poisson(3)):
        spot = _line(_curve(rng, rng.uniform(-60, 60, 2), rng.uniform(0.5, 1.5)), int(rng.integers(2, 4)))
        colour = _mix(colour, rng.choice([0.15, 0.95]), spot * rng.uniform(0.2, 0.7))
    for _ in range(rng.poisson(0.8)):
        colour = _mix(colour, 0.9, _line(_curve(rng, rng.uniform(-60, 60, 2), rng.uniform(4, 9)), 1) * 0.5)
    return surface._replace(colour=colour)


def _photograph(surface, finish, rng) -> np.ndarray:
    """Light, lens and exposure: float32 (H,W,3), 0..255, without the sensor's noise."""
    dy, dx = np.gradient(surface.height, 0.5)
    azimuth, slope = rng.normal(-2.2, 0.12), rng.normal(0, 0.0011, 2)
    sun = np.array([0.6 * np.cos(azimuth), 0.6 * np.sin(azimuth), 0.8])
    half = (sun + (0, 0, 1)) / np.linalg.norm(sun + (0, 0, 1))
    norm = np.sqrt(1 + dx**2 + dy**2)
    diffuse = np.clip((sun[2] - dx * sun[0] - dy * sun[1]) / norm, 0, None) / sun[2]
    glint = np.clip((half[2] - dx * half[0] - dy * half[1]) / norm, 0, 1) ** finish.sharpness
    light = surface.colour * (finish.ambient + (1 - finish.ambient) * diffuse)[..., None]
    light = light + finish.gloss * (glint - half[2] ** finish.sharpness)[..., None]
    light = light * (1 + slope[0] * X + slope[1] * Y - 1.2e-5 * (X**2 + Y**2) + 0.012 * _noise(rng, 2.5))[..., None]
    light = light.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
    light = ndimage.gaussian_filter(light, (*[rng.uniform(0.3, 0.6)] * 2, 0))
    return 255 * light * rng.uniform(0.93, 1.05) * rng.normal(1, 0.008, 3)


def _attempt(category: str, kind: str, keys, attempt: int, strength: float):
    """One drawing of a defect: image uint8 (H,W,3), mask bool (H,W) and the same image without the defect."""
    looks, camera = ([*keys, stream] for stream in (0, 1))

    def shoot(slip=None, marks=None):
        surface = DRAW[category](np.random.default_rng(looks), slip)
        if marks:
            surface = _mark(surface, kind, marks)
        rng = np.random.default_rng(camera)
        return _photograph(_dusty(surface, rng), FINISH[category], rng), rng

    clean, rng = shoot()
    photo, faults = clean, np.random.default_rng([*keys, 2, attempt])
    if kind == "misplaced":
        photo = shoot(Slip(faults, strength))[0]
    elif kind != "good":
        change = shoot(marks=faults)[0] - clean
        low, high = CONTRAST[category]
        photo = clean + change * min(1, (low + strength * (high - low)) / np.percentile(abs(change), 99.9))
    grain = rng.normal(0, rng.uniform(1.2, 2.5), clean.shape[:2])[..., None] + rng.normal(0, 1, clean.shape)
    image, twin = (np.clip(shot + grain + 0.5, 0, 255).astype(np.uint8) for shot in (photo, clean))
    changed = abs(image.astype(int) - twin).max(-1) > VISIBLE
    return image, ndimage.binary_closing(np.pad(changed, 2), iterations=2)[2:-2, 2:-2], twin


def render(category: str, kind: str, index: int, split="test", seed: int = settings.SEED):
    """Photograph image `index` of a kind ("good" or one of DEFECTS); it depends on the five arguments alone.

    Returns (image uint8 (H,W,3), mask bool (H,W): what the defect has visibly changed). The mask of a defect covers a
    share of the image within AREA, gaps of up to four pixels in it are closed; that of a good image is empty. Raises
    ValueError for an unknown category, kind or split, and for defects in train.
    """
    if category not in CATEGORIES or split not in SPLITS or kind not in ("good", *DEFECTS[: 4 * (split == "test")]):
        raise ValueError(f"render: no {category}/{split}/{kind}; use {CATEGORIES}, {SPLITS}, 'good' or in test {DEFECTS}")
    keys = [seed, CATEGORIES.index(category), SPLITS.index(split), ("good", *DEFECTS).index(kind), index]
    strength = np.random.default_rng([*keys, 3]).uniform(*STRENGTHS[index % 10])
    for attempt in range(50):
        image, mask, _ = _attempt(category, kind, keys, attempt, strength)
        if kind == "good" or AREA[0] <= mask.mean() <= AREA[1]:
            return image, mask
    raise RuntimeError(f"{category}/{split}/{kind}/{index}: no defect of a visible size in 50 attempts")


def _fill(rng) -> np.ndarray:
    """A random filling (T,T,3): flat, graded, striped, checked or cloudy in two colours."""
    side = TEACHER_SIZE
    x, y = _turned(*np.meshgrid(np.arange(side), np.arange(side)), rng.uniform(0, np.pi))
    period, kind = 2 * np.pi / np.exp(rng.uniform(1.1, 3.7)), rng.integers(5)
    if kind < 2:
        share = (x / side * rng.uniform(-1, 1) + 0.5) * kind
    elif kind == 2:
        share = 0.5 + rng.uniform(0.5, 3) * np.sin(x * period)
    elif kind == 3:
        share = 0.5 + rng.uniform(0.5, 4) * np.sin(x * period) * np.sin(y * period * rng.uniform(0.6, 1.6))
    else:
        share = 0.5 + rng.uniform(0.2, 0.8) * _noise(rng, rng.uniform(0.2, 2), side)
    return _mix(rng.uniform(0, 1, 3), rng.uniform(0, 1, 3), np.clip(share, 0, 1)) + 0 * x[..., None]


def _outline(rng) -> np.ndarray:
    """The shape of one layer (T,T) in 0..1: a blob, polygon, bundle of strokes, dots or letter-like marks."""
    sheet = Image.new("L", (2 * TEACHER_SIZE,) * 2)
    pen, middle, reach = ImageDraw.Draw(sheet), rng.uniform(0, 2 * TEACHER_SIZE, 2), np.exp(rng.uniform(2.5, 5.2))
    kind, width = rng.integers(5), int(rng.integers(2, 14))
    if kind == 0:
        pen.ellipse([*(middle - reach * rng.uniform(0.3, 1, 2)), *(middle + reach * rng.uniform(0.3, 1, 2))], 255)
    elif kind == 1:
        turns = np.exp(1j * np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7))))
        pen.polygon([(z.real, z.imag) for z in turns * reach + complex(*middle)], 255)
    for _ in range(rng.integers(3, 25) if kind > 1 else 0):
        spot = middle + rng.normal(0, reach, 2)
        if kind == 2:
            pen.line([*spot, *(spot + rng.normal(0, reach, 2))], 255, width)
        elif kind == 3:
            pen.ellipse([*(spot - width), *(spot + width)], 255)
        else:
            pen.line([tuple(spot + 2 * width * p) for p in rng.integers(-1, 2, (4, 2))], 255, 1 + width // 2)
    return np.asarray(sheet.resize((TEACHER_SIZE,) * 2, Image.Resampling.BOX), np.float32) / 255


def _teacher_picture(index: int, seed: int) -> np.ndarray:
    """A stand-in for a natural photograph, uint8 (T,T,3): layers of random shape and filling."""
    rng = np.random.default_rng([seed, len(CATEGORIES), index])
    picture = _fill(rng)
    for _ in range(rng.integers(4, 16)):
        picture = _mix(picture, _fill(rng), _outline(rng)[..., None][..., 0] * rng.uniform(0.5, 1))
    picture = ndimage.gaussian_filter(picture, (*[rng.uniform(0, 1)] * 2, 0)) * 255
    return np.clip(picture + rng.normal(0, rng.uniform(0, 5), picture.shape) + 0.5, 0, 255).astype(np.uint8)


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=4)


def _clear(folder: Path) -> None:
    """Delete a data set that was written here; raise InputError for anything else but an empty folder."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise settings.InputError(f"{folder} holds files that are not this data set's; choose another root")
    shutil.rmtree(folder, ignore_errors=not folder.exists())


def write_dataset(root: Path, seed: int = settings.SEED, counts=COUNTS) -> None:
    """Write the mini data under root: <category>/{train,test,ground_truth}/<kind>/NNN.png and teacher/NNN.png.

    counts has the keys of COUNTS. All is written to <root>.partial, which replaces root at the end; a whole data set
    of the same version, seed and counts is kept. Raises InputError if root holds anything but a data set written here.
    """
    root, wanted = Path(root), json.dumps({"version": VERSION, "seed": seed, "counts": dict(counts)})
    if (root / MARKER).is_file() and (root / MARKER).read_text() == wanted:
        return
    unfinished = root.with_name(root.name + ".partial")
    _clear(unfinished)
    unfinished.mkdir(parents=True)
    (unfinished / MARKER).write_text("unfinished")
    tasks = [(c, "good", i, s) for c in CATEGORIES for s in SPLITS for i in range(counts[s])]
    tasks += [(c, d, i, "test") for c, d, i in product(CATEGORIES, DEFECTS, range(counts["defect"]))]
    for category, kind, index, split in tqdm(tasks, "textures", disable=None):
        image, mask = render(category, kind, index, split, seed)
        _save(image, unfinished / category / split / kind / f"{index:03d}.png")
        if mask.any():
            _save(mask, unfinished / category / "ground_truth" / kind / f"{index:03d}_mask.png")
    for index in range(counts["teacher"]):
        _save(_teacher_picture(index, seed), unfinished / "teacher" / f"{index:03d}.png")
    (unfinished / MARKER).write_text(wanted)
    _clear(root)
    unfinished.rename(root)
