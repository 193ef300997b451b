"""A pinhole camera's canvas, on which rectangles in the world are ray cast, depth tested, lit and labelled.

World: metres; x right, y up, z ahead. A surface is coloured by a function of its own (u, v) in metres, so that
perspective and occlusion hold by construction. The canvas has twice the image's size: colour is averaged over 2x2
sub-pixels in the end, labels are not, and mask edges stay crisp.
"""

import numpy as np
from PIL import ImageColor

CLEAR, DECAL = 255, 254  # labels of a surface: nothing is here; colour only, the label below stays
NEAR = 0.4  # metres; nothing closer is drawn
X, UP, Z = np.eye(3)


def rgb(text: str) -> np.ndarray:
    """Colours as hex codes to float32 in 0..1: (3,) for one, (n, 3) for n codes between blanks."""
    return np.squeeze(np.array([ImageColor.getrgb(code) for code in text.split()], np.float32) / 255)


def _noise(power: float, seed: int):
    """Noise of unit variance, amplitudes 1 / frequency**power, as f(u, v) of period 256 and constant in unit cells."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).standard_normal((256, 256)))
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    radius[0, 0] = np.inf  # no mean
    tile = np.fft.irfft2(spectrum / radius**power)
    tile = (tile / tile.std()).astype(np.float32)
    return lambda u, v: tile[np.floor(u).astype(np.int32) & 255, np.floor(v).astype(np.int32) & 255]


cloudy, grainy = _noise(1.4, 0), _noise(0.4, 1)


def cross(a, b) -> np.ndarray:
    """Cross product of two vectors (3,); NumPy's own takes ten times as long on so few numbers."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def jitter(rng, colour, amount=0.12) -> np.ndarray:
    """The colour with its brightness (mostly) and hue (a little) changed at random."""
    colour = colour * rng.uniform(1 - amount, 1 + amount) * (1 + rng.normal(0, amount / 4, 3))
    return np.clip(colour, 0.02, 1).astype(np.float32)


def paint(colour, tone, label, alpha=1.0):
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
        """Slices of the pixels that may see a polygon: none behind the camera, all where it crosses its plane."""
        pixels, limits = self.project(corners), np.array(self.depth.shape[::-1])
        before = pixels[:, 2] >= NEAR
        low, high = np.zeros(2), limits * before.any()
        if before.all():
            low, high = np.floor(pixels[:, :2].min(0)), np.ceil(pixels[:, :2].max(0))
        (left, top), (end, bottom) = np.clip([low, high], 0, limits).astype(int)
        return slice(top, bottom), slice(left, end)

    def lit(self, normal) -> np.ndarray:
        """Light (RGB) that a surface with this unit normal receives from sky and sun."""
        ambient, sun = 0.85 + 0.15 * float(normal[1]), max(0.0, float(normal @ self.sun))
        return self.weather.ambient * ambient + self.weather.sun * sun

    def quad(self, origin, along, up, extent, surface, normal=None) -> None:
        """Paint a rectangle from its corner along two unit vectors; surface(u, v) returns what `paint` does."""
        box = self._bounds(np.array([origin + a * along + b * up for a in (0, extent[0]) for b in (0, extent[1])]))
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
            self.quad(*face, lambda u, v: paint(colour, 0.95 + 0.06 * grainy(u * 20, v * 20), label))

    def shadow(self, foot, axis, length, width, strength=0.6) -> None:
        """Darken the ground softly under a thing of this footprint, drawn out away from the sun."""
        shift, across = -self.sun * self.weather.sun.sum() * 0.3 * (1, 0, 1), cross(UP, axis)
        length, width = length * 1.2 + abs(shift @ axis), width * 1.2 + abs(shift @ across)

        def surface(u, v):
            radius = (2 * u / length - 1) ** 4 + (2 * v / width - 1) ** 4
            return paint(np.zeros(3), u, DECAL, strength * np.clip(1.4 * (1 - radius), 0, 1))

        middle = foot * (1, 0, 1) + 0.01 * UP + shift / 2
        self.quad(middle - axis * length / 2 - across * width / 2, axis, across, (length, width), surface)
