"""A miniature StreetHazards: procedural street scenes, written in the official on-disk layout.

Scenes are ray cast: rectangles in the world (metres; x right, y up, z ahead) meet the rays of a pinhole camera,
pass a depth test and are coloured by a function of their own (u, v) in metres, so perspective, occlusion and haze
hold by construction. Colour is averaged over 2x2 sub-pixels, labels are not: mask edges stay crisp.
Layout and classes follow StreetHazards (Hendrycks et al., arXiv:1911.11132).
"""

import hashlib
import json
import multiprocessing
import shutil
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor
from tqdm import tqdm

from src.road.anomalies import ANOMALY_FAMILIES, add_anomalies

__all__ = ["ANOMALY_FAMILIES", "Canvas", "draw_car", "render_scene", "write_dataset"]

VERSION = 2  # raise it whenever a scene's pixels change, so that old data sets are recognised
COUNTS = {"train": 600, "val": 100, "test": 150}
FOLDERS = {"train": ("train", "training"), "val": ("train", "validation"), "test": ("test", "test")}
LISTS = {"train": "train/train.odgt", "val": "train/validation.odgt", "test": "test/test.odgt"}
SKY, BUILDING, FENCE, OTHER, PEDESTRIAN, POLE, LINE, ROAD, SIDEWALK, VEGETATION, CAR, WALL, SIGN = range(13)
CLEAR, DECAL = 255, 254  # labels of a surface: nothing is here; colour only, the label below stays
NEAR = 0.4  # metres; nothing closer is drawn
X, UP, Z = np.eye(3)


def rgb(text: str) -> np.ndarray:
    """Colours as hex codes to float32 in 0..1: (3,) for one, (n, 3) for n codes between blanks."""
    return np.squeeze(np.array([ImageColor.getrgb(code) for code in text.split()], np.float32) / 255)


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
SPLIT_TOWNS = {"train": ("t1", "t2", "t3"), "val": ("t4",), "test": ("t5", "t6")}
Weather = namedtuple("Weather", "zenith horizon sun ambient haze clouds wet")
WEATHERS = {
    "clear": Weather(rgb("#47c"), rgb("#bde"), rgb("#ccbb9a"), rgb("#75808f"), 0.0022, 0.25, 0),
    "overcast": Weather(rgb("#949eab"), rgb("#ccd1d6"), rgb("#292929"), rgb("#c2c4c9"), 0.004, 0.9, 0),
    "fog": Weather(rgb("#adb5bd"), rgb("#c7ccce"), rgb("#1a1a1a"), rgb("#c2c4c7"), 0.017, 0.5, 0),
    "dusk": Weather(rgb("#4d5785"), rgb("#f0a87a"), rgb("#8f5c38"), rgb("#85808f"), 0.004, 0.4, 0),
    "rain": Weather(rgb("#707a87"), rgb("#a3abb3"), rgb("#141417"), rgb("#adb3ba"), 0.008, 1.0, 0.28),
}
# fmt: off
# Outlines of cars from rear to front: shares of length, shares of height, panels: rear, body, glass, front.
CARS = (((0, .01, .14, .28, .60, .76, .98, 1), (.2, .66, .68, 1, 1, .67, .56, .2), "rbgbgbf"),
        ((0, .01, .08, .58, .76, .98, 1), (.2, .62, 1, 1, .66, .55, .2), "rgbgbf"),
        ((0, .0, .03, .72, .86, .99, 1), (.15, .55, 1.3, 1.3, .72, .6, .15), "rgbgbf"))
# A walker 1.75 m tall as capsules: x0, y0, x1, y1, radius, colour (skin, hair, coat, trousers).
WALKER = ((-.04, .88, -.16, .08, .085, 3), (.04, .88, .17, .10, .085, 3), (-.12, 1.38, -.24, .95, .055, 2),
          (.12, 1.38, .23, .92, .055, 2), (0, 1.33, 0, .98, .155, 2), (0, 1.45, 0, 1.58, .07, 0),
          (0, 1.64, .01, 1.66, .10, 1), (.02, 1.60, .02, 1.62, .085, 0))
# Bin, bench, letter box, bus stop, switch box as boxes: colour, offset along the kerb, foot, (length, height, width).
OTHERS = ((("#353", 0, 0, (.8, 1.2, .8)), ("#232", 0, 1.2, (.86, .12, .86))),
          (("#753", 0, .42, (2, .08, .5)), ("#753", 0, .55, (2, .4, .08)), ("#333", 0, 0, (1.6, .42, .2))),
          (("#922", 0, .7, (.6, .8, .6)), ("#444", 0, 0, (.16, .7, .16))),
          (("#567", 0, 2.3, (4, .14, 1.6)), ("#455", -1.9, 0, (.1, 2.3, 1.5)), ("#455", 1.9, 0, (.1, 2.3, 1.5)),
           ("#864", 0, .45, (3, .1, .45)), ("#899", 0, .9, (3.8, 1.3, .06))),
          (("#777", 0, 0, (1.3, 1.4, .5)), ("#566", 0, 1.4, (1.35, .06, .55))))
# fmt: on
SIGN_COLOURS, SIGN_WHITE = rgb("#b22 #248 #da2 #164"), rgb("#ddd")
CAR_COLOURS = rgb("#bbb #222 #822 #247 #677 #ccb #354")


def _tile(power: float, seed: int) -> np.ndarray:
    """Periodic (256, 256) float32 noise of unit variance whose amplitudes fall as 1 / frequency**power."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).standard_normal((256, 256)))
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    radius[0, 0] = np.inf  # no mean
    tile = np.fft.irfft2(spectrum / radius**power)
    return (tile / tile.std()).astype(np.float32)


CLOUDY, GRAINY = _tile(1.4, 0), _tile(0.4, 1)


def noise(tile, u, v):
    """The tile's value at (u, v), in cells, wrapped around."""
    return tile[np.floor(u).astype(np.int32) & 255, np.floor(v).astype(np.int32) & 255]


def cross(a, b) -> np.ndarray:
    """Cross product of two vectors (3,); NumPy's own takes ten times as long on so few numbers."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def jitter(rng, colour, amount=0.12) -> np.ndarray:
    """The colour with its brightness (mostly) and hue (a little) changed at random."""
    return np.clip(colour * rng.uniform(1 - amount, 1 + amount) * (1 + rng.normal(0, amount / 4, 3)), 0.02, 1).astype(
        np.float32
    )


def _paint(colour, tone, label, alpha=1.0):
    """What a surface returns: colour (3,) times tone (N,), label (N,) or int, opacity (N,) or float."""
    return colour * np.asarray(tone)[:, None], label, alpha


class Canvas:
    """Colour, label and depth at twice the image size, seen by a pinhole camera above the plane y = 0."""

    def __init__(self, size, weather, rng, lateral=0.0):
        height, width = (2 * side for side in size)
        self.weather, self.focal = weather, width * rng.uniform(0.60, 0.85)
        yaw, pitch = rng.normal(0, 0.05), rng.uniform(-0.03, 0.06)
        self.eye = np.array([lateral, rng.uniform(1.3, 2.2), 0.0])
        self.ahead = np.array([np.sin(yaw) * np.cos(pitch), -np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        self.right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
        self.above = cross(self.ahead, self.right)
        self.columns = ((np.arange(width) + 0.5 - width / 2) / self.focal).astype(np.float32)[None]
        self.rows = ((height / 2 - np.arange(height) - 0.5) / self.focal).astype(np.float32)[:, None]
        self.rgb, self.label = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.uint8)
        self.depth = np.full((height, width), np.inf, np.float32)
        azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.35, 0.9)
        self.sun = np.array([np.sin(azimuth), np.tan(elevation), np.cos(azimuth)]) * np.cos(elevation)

    def on_rays(self, vector, box=(slice(None), slice(None))) -> np.ndarray:
        """Dot product of a world vector with the ray (of depth 1) of every pixel of the box."""
        flat = self.columns[:, box[1]] * np.float32(vector @ self.right) + np.float32(vector @ self.ahead)
        return flat + self.rows[box[0]] * np.float32(vector @ self.above)

    def project(self, points) -> np.ndarray:
        """World points (N, 3) in metres to (N, 3): column, row (sub-pixels) and depth (metres)."""
        seen = (points - self.eye) @ np.stack([self.right, self.above, self.ahead], 1)
        middle = np.array(self.depth.shape[::-1]) / 2
        return np.hstack([middle + seen[:, :2] * (1, -1) * self.focal / np.maximum(seen[:, 2:], NEAR), seen[:, 2:]])

    def _bounds(self, corners):
        """Slices of the pixels that may see a polygon, or None; all pixels where it crosses the camera plane."""
        pixels, limits = self.project(corners), np.array(self.depth.shape[::-1])
        low, high = np.zeros(2), limits
        if (pixels[:, 2] >= NEAR).all():
            low, high = np.floor(pixels[:, :2].min(0)), np.ceil(pixels[:, :2].max(0))
        (left, top), (end, bottom) = np.clip([low, high], 0, limits).astype(int)
        hidden = left >= end or top >= bottom or (pixels[:, 2] < NEAR).all()
        return None if hidden else (slice(top, bottom), slice(left, end))

    def lit(self, normal) -> np.ndarray:
        """Light (RGB) that a surface with this unit normal receives from sky and sun."""
        ambient, sun = 0.85 + 0.15 * float(normal[1]), max(0.0, float(normal @ self.sun))
        return self.weather.ambient * ambient + self.weather.sun * sun

    def quad(self, origin, along, up, extent, surface, normal=None) -> None:
        """Paint a rectangle from its corner along two unit vectors; surface(u, v) returns what `_paint` does."""
        box = self._bounds(np.array([origin + a * along + b * up for a in (0, extent[0]) for b in (0, extent[1])]))
        if box is None:
            return
        plane, offset = cross(along, up), self.eye - origin
        with np.errstate(divide="ignore", invalid="ignore"):  # rays parallel to the plane never hit it
            depth = np.float32(-(plane @ offset)) / self.on_rays(plane, box)
            u = np.float32(offset @ along) + depth * self.on_rays(along, box)
            v = np.float32(offset @ up) + depth * self.on_rays(up, box)
            hit = (depth > NEAR) & (u >= 0) & (u <= extent[0]) & (v >= 0) & (v <= extent[1])
        hit &= depth < self.depth[box]
        if not hit.any():
            return
        colour, label, alpha = surface(u[hit], v[hit])
        label = np.broadcast_to(np.asarray(label, np.uint8), len(colour))
        keep = label != CLEAR
        hit[hit] = keep
        light = self.lit(plane * np.sign(plane @ offset) if normal is None else normal)
        old, alpha = self.rgb[box][hit], np.broadcast_to(alpha, len(keep))[keep, None]
        self.rgb[box][hit] = old + alpha * (colour[keep] * light - old)
        self.label[box][hit] = np.where(label[keep] == DECAL, self.label[box][hit], label[keep])
        self.depth[box][hit] = depth[hit]

    def facing(self, foot, width, height, surface) -> None:
        """Paint an upright rectangle turned to the camera; foot (3,) is the middle of its lower edge."""
        self.quad(foot - self.right * width / 2, self.right, UP, (width, height), surface, normal=0.8 * UP)

    def block(self, foot, axis, size, colour, label) -> None:
        """Paint a box of size (length, height, width); axis is the unit direction of its length."""
        (length, height, width), across = size, cross(UP, axis)
        corner = foot - axis * length / 2 - across * width / 2
        end = corner + axis * length * ((self.eye - foot) @ axis > 0)
        flank = corner + across * width * ((self.eye - foot) @ across > 0)
        top = corner + UP * height, axis, across, (length, width)
        for face in ((end, across, UP, (width, height)), (flank, axis, UP, (length, height)), top):
            self.quad(*face, lambda u, v: _paint(colour, 0.95 + 0.06 * noise(GRAINY, u * 20, v * 20), label))

    def shadow(self, foot, axis, length, width, strength=0.6) -> None:
        """Darken the ground softly under a thing of this footprint, drawn out away from the sun."""
        shift, across = -self.sun * self.weather.sun.sum() * 0.3 * (1, 0, 1), cross(UP, axis)
        length, width = length * 1.2 + abs(shift @ axis), width * 1.2 + abs(shift @ across)

        def surface(u, v):
            radius = (2 * u / length - 1) ** 4 + (2 * v / width - 1) ** 4
            return _paint(np.zeros(3), u, DECAL, strength * np.clip(1.4 * (1 - radius), 0, 1))

        middle = foot * (1, 0, 1) + 0.01 * UP + shift / 2
        self.quad(middle - axis * length / 2 - across * width / 2, axis, across, (length, width), surface)


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
        self.colours[ROAD], self.colours[SIDEWALK] = (
            jitter(rng, rgb("#575759"), 0.15),
            jitter(rng, rgb("#948f8a"), 0.15),
        )
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
        grain = strength[label] * noise(GRAINY, x * 14, z * 14) / (1 + z / 15)  # fades before it could flicker
        tone = 1 + 0.05 * noise(CLOUDY, x * 1.5, z * 0.7) + grain
        ruts = 0.03 * np.cos(lateral * np.pi * self.lanes / self.half) - 0.12 * (noise(CLOUDY, x, z / 4) > 1.4)
        tone += road * (ruts - 0.3 * (np.abs(kerb + 0.08) < 0.1)) + 0.16 * walk * (np.abs(kerb - 0.1) < 0.1)
        joint = (lateral % 1.3 < 0.05) | (z % 1.3 < 0.05)
        tone += walk * (0.06 * noise(GRAINY, lateral / 1.3, z / 1.3) - 0.14 * joint)
        tone -= 0.15 * (label == LINE) * (noise(CLOUDY, x * 9, z * 9) > 0.8)
        return self.colours[label] * tone[:, None], label, 1.0


def draw_building(canvas, town, rng, at, axis, width, side):
    """A house whose front's middle stands at `at`; side is +1 right of the road, -1 left of it."""
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
        tone = 0.7 + 0.3 * np.minimum(v / 2, 1) + 0.035 * noise(CLOUDY, u * 4 + salt, v * 4)
        tone += brick * (0.05 * noise(GRAINY, u * 4 + 0.5 * (v // 0.15 % 2), v / 0.15) - 0.08 * (v % 0.3 < 0.06))
        tone *= 1 + 0.18 * (frame | (np.abs(v - height + 0.15) < 0.15)) - 0.12 * (v % 3.1 < 0.16)
        out, lamp = colour * tone[:, None], noise(GRAINY, column + salt, floor * 7 + salt)
        glass = rgb("#29333f") + np.clip(0.1 * lamp + 0.35 * (v / 3.1 - floor) - 0.1, 0, 1)[:, None] * 0.8
        pane = np.where(front, (across < (0.45 if shop else 0.2)) & (v > 0.5 * shop) & (v < 2.4), pane)
        out[pane] = np.where((lamp > 1.5)[:, None], rgb("#d9b36b"), glass)[pane]
        out[front & (np.abs(v - 2.8) < 0.22 if shop else pane)] = trim * 1.3  # a shop's sign or a door
        return out, np.where(v < height + slope * (1 - np.abs(2 * u / length - 1)), BUILDING, CLEAR), 1.0

    out, corner = side * cross(UP, axis), at - axis * width / 2
    canvas.shadow(at + out * depth / 2, axis, width, depth)
    canvas.quad(corner, axis, UP, (width, height), partial(facade, length=width))
    end = corner + axis * width * ((canvas.eye - at) @ axis > 0)
    canvas.quad(end, out, UP, (depth, height + rise), partial(facade, length=depth, slope=rise))
    if rise:
        pitch, eave = out * depth / 2 + UP * rise, corner + UP * height - axis * 0.3
        run = np.linalg.norm(pitch)
        canvas.quad(eave, axis, pitch / run, (width + 0.6, run), lambda u, v: _paint(
            trim * 1.2, 0.9 + 0.1 * (v % 0.5 < 0.3) + 0.05 * noise(GRAINY, u * 3, v * 3), BUILDING))  # fmt: skip
        stack = at + axis * width / 4 + out * depth / 3 + UP * height
        canvas.block(stack, axis, (0.8, rise + 0.8, 0.8), colour, BUILDING)


def draw_car(canvas, town, rng, at, axis):
    """A car whose middle stands at `at` (3,) and whose front looks along the unit vector axis (3,)."""
    length, height, width = rng.uniform(3.9, 4.7), rng.uniform(1.4, 1.6), 1.8
    stations, heights, panels = CARS[rng.choice(3, p=(0.45, 0.35, 0.2))]
    points = np.array([stations, heights]).T * (length, height)
    colour, glass, across = jitter(rng, rng.choice(CAR_COLOURS)), rgb("#333d47"), cross(UP, axis)

    def panel(u, v, run, kind):
        out = colour * (0.95 + 0.05 * noise(CLOUDY, u * 9, v * 9))[:, None]
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
        x, y, leaves = u / spread - 1, v / height, noise(GRAINY, u * 18 + salt, v * 18)
        edge = 0.2 * leaves + 0.25 * noise(CLOUDY, u * 16 + salt, v * 16)
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
        return _paint(bars, 0.9 + 0.1 * (u % gap < gap * 0.3), FENCE, np.where(solid, 1.0, 0.2))

    def wall(u, v):
        stones = 0.06 * noise(GRAINY, u * 3 + 0.5 * (v // 0.2 % 2), v / 0.2) - 0.12 * (v % 0.4 < 0.07)
        stains = 0.05 * noise(CLOUDY, u * 6 + salt, v * 6) + 0.15 * (v > height - 0.12)
        return _paint(plaster, 0.75 + 0.2 * np.minimum(v, 1) + stones + stains, WALL)

    def hedge(u, v):
        top = height - 0.15 + 0.1 * noise(CLOUDY, u * 8, v * 0 + salt)
        tone = 0.7 + 0.25 * v / height + 0.16 * noise(GRAINY, u * 18 + salt, v * 18)
        return _paint(town.leaf * 0.9, tone, np.where(v < top, VEGETATION, CLEAR))

    canvas.shadow(at, axis, width, 0.5, 0.4)
    canvas.quad(at - axis * width / 2, axis, UP, (width, height), (fence, wall, hedge)[kind])


def draw_post(canvas, town, rng, at, axis, side):
    """A street lamp, a traffic light or a traffic sign: a pole and what it carries."""
    kind, first, second = rng.choice(5, p=(0.5, 0.16, 0.12, 0.1, 0.12)), rng.choice(SIGN_COLOURS), SIGN_WHITE
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
        out = np.where((bar ^ rim ^ (kind == 4))[:, None], first, second)
        return out, np.where(reach < 1, SIGN, CLEAR), 1.0

    canvas.shadow(at, axis, 0.4, 0.4)
    canvas.facing(at, thick, height, lambda u, v: _paint(grey, 1.1 - 0.6 * np.abs(u / thick - 0.35), POLE))
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


def furnish(street, town, rng):
    """Everything that stands in the street, as a list of (z, draw(canvas))."""
    things, cars, edge = [], [], street.half + street.walk

    def add(draw, lateral, z, turn=1, room=0.0, **more):
        if abs(z - street.cross) < edge + room:
            return  # on the crossing street
        if draw is draw_car:
            if any(abs(z - other) < 7 and abs(lateral - beside) < 2.2 for other, beside in cars):
                return
            cars.append((z, lateral))
        at, axis = street.at(lateral, z)
        things.append((z, partial(draw, town=town, rng=rng, at=at, axis=axis * turn, **more)))

    def build(side, z, width):
        setback = rng.uniform(*town.setback)
        if rng.random() < 0.62:
            add(draw_building, side * (edge + setback), z, room=width / 2, width=width, side=side)
        if setback > 1.2 and rng.random() < 0.85:
            add(draw_boundary, side * (edge + 0.3), z, room=width / 2, width=width)
        if setback > 3 and rng.random() < town.trees:
            add(draw_tree, side * (edge + 2), z)

    def line_kerb(side, z):
        shares = np.array([town.trees * 0.6, 0.55, 0.18, 0.1])
        draws = draw_tree, partial(draw_post, side=side), draw_other, draw_walker
        add(draws[rng.choice(4, p=shares / shares.sum())], side * (street.half + rng.uniform(0.4, 0.9)), z)
        if rng.random() < 0.35:
            add(draw_walker, side * rng.uniform(street.half + 0.5, edge - 0.4), z + rng.uniform(0, 4))
        if rng.random() < 0.16:
            add(draw_car, side * (street.half - 1.1), z + 3, turn=side, room=3)

    for side in (-1, 1):
        z = rng.uniform(-8, 4)
        while z < 120:
            width = rng.uniform(7, 15)
            build(side, z + width / 2, width)
            z += width + rng.choice([0, 0, rng.uniform(0, 12)])
        for z in np.cumsum(rng.uniform(3, 9, 14)) + 1:
            line_kerb(side, z)
    for z in np.cumsum(rng.uniform(6, 30, 4)) + 3:
        side = rng.choice([-1, 1])
        add(draw_car, side * street.half * rng.uniform(0.4, 0.55), z, turn=side)
    return things


def draw_skyline(canvas, town, rng):
    """The woods that close the view."""
    leaf, salt, tall = jitter(rng, town.leaf * 0.8), int(rng.integers(256)), rng.uniform(4, 12)

    def surface(u, v):
        top = tall + 2.2 * noise(CLOUDY, u / 4 + salt, u * 0) + 0.5 * noise(GRAINY, u * 2, u * 0)
        return _paint(leaf, 0.8 + 0.12 * noise(GRAINY, u * 2, v * 2), np.where(v < top, VEGETATION, CLEAR))

    canvas.quad(np.array([-300.0, 0, 160]), X, UP, (600, 30), surface)


def draw_sky(canvas, rng):
    """Fill what no ray has hit: a gradient, the glow of the sun and flat clouds in perspective."""
    weather, empty = canvas.weather, np.isinf(canvas.depth)
    rays = np.stack([canvas.on_rays(vector)[empty] for vector in (X, UP, Z)], 1)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    climb = np.clip(rays[:, 1:2], 0, 1)
    out = weather.horizon + climb**0.6 * (weather.zenith - weather.horizon)
    plane = rays[:, ::2] / (climb + 0.12) * rng.uniform(10, 22) + rng.uniform(0, 256, 2)
    cover = np.clip(0.55 * noise(CLOUDY, *plane.T) + 1.4 * weather.clouds - 0.9, 0, 0.85)[:, None]
    out += cover * (np.clip(weather.ambient * 1.25 + weather.sun * 0.35, 0, 1) - out)
    glow = np.clip(rays @ canvas.sun, 0, 1)[:, None] ** 24
    canvas.rgb[empty] = out + 0.35 * glow * weather.sun


def develop(canvas, rng) -> np.ndarray:
    """The camera: haze, wet road, 2x2 averaging, blur, exposure, vignette and noise; returns uint8 (H, W, 3)."""
    weather, (height, width) = canvas.weather, np.array(canvas.label.shape) // 2
    clear = np.exp(-weather.haze * np.where(np.isinf(canvas.depth), 0, canvas.depth))[..., None]
    light = weather.horizon + (canvas.rgb - weather.horizon) * clear
    if weather.wet:
        skyline = canvas.project((canvas.eye + canvas.ahead * (1e6, 0, 1e6))[None])[0, 1]
        mirror = np.clip(2 * skyline - np.arange(len(light)), 0, len(light) - 1).astype(int)
        wet = np.isin(canvas.label, (ROAD, LINE))
        light[wet] += weather.wet * (light[mirror][wet] - light[wet])
    light = light.reshape(height, 2, width, 2, 3).mean((1, 3))
    soft = np.pad(light, ((1, 1), (1, 1), (0, 0)), "edge")
    soft = (soft[:-2, 1:-1] + soft[2:, 1:-1] + soft[1:-1, :-2] + soft[1:-1, 2:]) / 4
    light += rng.uniform(0, 0.5) * (soft - light)
    y, x = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[:, None]
    light = light * rng.uniform(0.82, 1.12) * (1 - rng.uniform(0.02, 0.12) * (x * x + y * y))
    light += rng.normal(0, rng.uniform(0.006, 0.02), (height, width, 1)) + rng.normal(0, 0.006, light.shape)
    return (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8)


def _town(split, index):
    return SPLIT_TOWNS[split][index % len(SPLIT_TOWNS[split])]


def render_scene(split: str, index: int, size=(180, 320), seed: int = 42):
    """Draw scene `index` of a split; the same arguments always give the same bytes.

    Returns (image uint8 (H, W, 3), mask uint8 (H, W) with classes 0..12 and in test 13, info dict with the town,
    the weather and for every anomaly its family and visible box (x0, y0, x1, y1) in pixels, ends exclusive).
    Raises ValueError for an unknown split.
    """
    if split not in FOLDERS:
        raise ValueError(f"render_scene: unknown split {split!r}; use one of {', '.join(FOLDERS)}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, list(FOLDERS).index(split), index]))
    town = TOWNS[_town(split, index)]
    weather, street = rng.choice(town.weathers.split()), Street(town, rng)
    canvas = Canvas(size, WEATHERS[weather], rng, street.half * rng.uniform(0.2, 0.6))
    canvas.quad(-500 * X, X, Z, (1000, 600), street.ground)
    draw_skyline(canvas, town, rng)
    for _, draw in sorted(furnish(street, town, rng), key=lambda thing: -thing[0]):
        draw(canvas)
    anomalies = add_anomalies(canvas, street, rng) if split == "test" else []
    draw_sky(canvas, rng)
    info = {"town": _town(split, index), "weather": str(weather), "anomalies": anomalies}
    return develop(canvas, rng), canvas.label[::2, ::2].copy(), info


def _paths(split, index):
    """Image and annotation of a scene, relative to the root of the data set."""
    top, folder = FOLDERS[split]
    return [f"{top}/{kind}/{folder}/{_town(split, index)}/{index}.png" for kind in ("images", "annotations")]


def _write_scene(task, root, size, seed):
    image, mask, _ = render_scene(*task, size, seed)
    for path, pixels in zip(_paths(*task), (image, mask + 1), strict=True):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path, compress_level=4)


def _fingerprint(root: Path) -> str:
    """SHA-256 over the names and bytes of all files but the manifest."""
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != "scenes.json"):
        digest.update(path.relative_to(root).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_complete(root: Path, wanted: dict) -> bool:
    """Whether the wanted data set is at root, whole; raises FileExistsError if anything else is there."""
    manifest = root / "scenes.json"
    found = json.loads(manifest.read_text()) if manifest.is_file() else None
    if root.exists() and found != wanted | {"files_sha256": _fingerprint(root)}:
        raise FileExistsError(f"{root} holds another or a damaged data set; delete it or choose another root")
    return root.exists()


def write_dataset(root, counts=COUNTS, size=(180, 320), seed=42, workers=None, progress=True) -> None:
    """Write the miniature data set under root in StreetHazards' layout: labels 1..14, .odgt lists, scenes.json.

    counts maps split to number of scenes, size is (H, W) in pixels; workers is the number of processes (None: one
    a core), which the files do not depend on. All is written to <root>.partial and renamed at the end; an equal,
    whole data set at root is kept. Raises FileExistsError if root holds anything else.
    """
    root, counts = Path(root), dict(counts)
    wanted = {"version": VERSION, "seed": seed, "counts": counts, "size": list(size)}
    if _is_complete(root, wanted):
        return
    unfinished = root.with_name(root.name + ".partial")
    if unfinished.exists():  # left by a killed run
        shutil.rmtree(unfinished)
    tasks = [(split, index) for split, count in counts.items() for index in range(count)]
    write = partial(_write_scene, root=unfinished, size=tuple(size), seed=seed)
    quiet = not (progress and sys.stderr.isatty())
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in tqdm(pool.imap_unordered(write, tasks, 4), "scenes", len(tasks), disable=quiet):
            pass
    for split, count in counts.items():
        keys, shape = ("fpath_img", "fpath_segm"), {"width": size[1], "height": size[0]}
        rows = [dict(zip(keys, _paths(split, i), strict=True)) | shape for i in range(count)]
        (unfinished / LISTS[split]).write_text(json.dumps(rows, indent=1))
    manifest = wanted | {"files_sha256": _fingerprint(unfinished)}
    (unfinished / "scenes.json").write_text(json.dumps(manifest, indent=1))
    unfinished.rename(root)
