"""Miniature inspection photographs with defects, written in the layout of MVTec AD (Bergmann et al., CVPR 2019).

Three categories (twill fabric, printed tiles, a bolt) and four kinds of defect in each. A surface has colour and
height; the sound and the faulty surface are photographed by one camera in one light: what differs is the mask.
"""

import math
from collections import namedtuple
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from src import settings
from src.synthetic.folders import fresh, run_tasks, save_png
from src.synthetic.paint import halve, mix, noise, rotate, step, subpixels, to_uint8

VERSION = 1  # raise it whenever a pixel changes, so that old data sets are recognised
CATEGORIES, SPLITS = ("fabric", "tiles", "bolt"), ("train", "test")
DEFECTS = ("scratch", "hole", "stain", "misplaced")
KINDS = ("good", *DEFECTS)
COUNTS = {"train": 80, "test": 20, "defect": 10, "teacher": 160}  # train and test: good images of a category
SIZE, TEACHER_SIZE = 128, 160  # pixels a side
# Strength of defect i is drawn from range i % 10: one in ten nearly invisible, five subtle, four clear
STRENGTHS = ((0.0, 0.05),) + ((0.2, 0.5),) * 5 + ((0.6, 1.0),) * 4
# Strongest change that a mark makes at strength 0 and 1, of 255 grey levels
CONTRAST = {"fabric": (16, 140), "tiles": (16, 190), "bolt": (16, 120)}
VISIBLE = 8  # a pixel belongs to the mask where a channel changes by more than this, of 255
AREA = (0.002, 0.08)  # smallest and largest mask, share of the image

Surface = namedtuple("Surface", "colour height body")  # (S,S,3) 0..1, (S,S) in pixels, (S,S) bool: where marks may be
Slip = namedtuple("Slip", "rng strength")  # given to a category that is to misplace a part
Finish = namedtuple("Finish", "ambient gloss sharpness")
FINISH = {"fabric": Finish(0.45, 0.04, 4), "tiles": Finish(0.6, 0.12, 24), "bolt": Finish(0.36, 0.5, 14)}
Y, X = subpixels(SIZE).astype(np.float32) - SIZE / 2  # pixels from the middle; drawn at twice the image's size


def _noise(rng, power: float) -> np.ndarray:
    return noise(rng, power, 2 * SIZE)


def _blend(base, other, share) -> np.ndarray:
    """base mixed with other, both (S,S,3) or (3,), by a share (S,S)."""
    return mix(base, np.asarray(other, np.float32), np.asarray(share, np.float32)[..., None])


def _tint(rng, colour, amount: float) -> np.ndarray:
    return (np.array(colour) * rng.normal(1, amount) * rng.normal(1, amount / 5, 3)).astype(np.float32)


def _lattice(rng, pitch: float, start, degrees: float):
    """Coordinates (S,S), in cells of `pitch` pixels, along the axes of a grid that is turned by some degrees."""
    axes = rotate(X, Y, rng.normal(0, np.radians(degrees)))
    return [axis / pitch + offset for axis, offset in zip(axes, start, strict=True)]


def _fabric(rng, slip) -> Surface:
    """A 2/2 twill of dark warp and light weft; misplaced: a warp thread is missing over a stretch."""
    pitch, phase = 5.6 * rng.uniform(0.97, 1.03), rng.uniform(64, 128, 2)
    u, v = (axis + 0.2 * _noise(rng, 2.2) for axis in _lattice(rng, pitch, phase, 1.5))
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    lost_thread, lost_from = (phase + slip.rng.integers(-7, 8, 2)).astype(int) if slip else (0, 0)
    reach = 1.5 + 5 * slip.strength if slip else 0

    def is_lost(i, j):
        return (i == lost_thread) & (abs(j - lost_from) <= reach)

    def is_warp(i, j):  # whether the warp lies on top at a crossing
        return ((i - j) % 4 < 2) & ~is_lost(i, j)

    warp = is_warp(i, j)
    across = np.where(warp, u - i, v - j) - 0.5
    along = np.where(warp, v - j, u - i) - 0.5
    ahead = np.where(along > 0, 1, -1)
    dives = np.where(warp, ~is_warp(i, j + ahead), is_warp(i + ahead, j))
    thread = np.where(warp, 0, 1), np.where(warp, i, j)
    tone = 1 + rng.normal(0, 0.06, (2, 256))[thread]
    width = 0.96 + rng.normal(0, 0.03, (2, 256))[thread]
    height = np.sqrt(np.clip(1 - (2 * across / width) ** 2, 0, 1)) * (1 - 0.8 * dives * (2 * along) ** 2)
    height = height * (1 - 0.45 * is_lost(i, j))  # nothing holds the weft up here
    fibre = 1 + 0.05 * np.sin(2 * np.pi * (1.5 * along + across)) + 0.08 * _noise(rng, 0.2)
    dark, light = _tint(rng, (0.33, 0.41, 0.53), 0.02), _tint(rng, (0.78, 0.75, 0.69), 0.02)
    brightness = (tone * fibre * (0.45 + 0.55 * height)).astype(np.float32)
    colour = np.where(warp[..., None], dark, light) * brightness[..., None]
    return Surface(colour, 1.3 * height, np.ones_like(warp))


def _tiles(rng, slip) -> Surface:
    """Glazed tiles, two by two to a printed rosette; misplaced: the print of one tile is turned and shifted."""
    pitch, phase = 34 * rng.uniform(0.98, 1.02), rng.uniform(8, 10, 2)
    u, v = _lattice(rng, pitch, phase, 1)
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    wear = 0.01 * _noise(rng, 1.2)
    p, q = np.where(i % 2, u - i, i + 1 - u) + wear, np.where(j % 2, v - j, j + 1 - v) + wear
    if slip:
        slipped = (i == int(phase[0]) - slip.rng.integers(2)) & (j == int(phase[1]) - slip.rng.integers(2))
        turned = rotate(p - 0.5, q - 0.5, (0.06 + 0.7 * slip.strength) * slip.rng.choice((-1, 1)))
        p, q = np.where(slipped, 0.5 + np.array(turned) + slip.rng.normal(0, 0.05, (2, 1, 1)), (p, q))
    misfit = rng.normal(0, 0.006, (2, 32, 32))[:, i, j]
    radius = np.hypot(p, q) + misfit[0]
    ring, middle = 0.09 - abs(radius - 0.72), 0.13 - radius
    petal = 0.34 - abs(p - q) * 1.6 - abs(radius - 0.33)
    corner = 0.3 - np.hypot(1 - p, 1 - q) + misfit[1]
    colour = np.broadcast_to(_tint(rng, (0.80, 0.78, 0.72), 0.015), (*i.shape, 3))
    blue, ochre = _tint(rng, (0.20, 0.31, 0.50), 0.03), _tint(rng, (0.76, 0.54, 0.26), 0.03)
    density = 0.86 + 0.07 * _noise(rng, 0.8)
    for shape, ink in ((ring, blue), (petal, blue), (corner, ochre), (middle, ochre)):
        colour = _blend(colour, ink, density * step(shape, 0.03))
    glaze = rng.normal(1, 0.012, (32, 32)).astype(np.float32)[i, j] * (1 + 0.02 * _noise(rng, 1.0))
    edge = pitch * (0.5 - np.maximum(abs(u - i - 0.5), abs(v - j - 0.5)))  # pixels to the middle of the joint
    grout = _tint(rng, (0.52, 0.50, 0.47), 0.03) * (1 + 0.08 * _noise(rng, 0.3))[..., None]
    height = np.clip(edge - 1, 0, 1.6) ** 0.5 + 0.03 * _noise(rng, 1.3)
    colour = _blend(colour * glaze[..., None], grout, step(1.1 - edge + 10 * wear, 0.7))
    return Surface(colour, height, np.ones(i.shape, bool))


def _bolt(rng, slip) -> Surface:
    """A flanged hexagon bolt on paper, within 6 degrees of its usual direction; misplaced: head or thread."""
    x, y = rotate(X - rng.uniform(-4, 4), Y - rng.uniform(-4, 4), np.radians(rng.uniform(-41, -29)))
    x, thread_from, start = x / rng.uniform(0.98, 1.02), rng.uniform(-12, -9), rng.uniform()
    shift, worn = 0.0, 0.0
    if slip and slip.rng.random() < 0.5:
        shift = (0.8 + 4 * slip.strength) * slip.rng.choice((-1, 1))
    elif slip:
        worn = step(3 + 6 * slip.strength - abs(x - slip.rng.uniform(0, 34)), 2) * (0.45 + 0.55 * slip.strength)
    turn = (x / 4.4 - np.arcsin(np.clip(y / 10, -1, 1)) / (2 * np.pi) + start) % 1
    valley = 3.8 * (abs(turn - 0.5) * (1 - worn) + 0.5 * worn) * step(x - thread_from, 3)
    shank = np.clip((10 - valley - np.clip(x - 47, 0, 9)) ** 2 - y**2, 0, None) ** 0.5 * (abs(x - 8) < 42)
    off_axis = abs(y - shift)
    chamfer = np.clip(-46.5 - x, 0, 9) + 0.5 * np.clip(off_axis - 12, 0, 9)
    head = (np.minimum(18.2, 1.732 * (21 - off_axis)) - chamfer) * (abs(x + 41) < 8)
    flange = np.clip(23.5**2 - off_axis**2, 0, None) ** 0.5 * (abs(x + 33) < 2.2)
    height = np.maximum(np.maximum(shank, flange), head)
    body = height > 0.3
    steel = _tint(rng, (0.58, 0.59, 0.61), 0.03) * (1 + 0.05 * _noise(rng, 0.9))[..., None]
    shadow = ndimage.gaussian_filter(np.roll(body.astype(np.float32), (9, 7), (0, 1)), 7, truncate=2)
    paper = _tint(rng, (0.70, 0.73, 0.75), 0.02) * ((1 + 0.012 * _noise(rng, 0.3)) * (1 - 0.5 * shadow))[..., None]
    brushed = 0.12 * ndimage.gaussian_filter1d(_noise(rng, 0), 3, axis=0)
    return Surface(np.where(body[..., None], steel, paper), np.where(body, height + brushed, 0), body)


DRAW = {"fabric": _fabric, "tiles": _tiles, "bolt": _bolt}


def _curve(rng, middle, length: float, width: int) -> np.ndarray:
    """A soft arc (S,S) in 0..1 of random direction and bend; length in pixels, width in half pixels."""
    t, bend = np.linspace(-0.5, 0.5, 24), rng.uniform(-0.5, 0.5)
    arc = length * np.exp(1j * rng.uniform(0, 2 * np.pi)) * (t + 1j * bend * (t**2 - 0.1)) + complex(*middle)
    sheet = Image.new("L", X.shape)
    ImageDraw.Draw(sheet).line([(2 * z.real + SIZE, 2 * z.imag + SIZE) for z in arc], 255, width)
    return ndimage.gaussian_filter(np.asarray(sheet, np.float32) / 255, 0.7)


def _blob(rng, middle, radius: float, rough: float, ramp: float) -> np.ndarray:
    """An irregular ellipse (S,S), 0 outside to 1 inside; radius in pixels."""
    x, y = rotate(X - middle[0], Y - middle[1], rng.uniform(0, np.pi))
    reach = np.hypot(x * rng.uniform(0.75, 1), y * rng.uniform(1, 1.3)) / radius
    return step(1 - reach + rough * np.clip(_noise(rng, 1.6), -2, 2), ramp)


def _marked(surface, kind: str, rng) -> Surface:
    """The surface with a scratch, hole or stain of full strength on its body."""
    inner = ndimage.binary_erosion(surface.body, iterations=6)[24:-24, 24:-24]
    middle = rng.permutation(np.argwhere(inner))[0][::-1] / 2 + 12 - SIZE / 2
    if kind == "scratch":
        share = _curve(rng, middle, rng.uniform(25, 55), int(rng.integers(2, 5)))
        share, target, dent = share * (0.75 + 0.35 * _noise(rng, 1.2)), rng.choice((0.1, 0.95)), 0.8
    elif kind == "hole":
        share, dent = _blob(rng, middle, rng.uniform(3.5, 8), 0.12, 0.3), 3.0
        target = 0.06 + 0.3 * surface.colour * (0.5 + 0.2 * _noise(rng, 0.8))[..., None]
    else:  # a stain dries darker at its rim
        share, dent = _blob(rng, middle, rng.uniform(8, 17), 0.22, 0.5), 0.0
        share = share * (0.75 + 0.1 * _noise(rng, 1.0) + (1 - share))
        target = (0.35 + 0.65 * surface.colour) * _tint(rng, (0.52, 0.37, 0.21), 0.1)
    share = np.clip(share, 0, 1) * surface.body
    return surface._replace(colour=_blend(surface.colour, target, share), height=surface.height - dent * share)


def _dusted(colour, rng) -> np.ndarray:
    """The colours under harmless dust and lint, which normal images hold as well."""
    for lint in rng.random(rng.poisson(4)) < 0.2:
        length, width = (rng.uniform(4, 9), 1) if lint else (rng.uniform(0.5, 1.5), int(rng.integers(2, 4)))
        speck = _curve(rng, rng.uniform(-60, 60, 2), length, width)
        colour = _blend(colour, rng.choice((0.15, 0.95)), speck * rng.uniform(0.1, 0.4))
    return colour


def _facing(toward, slope_down, slope_right) -> np.ndarray:
    """How much a surface of these slopes faces a direction (right, down, up): the cosine, 0 where it turns away."""
    dot = toward[2] - slope_right * toward[0] - slope_down * toward[1]
    return np.clip(dot, 0, None) / np.sqrt(1 + slope_right**2 + slope_down**2)


def _photograph(surface, finish, rng) -> np.ndarray:
    """Dust, light, lens and exposure: (H,W,3) in 0..255, without the grain."""
    slopes, colour = np.gradient(surface.height, 0.5), _dusted(surface.colour, rng)
    azimuth, (right, down) = rng.normal(-2.2, 0.1), rng.normal(0, 0.001, 2)
    sun = np.array([0.6 * np.cos(azimuth), 0.6 * np.sin(azimuth), 0.8])
    half = (sun + (0, 0, 1)) / np.linalg.norm(sun + (0, 0, 1))
    diffuse = _facing(sun, *slopes) / sun[2]
    glint = _facing(half, *slopes) ** finish.sharpness - half[2] ** finish.sharpness
    light = colour * mix(finish.ambient, 1, diffuse)[..., None] + finish.gloss * glint[..., None]
    falloff = right * X + down * Y - 1.2e-5 * (X**2 + Y**2)
    light = light * (1 + falloff + 0.012 * _noise(rng, 2.5))[..., None]
    light = ndimage.gaussian_filter(halve(light), rng.uniform(0.3, 0.6), axes=(0, 1))
    return 255 * light * rng.uniform(0.96, 1.03) * rng.normal(1, 0.005, 3)


def render_twins(category: str, kind: str, index: int, split="test", seed: int = settings.SEED):
    """Photograph image `index` of a kind ("good" or one of DEFECTS) with and without its defect.

    Returns (image uint8 (H,W,3), mask bool (H,W), twin uint8 (H,W,3)), given by the five arguments alone. The mask is
    where a channel of image and twin differs by more than VISIBLE, gaps up to four pixels wide closed; it covers a
    share of the image within AREA, or nothing for "good". Raises ValueError for an unknown category, kind or split.
    """
    if category not in CATEGORIES or split not in SPLITS or kind not in KINDS:
        raise ValueError(f"no {category}/{split}/{kind}: use one of {CATEGORIES}, {SPLITS} and {KINDS}")
    keys = [seed, CATEGORIES.index(category), SPLITS.index(split), KINDS.index(kind), index]

    def draw(slip=None):
        return DRAW[category](np.random.default_rng([*keys, 0]), slip)

    def photograph(surface):
        camera = np.random.default_rng([*keys, 1])
        return _photograph(surface, FINISH[category], camera), camera

    surface = draw()
    sound, camera = photograph(surface)
    grain = camera.normal(0, camera.uniform(1.2, 2.5), (SIZE, SIZE, 1)) + camera.normal(0, 1, sound.shape)
    twin = to_uint8(sound + grain)
    for attempt in range(100):
        rng, faulty = np.random.default_rng([*keys, 2, attempt]), sound
        strength = rng.uniform(*STRENGTHS[index % len(STRENGTHS)])
        if kind == "misplaced":
            faulty = photograph(draw(Slip(rng, strength)))[0]
        elif kind != "good":
            change = photograph(_marked(surface, kind, rng))[0] - sound
            contrast = np.interp(strength, (0, 1), CONTRAST[category])
            faulty = sound + change * min(1, contrast / np.percentile(abs(change), 99.9))  # of some 50 pixels' channels
        image = to_uint8(faulty + grain)
        changed = np.pad(abs(image.astype(int) - twin).max(-1) > VISIBLE, 2)
        mask = ndimage.binary_closing(changed, iterations=2)[2:-2, 2:-2]
        if kind == "good" or AREA[0] <= mask.mean() <= AREA[1]:
            return image, mask, twin
    raise RuntimeError(f"{category}/{split}/{kind}/{index}: no defect of a visible size in 100 attempts")


def render(category: str, kind: str, index: int, split="test", seed: int = settings.SEED):
    """The image uint8 (H,W,3) and mask bool (H,W) of `render_twins`."""
    return render_twins(category, kind, index, split, seed)[:2]


def _random_axes(rng, angles: float):
    """Coordinates (T,T) around a random place, along axes in a random direction."""
    rows, columns = np.mgrid[:TEACHER_SIZE, :TEACHER_SIZE].astype(np.float32) - rng.uniform(0, TEACHER_SIZE, (2, 1, 1))
    return rotate(rows, columns, rng.uniform(0, angles))


def _random_pattern(rng) -> np.ndarray:
    """A random pattern (T,T) around 0: an edge, stripes, checks, clouds, dots, letter-like blocks or strokes."""
    (x, y), cell = _random_axes(rng, 2 * np.pi), math.exp(rng.uniform(1, 3.2))
    i, j, kind = np.floor(x / cell).astype(int), np.floor(y / cell).astype(int), rng.integers(7)
    if kind == 3:
        return noise(rng, rng.uniform(0.3, 2), TEACHER_SIZE)
    if kind == 5:
        return (rng.random((12, 12)) < 0.5)[i % 12, j % 12] * (j % 6 > 1) - 0.5
    stripes = np.sin(3.14 * x / cell)
    dots = rng.uniform(0.2, 0.45) - np.hypot(x / cell - i - 0.5, y / cell - j - 0.5)
    bend = rng.normal(0, 0.3) * (y / TEACHER_SIZE) ** 2
    strokes = 0.15 - abs(x / cell / 4 - np.floor(x / cell / 4) - 0.5 + bend)
    return (x / TEACHER_SIZE, stripes, stripes * np.sin(3.14 * y / cell), None, dots, None, strokes)[kind]


def _random_shape(rng) -> np.ndarray:
    """The shape (T,T) of a layer, positive inside: a diamond, ellipse or rectangle, whole or with a pattern cut out."""
    x, y = _random_axes(rng, np.pi)
    (width, height), power = np.exp(rng.uniform(1.5, 4.8, 2)), rng.choice((1, 2, 2, 8))
    shape = 1 - (abs(x / width) ** power + abs(y / height) ** power)
    return np.minimum(shape, _random_pattern(rng)) if rng.random() < 0.4 else shape


def render_teacher(index: int, seed: int = settings.SEED) -> np.ndarray:
    """A stand-in for a natural photograph, uint8 (T,T,3): layers of random shape and filling in uneven light."""
    rng = np.random.default_rng([seed, len(CATEGORIES), index])
    picture = np.zeros((TEACHER_SIZE, TEACHER_SIZE, 3), np.float32)
    for layer in range(rng.integers(6, 24)):
        dark, light = rng.uniform(0, 1, (2, 1)) + rng.normal(0, 0.15, (2, 3))
        filling = np.broadcast_to(dark, picture.shape)
        filling = _blend(filling, light, step(_random_pattern(rng), rng.choice((0.2, 2))))
        picture = _blend(picture, filling, step(_random_shape(rng), 0.1) * rng.uniform(0.6, 1)) if layer else filling
    picture = picture * (1 + rng.uniform(0, 0.25) * noise(rng, 1.5, TEACHER_SIZE))[..., None]
    picture = 255 * ndimage.gaussian_filter(picture, rng.uniform(0, 1), axes=(0, 1))
    return to_uint8(picture + rng.normal(0, rng.uniform(0, 5), picture.shape))


def _write_part(part, folder: Path, seed: int) -> None:
    category, kind, index, split = part
    image, mask = render(category, kind, index, split, seed)
    save_png(image, folder / category / split / kind / f"{index:03d}.png")
    if kind != "good":
        save_png(mask * np.uint8(255), folder / category / "ground_truth" / kind / f"{index:03d}_mask.png")


def _write_teacher(index: int, folder: Path, seed: int) -> None:
    save_png(render_teacher(index, seed), folder / "teacher" / f"{index:03d}.png")


def write_dataset(root: Path, seed: int = settings.SEED, counts=COUNTS, workers: int | None = None) -> None:
    """Write root/<category>/{train,test,ground_truth}/<kind>/NNN.png (masks NNN_mask.png) and root/teacher/NNN.png.

    counts has the keys of COUNTS; for workers see `folders.run_tasks`. A data set of this version, seed and counts is
    kept. Raises InputError as `folders.fresh` does.
    """
    with fresh(root, "textures", VERSION, seed=seed, counts=dict(counts)) as folder:
        if folder is None:
            return
        parts = [(c, "good", index, split) for c in CATEGORIES for split in SPLITS for index in range(counts[split])]
        parts += [(*part, "test") for part in product(CATEGORIES, DEFECTS, range(counts["defect"]))]
        run_tasks(partial(_write_part, folder=folder, seed=seed), parts, "textures", workers)
        teachers = range(counts["teacher"])
        run_tasks(partial(_write_teacher, folder=folder, seed=seed), teachers, "teacher", workers)
