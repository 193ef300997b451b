"""The objects that do not belong in a street: drawings of parts, turned into shaded relief, placed at a depth.

They share no drawing code with the known classes: a family is a short list of ovals, polygons and lines that PIL
draws; the slope of its blurred outline meets the light of the scene.
"""

from collections import namedtuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

from src.synthetic.street_canvas import CLEAR

ANOMALY = 13
SPRITE = 160  # height of a drawing in pixels
SHARE = (0.03, 0.15)  # aimed-at share of the image, log-uniform
VISIBLE = (0.005, 0.18)  # accepted share of the image after occlusion
TRIES = 60

# A paragraph a family: name, height in metres, width over height, habitat, three colours, then its parts. A part is a
# letter, the colour's number and per cent of the drawing (x right, y up): o = oval x y rx ry, p = polygon x y ...,
# l = line width x y ...
DRAWINGS = """
elephant 2.6 1.25 ground #777 #655 #dca
l0,10,30,45,30,5 l1,10,42,42,42,5 l1,10,62,42,62,5 l0,10,72,42,72,5 o0,50,56,32,27 o0,82,66,15,19
l0,8,92,62,97,30,93,14 o1,74,66,9,17 l2,3,88,52,98,44

deer 1.6 1.1 ground #964 #643 #cb9
l1,4,28,40,25,2 l0,4,36,40,38,2 l1,4,62,40,60,2 l0,4,68,40,71,2 o0,48,45,27,13 l0,10,68,50,80,72 o0,86,74,10,5
l1,2,80,78,74,97 l1,2,84,78,90,98 l1,2,77,87,68,92 l1,2,87,88,97,90 o2,23,50,4,5

dog 0.9 1.3 ground #543 #ca7 #211
l0,8,26,40,22,4 l1,8,36,40,38,4 l0,8,64,40,62,4 l1,8,70,40,72,4 o0,46,48,28,16 l0,5,20,55,6,78 o0,78,68,13,13
o1,90,63,10,6 o2,97,65,2,3 p2,70,78,66,55,77,70

armchair 1.2 1.0 ground #933 #622 #432
l2,5,15,15,15,1 l2,5,85,15,85,1 p0,16,30,20,97,80,97,84,30 o0,50,93,30,7 p1,20,14,20,42,80,42,80,14
o0,50,43,30,8 p0,4,10,4,55,20,55,20,10 p0,80,10,80,55,96,55,96,10 o1,12,55,9,7 o1,88,55,9,7

crates 2.0 1.1 ground #a74 #753 #b95
p0,3,0,3,48,50,48,50,0 p2,52,0,52,45,98,45,98,0 p0,25,49,30,98,78,94,74,46 l1,4,5,2,48,46 l1,4,5,46,48,2
l1,4,54,3,96,42 l1,4,29,52,74,92 l1,3,4,46,49,46 l1,3,53,43,97,43 l1,3,30,96,77,92

teapot 1.5 1.4 ground #bbc #359 #889
l2,7,78,65,95,62,95,30,76,25 l0,10,26,35,10,55,3,78 o0,50,42,31,38 o1,50,42,31,8 o2,50,4,20,4 o2,50,78,20,6
o1,50,89,5,6

tyres 1.5 0.9 ground #222 #383839 #111
o0,50,14,46,13 o1,52,32,45,13 o0,48,50,45,13 o1,52,68,44,13 o0,50,86,45,13 o2,50,89,24,6

helicopter 2.4 1.9 air #465 #233 #79b
l0,9,50,50,95,58 p0,90,55,98,85,93,86,86,58 o0,36,46,27,25 o2,22,50,13,15 l1,3,38,70,38,84 l1,3,2,86,80,84
l1,3,12,10,60,10 l1,2,26,24,24,10 l1,2,46,24,48,10

balloon 3.2 0.75 air #c43 #db5 #753
l2,2,20,50,42,12 l2,2,80,50,58,12 o0,50,64,47,35 p0,12,48,88,48,60,20,40,20 o1,50,64,24,35 o0,50,64,9,35
p2,39,0,39,13,61,13,61,0

boulder 1.6 1.3 ground #777068 #605d58 #8f8a80
p0,2,0,8,50,30,88,55,97,82,72,97,35,95,0 p2,30,88,55,97,60,55,35,50 p1,60,55,55,97,82,72,97,35,95,0,66,0
p0,35,50,60,55,66,0,30,0

trolley 1.1 1.1 ground #aab #778 #b33
p1,20,38,12,82,90,74,82,38 l0,3,12,82,90,74,82,38,20,38,12,82 l0,2,30,38,26,80 l0,2,45,38,44,78
l0,2,60,38,62,77 l0,2,16,60,86,56 l0,3,24,38,20,14,84,14 l2,5,0,90,14,84 o1,22,6,6,6 o1,80,6,6,6

ladder 3.6 0.3 wall #a86 #764 #999
l1,10,20,12,80,12 l1,10,20,28,80,28 l1,10,20,44,80,44 l1,10,20,60,80,60 l1,10,20,76,80,76 l1,10,20,90,80,90
l0,16,14,0,16,100 l0,16,86,0,84,100

piano 1.4 1.35 ground #221c19 #432 #ddc
l0,6,15,30,15,0 l0,6,85,30,85,0 p0,8,30,8,52,92,52,92,30 p1,10,52,30,98,90,90,92,52 p2,10,46,10,53,90,53,90,46
l0,2,20,46,20,53 l0,2,40,46,40,53 l0,2,60,46,60,53 l0,2,80,46,80,53

tent 1.7 1.6 ground #b73 #952 #332
p1,40,95,72,90,100,2,60,0 p0,0,0,40,97,62,0 p2,20,0,39,60,42,0 l0,2,40,95,72,90

saucer 1.8 2.3 air #9aa #677 #8ba
o2,50,62,22,34 o1,50,36,49,24 o0,50,43,49,20 o2,20,38,4,6 o2,40,30,4,6 o2,60,30,4,6 o2,80,38,4,6

umbrella 1.9 1.1 ground #569 #ccb #433
l2,3,50,85,50,6,42,2 o0,50,62,49,36 o1,50,62,26,36 o0,50,62,10,36 l2,3,50,97,50,100

surfboard 2.4 0.3 wall #dca #388 #c53
o0,50,50,46,50 p1,10,30,90,50,90,62,10,42 l2,6,50,2,50,98

wheelbarrow 1.0 1.7 ground #475 #354 #222
l1,6,0,62,40,42,80,24 l1,5,40,42,36,2 o2,82,20,12,20 o1,82,20,5,8 p0,30,42,20,86,92,94,74,42
p1,20,86,92,94,88,84,26,78

melon 1.2 1.15 ground #473 #795 #543
o0,50,47,49,47 o1,50,47,40,47 o0,50,47,31,47 o1,50,47,20,47 o0,50,47,10,47 l2,5,50,92,56,100
"""
Family = namedtuple("Family", "height aspect habitat colours parts")


def _read_family(paragraph: str) -> tuple[str, Family]:
    name, height, aspect, habitat, *rest = paragraph.split()
    return name, Family(float(height), float(aspect), habitat, rest[:3], rest[3:])


FAMILIES = dict(map(_read_family, DRAWINGS.split("\n\n")))
ANOMALY_FAMILIES = tuple(FAMILIES)


def _draw_parts(family):
    """A family's colour numbers (0 outside, else 1..3) and its relief, as PIL images in mode L."""
    width = round(SPRITE * family.aspect)
    tones, relief = Image.new("L", (width, SPRITE)), Image.new("L", (width, SPRITE))
    for order, part in enumerate(family.parts):
        kind, tone = part[0], int(part[1])
        numbers = [int(number) / 100 for number in part[3:].split(",")]
        thick = max(2, round(numbers.pop(0) * min(width, SPRITE))) if kind == "l" else 0
        points = [(x * width, (1 - y) * SPRITE) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
        for image, ink in ((tones, tone + 1), (relief, 90 + 61 * order % 130)):
            draw = ImageDraw.Draw(image)
            if kind == "o":
                x, y, across, up = numbers
                box = (x - across) * width, (1 - y - up) * SPRITE, (x + across) * width, (1 - y + up) * SPRITE
                draw.ellipse(box, ink)
            elif kind == "p":
                draw.polygon(points, ink)
            else:
                draw.line(points, ink, thick, joint="curve")
    return tones, relief


def _draw_relief(family, colours, light, rng):
    """Colour float32 (SPRITE, W, 3) and outline bool (SPRITE, W) of one object; light is (right, up, near)."""
    tones, relief = _draw_parts(family)
    outline = tones.point(lambda tone: 255 * (tone > 0)).filter(ImageFilter.BoxBlur(SPRITE * 0.06))
    tones, height = np.asarray(tones), np.asarray(outline, np.float32) / 9
    down, across = np.gradient(height + np.asarray(relief.filter(ImageFilter.GaussianBlur(2)), np.float32) / 22)
    slope = (light[2] - light[0] * across + light[1] * down) / np.sqrt(1 + across**2 + down**2)
    y, x = np.indices(tones.shape)
    wave = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) * rng.uniform(0.2, 0.9)
    stripes = np.sin(wave) * rng.choice([0, 0, 0.09])
    grain = rng.normal(0, rng.uniform(0.02, 0.08), np.array(tones.shape) // 4 + 1)[y // 4, x // 4]
    tone = (0.72 + 0.45 * np.clip(slope, -0.6, 1)) * (1 + stripes + grain) * (1 - 0.15 * y / SPRITE)
    colour = np.asarray(colours)[np.maximum(tones, 1) - 1] * tone[..., None]
    return colour.astype(np.float32), tones > 0


def _colours(family, rng):
    """Three colours: mostly loud ones, which no street has, else the family's own."""
    if rng.random() < 0.9:
        return rng.uniform(0.05, 0.95, (3, 3))
    natural = np.array([ImageColor.getrgb(code) for code in family.colours]) / 255
    return np.clip(natural * rng.uniform(0.75, 1.25) + rng.normal(0, 0.03, (3, 3)), 0.03, 1)


def draw_object(rng) -> tuple[np.ndarray, np.ndarray]:
    """One object by itself, lit from anywhere: colour float32 (SPRITE,W,3) in 0..1 and outline bool (SPRITE,W)."""
    family, light = FAMILIES[str(rng.choice(ANOMALY_FAMILIES))], rng.normal(size=3)
    light[2] = abs(light[2]) + 0.5
    colour, solid = _draw_relief(family, _colours(family, rng), light / np.linalg.norm(light), rng)
    return colour.clip(0, 1), solid


def _paint_one(canvas, street, rng, family):
    """Paint one object somewhere; its distance is what its real height and its aimed-at size on the image ask for."""
    pixels = np.sqrt(np.exp(rng.uniform(*np.log(SHARE))) * canvas.label.size / family.aspect / 0.6)
    distance = np.clip(canvas.focal * family.height * rng.uniform(0.7, 1.4) / pixels, 4, 40)
    height = pixels * distance / canvas.focal
    width, edge = height * family.aspect, street.half + street.walk
    view = 0.4 * canvas.label.shape[1] * distance / canvas.focal  # most of half the picture's width, in metres
    reach = min(view, {"ground": edge, "air": 1.2 * edge, "wall": edge + 0.2}[family.habitat])
    lateral = rng.choice([-reach, reach]) if family.habitat == "wall" else rng.uniform(-reach, reach)
    at, axis = street.at(lateral, distance)
    if family.habitat == "air":
        at[1] = rng.uniform(1.5, 7)
    else:
        canvas.shadow(at, axis, 0.4 * width, 0.8 * width)
    light = [canvas.sun @ direction for direction in (canvas.right, canvas.above, -canvas.ahead)]
    colour, solid = _draw_relief(family, _colours(family, rng), light, rng)
    flip = rng.choice([-1, 1])
    colour, solid = colour[:, ::flip], solid[:, ::flip]

    def surface(u, v):
        column = np.minimum(u / width * solid.shape[1], solid.shape[1] - 1).astype(int)
        row = np.minimum((1 - v / height) * SPRITE, SPRITE - 1).astype(int)
        return colour[row, column], np.where(solid[row, column], ANOMALY, CLEAR), 1.0

    canvas.facing(at, width, height, surface)


def _box(visible) -> tuple[int, int, int, int]:
    """The bounds (x0, y0, x1, y1) of a mask (H,W), ends exclusive."""
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def add_anomalies(canvas, street, rng) -> list[dict]:
    """Paint one anomaly, at times two if there is place, into a finished street (before its sky).

    Returns for each its family and its visible box (x0, y0, x1, y1) in image pixels, ends exclusive.
    Raises RuntimeError if no place shows enough of one, as on images of very few pixels.
    """
    anomalies, wanted = [], 1 + (rng.random() < 0.15)
    for _ in range(TRIES):
        name = str(rng.choice(ANOMALY_FAMILIES))
        before = canvas.rgb.copy(), canvas.label.copy(), canvas.depth.copy()
        _paint_one(canvas, street, rng, FAMILIES[name])
        visible = ((canvas.label == ANOMALY) & (before[1] != ANOMALY))[::2, ::2]
        if not VISIBLE[0] <= visible.mean() <= VISIBLE[1]:
            canvas.rgb, canvas.label, canvas.depth = before
            continue
        anomalies.append({"family": name, "box": _box(visible)})
        if len(anomalies) == wanted:
            return anomalies
    if not anomalies:
        size = visible.shape
        raise RuntimeError(f"no visible place for an anomaly in {TRIES} tries; render larger than {size} pixels")
    return anomalies
