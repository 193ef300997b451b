"""The street and what belongs in it: the plan of the ground, and the things that stand on it.

Every ``draw_*`` paints one thing on a canvas: `at` (3,) is where it stands, in metres, `axis` (3,) the unit direction
of the street there, turned to the thing's front. Its random numbers come from `rng` in the order of drawing.
"""

from functools import partial

import numpy as np

from src.synthetic.paint import rgb
from src.synthetic.street_canvas import CLEAR, UP, X, cloudy, cross, grainy, jitter, shade

SKY, BUILDING, FENCE, OTHER, PEDESTRIAN, POLE, LINE, ROAD, SIDEWALK, VEGETATION, CAR, WALL, SIGN = range(13)
# Outlines of cars from rear to front: shares of length, shares of height, panels: rear, body, glass, front.
CARS = (
    ((0, 0.01, 0.14, 0.28, 0.60, 0.76, 0.98, 1), (0.2, 0.66, 0.68, 1, 1, 0.67, 0.56, 0.2), "rbgbgbf"),
    ((0, 0.01, 0.08, 0.58, 0.76, 0.98, 1), (0.2, 0.62, 1, 1, 0.66, 0.55, 0.2), "rgbgbf"),
    ((0, 0.0, 0.03, 0.72, 0.86, 0.99, 1), (0.15, 0.55, 1.3, 1.3, 0.72, 0.6, 0.15), "rgbgbf"),
)
# A walker 1.75 m tall as capsules: x0, y0, x1, y1, radius, colour (skin, hair, coat, trousers).
WALKER = (
    (-0.04, 0.88, -0.16, 0.08, 0.085, 3),
    (0.04, 0.88, 0.17, 0.10, 0.085, 3),
    (-0.12, 1.38, -0.24, 0.95, 0.055, 2),
    (0.12, 1.38, 0.23, 0.92, 0.055, 2),
    (0, 1.33, 0, 0.98, 0.155, 2),
    (0, 1.45, 0, 1.58, 0.07, 0),
    (0, 1.64, 0.01, 1.66, 0.10, 1),
    (0.02, 1.60, 0.02, 1.62, 0.085, 0),
)
# Bin, bench, letter box, bus stop, switch box as boxes: colour, offset along the kerb, foot, (length, height, width).
OTHERS = (
    (("#353", 0, 0, (0.8, 1.2, 0.8)), ("#232", 0, 1.2, (0.86, 0.12, 0.86))),
    (("#753", 0, 0.42, (2, 0.08, 0.5)), ("#753", 0, 0.55, (2, 0.4, 0.08)), ("#333", 0, 0, (1.6, 0.42, 0.2))),
    (("#922", 0, 0.7, (0.6, 0.8, 0.6)), ("#444", 0, 0, (0.16, 0.7, 0.16))),
    (
        ("#567", 0, 2.3, (4, 0.14, 1.6)),
        ("#455", -1.9, 0, (0.1, 2.3, 1.5)),
        ("#455", 1.9, 0, (0.1, 2.3, 1.5)),
        ("#864", 0, 0.45, (3, 0.1, 0.45)),
        ("#899", 0, 0.9, (3.8, 1.3, 0.06)),
    ),
    (("#777", 0, 0, (1.3, 1.4, 0.5)), ("#566", 0, 1.4, (1.35, 0.06, 0.55))),
)


class Street:
    """The plan of one street: where road, pavements, lines and crossings are (metres, z ahead)."""

    def __init__(self, town, rng):
        self.half, self.walk = rng.uniform(*town.half_road), rng.uniform(1.8, 3.5)
        self.bend = float(rng.choice([0, 0, rng.normal(0, 0.008)]))
        self.cross = rng.uniform(14, 45) if rng.random() < 0.45 else 1e4  # z of a crossing street, or none
        self.zebra = self.cross - self.half - 3 if self.cross < 1e4 else float(rng.choice([1e4, rng.uniform(8, 30)]))
        self.lanes = 4 if self.half > 5.5 else 2
        self.dashed, self.edged, self.paved = rng.random(3) < (0.6, 0.7, 0.4)
        self.colours = np.zeros((13, 3), np.float32)
        self.colours[[ROAD, SIDEWALK]] = [jitter(rng, colour, 0.15) for colour in rgb("#575759 #948f8a")]
        self.colours[VEGETATION] = jitter(rng, town.leaf * 1.25)
        self.colours[LINE] = rng.choice(rgb("#dbdbd6 #dbdbd6 #cca852"))

    def middle(self, z):
        """x of the road's middle line at z: a bend that straightens out far away."""
        return self.bend * z * z / (1 + abs(z) / 60)

    def at(self, lateral, z):
        """Position (3,) on the ground and unit direction (3,) of the street there."""
        slope = self.middle(z + 0.5) - self.middle(z - 0.5)
        axis = np.array([slope, 0, 1]) / np.hypot(slope, 1)
        return np.array([self.middle(z), 0, z]) + lateral * cross(UP, axis), axis

    def labels(self, x, z, lateral):
        """Class of every ground point."""
        side, over = np.abs(lateral), np.abs(z - self.cross)
        label = np.where(side < self.half + self.walk, SIDEWALK, SIDEWALK if self.paved else VEGETATION)
        label[over < self.half + self.walk] = SIDEWALK
        label[(side < self.half) | (over < self.half)] = ROAD
        line = (side < 0.09) & ((z % 7 < 3.5) | (not self.dashed))
        line |= (np.abs(side - self.half / 2) < 0.08) & (z % 7 < 3) & (self.lanes == 4)
        line |= (np.abs(side - self.half + 0.4) < 0.07) & self.edged
        line &= over > self.half + 2
        line |= (np.abs(z - self.zebra) < 1.6) & (side < self.half - 0.3) & (lateral % 1.1 < 0.55)
        line |= (np.abs(z - self.zebra + 2.6) < 0.2) & (lateral > 0) & (side < self.half - 0.3)
        line |= (over < 0.09) & (side > self.half + 2) & (x % 7 < 4)
        label[line & (label == ROAD)] = LINE
        return label

    def ground(self, u, z):
        """The surface of the plane y = 0, whose u is x + 500 and whose v is z."""
        x = u - 500
        lateral = x - self.middle(z)
        label, kerb = self.labels(x, z, lateral), np.abs(lateral) - self.half
        road, walk, strength = label == ROAD, label == SIDEWALK, np.full(13, 0.06, np.float32)
        strength[VEGETATION] = 0.22
        grain = strength[label] * grainy(x * 14, z * 14) / (1 + z / 15)  # fades before it could flicker
        tone = 1 + 0.05 * cloudy(x * 1.5, z * 0.7) + grain
        ruts = 0.03 * np.cos(lateral * np.pi * self.lanes / self.half) - 0.12 * (cloudy(x, z / 4) > 1.4)
        tone += road * (ruts - 0.3 * (np.abs(kerb + 0.08) < 0.1)) + 0.16 * walk * (np.abs(kerb - 0.1) < 0.1)
        joint = (lateral % 1.3 < 0.05) | (z % 1.3 < 0.05)
        tone += walk * (0.06 * grainy(lateral / 1.3, z / 1.3) - 0.14 * joint)
        tone -= 0.15 * (label == LINE) * (cloudy(x * 9, z * 9) > 0.8)
        return self.colours[label] * tone[:, None], label, 1.0


def draw_building(canvas, town, rng, at, axis, width, side):
    """A house, `at` the middle of its front; side is +1 right of the road, -1 left of it."""
    floors, depth = rng.integers(town.floors[0], town.floors[1] + 1), rng.uniform(8, 12)
    height, bay = 3.1 * floors + rng.uniform(0.3, 1.2), rng.uniform(2.2, 3.6)
    colour, trim = jitter(rng, town.facades[rng.integers(3)]), jitter(rng, rgb("#574742"), 0.3)
    span, sill, (brick, shop) = rng.uniform(0.2, 0.42), rng.uniform(0.2, 0.34), rng.random(2) < 0.5
    salt, rise = int(rng.integers(256)), rng.uniform(1.5, 3.5) * (rng.random() < town.gable)

    def facade(u, v, length, slope=0.0):
        column, floor = np.floor(u / bay), np.floor(v / 3.1)
        across, climb = np.abs(u / bay - column - 0.5), np.abs(v / 3.1 - floor - 0.52)
        fits = (floor < floors) & (column < np.floor(length / bay))
        front = fits & (floor == 0) & (shop or column % 3 == salt % 3)
        pane = fits & (across < span) & (climb < sill) & (across > 0.015)
        frame = fits & (across < span + 0.05) & (climb < sill + 0.05)
        tone = 0.7 + 0.3 * np.minimum(v / 2, 1) + 0.035 * cloudy(u * 4 + salt, v * 4)
        tone += brick * (0.05 * grainy(u * 4 + 0.5 * (v // 0.15 % 2), v / 0.15) - 0.08 * (v % 0.3 < 0.06))
        tone *= 1 + 0.18 * (frame | (np.abs(v - height + 0.15) < 0.15)) - 0.12 * (v % 3.1 < 0.16)
        out, lamp = colour * tone[:, None], grainy(column + salt, floor * 7 + salt)
        glass = rgb("#29333f") + np.clip(0.1 * lamp + 0.35 * (v / 3.1 - floor) - 0.1, 0, 1)[:, None] * 0.8
        pane = np.where(front, (across < (0.45 if shop else 0.2)) & (v > 0.5 * shop) & (v < 2.4), pane)
        out[pane] = np.where((lamp > 1.5)[:, None], rgb("#d9b36b"), glass)[pane]
        out[front & (np.abs(v - 2.8) < 0.22 if shop else pane)] = trim * 1.3  # a shop's sign or a door
        return out, np.where(v < height + slope * (1 - np.abs(2 * u / length - 1)), BUILDING, CLEAR), 1.0

    def roof(u, v):
        return shade(trim * 1.2, 0.9 + 0.1 * (v % 0.5 < 0.3) + 0.05 * grainy(u * 3, v * 3), BUILDING)

    out, corner = side * cross(UP, axis), at - axis * width / 2
    canvas.shadow(at + out * depth / 2, axis, width, depth)
    canvas.quad(corner, axis, UP, (width, height), partial(facade, length=width))
    end = corner + axis * width * ((canvas.eye - at) @ axis > 0)
    canvas.quad(end, out, UP, (depth, height + rise), partial(facade, length=depth, slope=rise))
    if rise:
        pitch, eave = out * depth / 2 + UP * rise, corner + UP * height - axis * 0.3
        run = np.linalg.norm(pitch)
        canvas.quad(eave, axis, pitch / run, (width + 0.6, run), roof)
        stack = at + axis * width / 4 + out * depth / 3 + UP * height
        canvas.block(stack, axis, (0.8, rise + 0.8, 0.8), colour, BUILDING)


def draw_car(canvas, town, rng, at, axis):
    """A car of one of three outlines, with `at` in its middle."""
    length, height, width, across = rng.uniform(3.9, 4.7), rng.uniform(1.4, 1.6), 1.8, cross(UP, axis)
    stations, heights, panels = CARS[rng.choice(3, p=(0.45, 0.35, 0.2))]
    points = np.array([stations, heights]).T * (length, height)
    colour, glass = jitter(rng, rng.choice(rgb("#bbb #222 #822 #247 #677 #ccb #354"))), rgb("#333d47")

    def panel(u, v, run, kind):
        out = colour * (0.95 + 0.05 * cloudy(u * 9, v * 9))[:, None]
        edge, climb = np.abs(2 * u / width - 1), v / run if kind != "f" else 1 - v / run
        if kind == "g":
            pane = (edge < 0.88) & (np.abs(climb - 0.5) < 0.42)
            out[pane] = (glass * (0.7 + 0.9 * climb)[:, None])[pane]
        if kind in "rf":
            out[(np.abs(edge - 0.8) < 0.15) & (np.abs(climb - 0.72) < 0.14)] = rgb("#b11" if kind == "r" else "#eed")
            out[climb < 0.22] *= 0.45
            out[(edge < 0.3) & (np.abs(climb - 0.4) < 0.1)] = 0.8 if kind == "r" else 0.1  # plate or grille
        return out, CAR, 1.0

    def flank(u, v):
        top, out = np.interp(u, *points.T), colour * (0.72 + 0.28 * np.minimum(v / 0.7, 1))[:, None]
        pillar, belt = np.abs(u / length - 0.44), 0.64 * height
        out[(v > belt) & (v < top - 0.1) & (pillar > 0.012)] = glass
        out[(pillar < 0.004) & (v < belt)] *= 0.6
        wheel = np.hypot(np.minimum(np.abs(u - 0.19 * length), np.abs(u - 0.8 * length)), v - 0.33)
        out[wheel < 0.36] = 0.06
        out[wheel < 0.19] = 0.5
        return out, np.where((v < top) & ((v > 0.2 * height) | (wheel < 0.33)), CAR, CLEAR), 1.0

    canvas.shadow(at, axis, length, width, 0.8)
    corner = at - axis * length / 2 - across * width / 2
    for start, end, kind in zip(points, points[1:], panels, strict=False):
        run, origin = np.hypot(*(end - start)), corner + axis * start[0] + UP * start[1]
        rise = (axis * (end - start)[0] + UP * (end - start)[1]) / run
        canvas.quad(origin, across, rise, (width, run), partial(panel, run=run, kind=kind))
    hand = corner + across * width * ((canvas.eye - at) @ across > 0)
    canvas.quad(hand, axis, UP, (length, points[:, 1].max()), flank)


def draw_walker(canvas, town, rng, at, axis):
    """A pedestrian in mid-stride, facing either way."""
    scale, flip = rng.uniform(0.85, 1.08), rng.choice([-1, 1])
    skin, hair = jitter(rng, rgb("#b88c70"), 0.3), jitter(rng, rgb("#33261f"), 0.5)
    colours = skin, hair, *rng.uniform(0.08, (0.7, 0.45), (3, 2)).T

    def surface(u, v):
        x, y = flip * (u / scale - 0.4), v / scale
        out, label = np.zeros((len(u), 3)), np.full(len(u), CLEAR)
        for x0, y0, x1, y1, radius, part in WALKER:
            dx, dy = x1 - x0, y1 - y0
            share = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
            gap = np.hypot(x - x0 - share * dx, y - y0 - share * dy) / radius
            out[gap < 1] = colours[part] * (1.05 - 0.4 * gap[gap < 1] ** 2)[:, None]
            label[gap < 1] = PEDESTRIAN
        return out, label, 1.0

    canvas.shadow(at, axis, 0.5, 0.6)
    canvas.facing(at, 0.8 * scale, 1.78 * scale, surface)


def draw_tree(canvas, town, rng, at, axis):
    """A tree: a round or conical crown of leafy blobs on a trunk."""
    height, spread, level = rng.uniform(4, 8), rng.uniform(1.0, 2.1), np.linspace(0.35, 0.92, 14)
    taper = 1.5 - 1.4 * level if rng.random() < 0.25 else np.sin(np.pi * (level - 0.12))
    sizes, offsets = rng.uniform(0.35, 0.6, 14) * taper, rng.normal(0, 0.42, 14)
    leaf, salt, sunny = jitter(rng, town.leaf, 0.25), int(rng.integers(256)), 0.15 * np.sign(canvas.sun @ canvas.right)

    def surface(u, v):
        x, y, leaves = u / spread - 1, v / height, grainy(u * 18 + salt, v * 18)
        edge = 0.2 * leaves + 0.25 * cloudy(u * 16 + salt, v * 16)
        trunk = (np.abs(x) < 0.13 / spread * (1.4 - y)) & (y < 0.6)
        out = rgb("#544233") * (0.9 - 2.5 * x * trunk)[:, None]
        for middle, size, offset in zip(level, sizes, offsets * taper, strict=True):
            dx, dy = (x - offset) / size, (y - middle) * height / spread / size
            inside = dx * dx + dy * dy + edge < 1
            tone = (0.8 + 0.3 * dy + sunny * dx + 0.12 * leaves)[inside]
            out[inside] = leaf * np.clip(tone, 0.35, 1.6)[:, None]
            trunk |= inside
        return out, np.where(trunk, VEGETATION, CLEAR), 1.0

    canvas.shadow(at, axis, 1.6 * spread, 1.6 * spread, 0.5)
    canvas.facing(at, 2 * spread, height, surface)


def draw_boundary(canvas, town, rng, at, axis, width):
    """What closes a plot off from the pavement: a fence, a wall or a hedge."""
    kind, height, salt = rng.choice(3, p=(0.35, 0.48, 0.17)), rng.uniform(1.1, 2.3), int(rng.integers(256))
    plaster, gap = jitter(rng, town.facades[rng.integers(3)], 0.2), float(rng.choice([0.14, 0.3]))
    bars = jitter(rng, rgb("#ccccc6 #4d4f52 #75573d")[rng.integers(3)])

    def fence(u, v):
        solid = (u % gap < gap * 0.55) | (np.abs(v - 0.25) < 0.06) | (np.abs(v - height + 0.2) < 0.06)
        return shade(bars, 0.9 + 0.1 * (u % gap < gap * 0.3), FENCE, np.where(solid, 1.0, 0.2))

    def wall(u, v):
        stones = 0.06 * grainy(u * 3 + 0.5 * (v // 0.2 % 2), v / 0.2) - 0.12 * (v % 0.4 < 0.07)
        stains = 0.05 * cloudy(u * 6 + salt, v * 6) + 0.15 * (v > height - 0.12)
        return shade(plaster, 0.75 + 0.2 * np.minimum(v, 1) + stones + stains, WALL)

    def hedge(u, v):
        top = height - 0.15 + 0.1 * cloudy(u * 8, v * 0 + salt)
        tone = 0.7 + 0.25 * v / height + 0.16 * grainy(u * 18 + salt, v * 18)
        return shade(town.leaf * 0.9, tone, np.where(v < top, VEGETATION, CLEAR))

    canvas.shadow(at, axis, width, 0.5, 0.4)
    canvas.quad(at - axis * width / 2, axis, UP, (width, height), (fence, wall, hedge)[kind])


def draw_post(canvas, town, rng, at, axis, side):
    """A street lamp, a traffic light or a traffic sign: a pole and what it carries."""
    kind, sign_colour = rng.choice(5, p=(0.5, 0.16, 0.12, 0.1, 0.12)), rng.choice(rgb("#b22 #248 #da2 #164"))
    grey, inward, thick = jitter(rng, rgb("#6b6d70"), 0.3), -side * cross(UP, axis), rng.uniform(0.15, 0.28)
    height = (rng.uniform(5.5, 7.5), 3.6, 2.6, 2.5, 3.0)[kind]
    width, tall = ((0, 0), (0.5, 1.2), (1, 1), (1.1, 1), (2.2, 1.2))[kind]

    def light(u, v):
        out, place = np.full((len(u), 3), 0.1), np.minimum(v / 0.4, 2).astype(int)
        lamp = np.hypot(u - width / 2, v - 0.4 * place - 0.2) < 0.15
        out[lamp] = rgb("#3d6 #e92 #e22")[place[lamp]]
        return out, SIGN, 1.0

    def board(u, v):
        x, y = np.abs(2 * u / width - 1), 2 * v / tall - 1
        reach = (np.hypot(x, y), np.maximum(x * 2 + y, -y), np.maximum(x, np.abs(y)))[kind - 2]
        bar, rim = (np.abs(y) < 0.12) & (x < 0.5), reach > (0.72, 0.7, 0.9)[kind - 2]
        out = np.where((bar ^ rim ^ (kind == 4))[:, None], sign_colour, rgb("#ddd"))
        return out, np.where(reach < 1, SIGN, CLEAR), 1.0

    canvas.shadow(at, axis, 0.4, 0.4)
    canvas.facing(at, thick, height, lambda u, v: shade(grey, 1.1 - 0.6 * np.abs(u / thick - 0.35), POLE))
    if kind == 0:
        canvas.block(at + UP * (height - 0.12) + inward * 0.8, inward, (1.7, 0.14, 0.14), grey, POLE)
        canvas.block(at + UP * (height - 0.22) + inward * 1.7, inward, (0.7, 0.16, 0.3), rgb("#d9d6c2"), POLE)
    else:
        canvas.facing(at + UP * (height - 0.2) - axis * 0.12, width, tall, light if kind == 1 else board)


def draw_other(canvas, town, rng, at, axis):
    """A bin, bench, letter box, bus stop or switch box."""
    canvas.shadow(at, axis, 1.2, 0.8)
    for colour, offset, foot, size in OTHERS[rng.integers(len(OTHERS))]:
        canvas.block(at + axis * offset + UP * foot, axis, size, jitter(rng, rgb(colour)), OTHER)


def _plots(street, town, rng, side):
    """What stands beside the pavement, plot after plot; yields what `_wishes` does."""
    edge, z = street.half + street.walk, rng.uniform(-8, 4)
    while z < 120:
        width, setback = rng.uniform(7, 15), rng.uniform(*town.setback)
        middle = z + width / 2
        if rng.random() < 0.62:
            yield partial(draw_building, width=width, side=side), side * (edge + setback), middle, 1, width / 2
        if setback > 1.2 and rng.random() < 0.85:
            yield partial(draw_boundary, width=width), side * (edge + 0.3), middle, 1, width / 2
        if setback > 3 and rng.random() < town.trees:
            yield draw_tree, side * (edge + 2), middle, 1, 0
        z += width + rng.choice([0, 0, rng.uniform(0, 12)])


def _wishes(street, town, rng):
    """Yield (draw, metres right of the middle line, z, turn of the axis, metres to keep from a crossing street)."""
    shares = np.array([town.trees * 0.6, 0.55, 0.18, 0.1])
    for side in (-1, 1):
        yield from _plots(street, town, rng, side)
        for z in np.cumsum(rng.uniform(3, 9, 14)) + 1:
            draws = draw_tree, partial(draw_post, side=side), draw_other, draw_walker
            draw = draws[rng.choice(4, p=shares / shares.sum())]
            yield draw, side * (street.half + rng.uniform(0.4, 0.9)), z, 1, 0
            if rng.random() < 0.35:
                lateral = rng.uniform(street.half + 0.5, street.half + street.walk - 0.4)
                yield draw_walker, side * lateral, z + rng.uniform(0, 4), 1, 0
            if rng.random() < 0.16:
                yield draw_car, side * (street.half - 1.1), z + 3, side, 3
    for z in np.cumsum(rng.uniform(6, 30, 4)) + 3:
        side = rng.choice([-1, 1])
        yield draw_car, side * street.half * rng.uniform(0.4, 0.55), z, side, 0


def furnish(canvas, street, town, rng):
    """Draw what stands in the street from far to near: nothing on a crossing street, no car inside another."""
    things = []
    for draw, lateral, z, turn, clearance in _wishes(street, town, rng):
        cars = [(x, there) for other, x, there, _ in things if draw is other is draw_car]
        crowded = any(abs(z - there) < 7 and abs(lateral - x) < 2.2 for x, there in cars)
        if not crowded and abs(z - street.cross) >= street.half + street.walk + clearance:
            things.append((draw, lateral, z, turn))
    for draw, lateral, z, turn in sorted(things, key=lambda thing: -thing[2]):
        at, axis = street.at(lateral, z)
        draw(canvas, town, rng, at, axis * turn)


def draw_skyline(canvas, town, rng):
    """The woods that close the view."""
    leaf, salt, tall = jitter(rng, town.leaf * 0.8), int(rng.integers(256)), rng.uniform(4, 12)

    def surface(u, v):
        top = tall + 2.2 * cloudy(u / 4 + salt, u * 0) + 0.5 * grainy(u * 2, u * 0)
        return shade(leaf, 0.8 + 0.12 * grainy(u * 2, v * 2), np.where(v < top, VEGETATION, CLEAR))

    canvas.quad(np.array([-300.0, 0, 160]), X, UP, (600, 30), surface)
