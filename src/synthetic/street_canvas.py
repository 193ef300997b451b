"""A pinhole camera's canvas, on which rectangles in the world are ray cast, depth tested, lit and labelled.

World: metres; x right, y up, z ahead. A surface is coloured by a function of its own (u, v) in metres, so that
perspective and occlusion hold by construction. The canvas has twice the image's size: colour is averaged over 2x2
sub-pixels in the end, labels are not, and mask edges stay crisp.
"""

import math

import numpy as np

from src.synthetic.paint import mix, noise

CLEAR, DECAL = 255, 254  # labels of a surface: nothing is here; colour only, the label below stays
NEAR = 0.4  # metres; nothing closer is drawn
X, UP, Z = np.eye(3)


def _pattern(power: float, seed: int):
    """Noise of unit variance, amplitudes 1 / frequency**power, as f(u, v) of period 256 and constant in unit cells."""
    tile = noise(np.random.default_rng(seed), power, 256, np.float64).astype(np.float32).ravel()

    def at(u, v):
        row, column = np.floor(u).astype(np.int32) & 255, np.floor(v).astype(np.int32) & 255
        return tile[256 * row + column]

    return at


cloudy, grainy = _pattern(1.4, 0), _pattern(0.4, 1)


def cross(a, b) -> np.ndarray:
    """Cross product of two vectors (3,); NumPy's own takes ten times as long on so few numbers."""
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def jitter(rng, colour, amount=0.12) -> np.ndarray:
    """The colour with its brightness (mostly) and hue (a little) changed at random."""
    colour = colour * rng.uniform(1 - amount, 1 + amount) * (1 + rng.normal(0, amount / 4, 3))
    return np.clip(colour, 0.02, 1).astype(np.float32)


def shade(colour, tone, label, alpha=1.0):
    """What a surface returns: colour (3,) times tone (N,), label (N,) or int, opacity float, or (N,) of one label."""
    return colour * np.asarray(tone)[:, None], label, alpha


def _span(places, side: int) -> slice:
    """The pixels of 0..side that some places lie in, and one more on either side."""
    return slice(max(0, math.floor(min(places)) - 1), max(0, min(side, math.ceil(max(places)) + 1)))


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
        self.axes = np.stack([self.right, self.above, self.ahead], 1)
        self.columns = ((np.arange(width) + 0.5 - width / 2) / self.focal).astype(np.float32)[None]
        self.rows = ((height / 2 - np.arange(height) - 0.5) / self.focal).astype(np.float32)[:, None]
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.depth = np.full((height, width), np.inf, np.float32)
        azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.35, 0.9)
        self.sun = np.array([np.sin(azimuth), np.tan(elevation), np.cos(azimuth)]) * np.cos(elevation)

    def on_rays(self, vectors, box=(slice(None), slice(None))) -> np.ndarray:
        """Dot products (n,h,w) of world vectors (n,3) with the rays, of depth 1, of the pixels of a box."""
        right, above, ahead = (vectors @ self.axes).astype(np.float32).T[..., None, None]
        return self.columns[:, box[1]] * right + ahead + self.rows[box[0]] * above

    def project(self, point) -> tuple[float, float]:
        """Row and column, in sub-pixels, of a point (3,) of the world that lies before the camera."""
        return self._pixel(*((point - self.eye) @ self.axes).tolist())

    def _pixel(self, right, above, ahead):
        height, width = self.depth.shape
        return height / 2 - self.focal * above / ahead, width / 2 + self.focal * right / ahead

    def _box(self, corners):
        """Slices of the pixels that may see a polygon (n,3), of which only what lies beyond NEAR is drawn; or None."""
        seen, pixels = ((corners - self.eye) @ self.axes).tolist(), []
        for start, end in zip(seen, seen[1:] + seen[:1], strict=True):
            if start[2] >= NEAR:
                pixels.append(self._pixel(*start))
            if (start[2] >= NEAR) != (end[2] >= NEAR):  # an edge that comes too close is cut
                share = (NEAR - start[2]) / (end[2] - start[2])
                pixels.append(self._pixel(*(mix(a, b, share) for a, b in zip(start, end, strict=True))))
        spans = [_span(places, side) for places, side in zip(zip(*pixels, strict=True), self.depth.shape, strict=False)]
        return tuple(spans) if all(span.start < span.stop for span in spans) and spans else None

    def lit(self, normal) -> np.ndarray:
        """Light (RGB) that a surface with this unit normal receives from sky and sun."""
        ambient, sun = 0.85 + 0.15 * float(normal[1]), max(0.0, float(normal @ self.sun))
        return self.weather.ambient * ambient + self.weather.sun * sun

    def quad(self, origin, along, up, extent, surface, normal=None) -> None:
        """Paint a rectangle from its corner along two unit vectors; surface(u, v) returns what `shade` does."""
        width, height = extent[0] * along, extent[1] * up
        box = self._box(np.array([origin, origin + width, origin + width + height, origin + height]))
        if box is None:
            return
        rgb, labels, depths = self.rgb[box], self.label[box], self.depth[box]
        plane = cross(along, up)
        directions = np.stack([plane, along, up])
        distance, u_eye, v_eye = (directions @ (self.eye - origin)).tolist()  # of the camera
        toward_plane, along_u, along_v = self.on_rays(directions, box)
        with np.errstate(divide="ignore", invalid="ignore"):  # rays parallel to the plane never hit it
            depth = -distance / toward_plane
            u = u_eye + depth * along_u
            v = v_eye + depth * along_v
            hit = (depth > NEAR) & (depth < depths)
            hit &= (u >= 0) & (u <= extent[0]) & (v >= 0) & (v <= extent[1])
        if not hit.any():
            return
        colour, label, alpha = surface(u[hit], v[hit])
        if np.ndim(label):
            solid = label != CLEAR
            hit[hit] = solid
            colour, label = colour[solid], label[solid]
        if np.ndim(alpha):
            alpha = alpha[:, None]
        below = rgb[hit]
        light = self.lit(plane * np.sign(distance) if normal is None else normal)
        rgb[hit] = mix(below, colour * light, alpha)
        if np.ndim(label) or label != DECAL:
            labels[hit] = label
        depths[hit] = depth[hit]

    def facing(self, foot, width, height, surface) -> None:
        """Paint an upright rectangle turned to the camera; foot (3,) is the middle of its lower edge."""
        self.quad(foot - self.right * width / 2, self.right, UP, (width, height), surface, normal=0.8 * UP)

    def block(self, foot, axis, size, colour, label) -> None:
        """Paint a box of size (length, height, width); axis is the unit direction of its length."""
        (length, height, width), across = size, cross(UP, axis)

        def surface(u, v):
            return shade(colour, 0.95 + 0.06 * grainy(u * 20, v * 20), label)

        corner = foot - axis * length / 2 - across * width / 2
        end = corner + axis * length * ((self.eye - foot) @ axis > 0)
        flank = corner + across * width * ((self.eye - foot) @ across > 0)
        self.quad(end, across, UP, (width, height), surface)
        self.quad(flank, axis, UP, (length, height), surface)
        self.quad(corner + UP * height, axis, across, (length, width), surface)

    def shadow(self, foot, axis, length, width, strength=0.6) -> None:
        """Darken the ground softly under a thing of this footprint, drawn out away from the sun."""
        shift, across = -self.sun * self.weather.sun.sum() * 0.3 * (1, 0, 1), cross(UP, axis)
        length, width = length * 1.2 + abs(shift @ axis), width * 1.2 + abs(shift @ across)

        def surface(u, v):
            radius = (2 * u / length - 1) ** 4 + (2 * v / width - 1) ** 4
            return shade(np.zeros(3), u, DECAL, strength * np.clip(1.4 * (1 - radius), 0, 1))

        middle = foot * (1, 0, 1) + 0.01 * UP + shift / 2
        self.quad(middle - axis * length / 2 - across * width / 2, axis, across, (length, width), surface)
