"""What all generators paint with: noise, rotation, soft edges, mixed colours, and the steps of a simple camera."""

import math
from functools import cache

import numpy as np
from PIL import ImageColor
from scipy import fft


def rgb(text: str) -> np.ndarray:
    """Colours as hex codes to float32 in 0..1: (3,) for one, (n,3) for n codes between blanks."""
    return np.squeeze(np.array([ImageColor.getrgb(code) for code in text.split()], np.float32) / 255)


def subpixels(side: int) -> np.ndarray:
    """Rows and columns, float64 (2,2*side,2*side) in pixels, of the middles of a picture's sub-pixels."""
    return (np.mgrid[: 2 * side, : 2 * side] + 0.5) / 2


@cache
def _frequencies(side: int, dtype) -> np.ndarray:
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)).astype(dtype)
    radius[0, 0] = np.inf  # noise has no mean
    return radius


def noise(rng: np.random.Generator, power: float, side: int, dtype=np.float32) -> np.ndarray:
    """Periodic noise (side,side) of unit variance, amplitudes 1 / frequency**power."""
    white = rng.standard_normal((side, side), dtype=dtype)
    pattern = fft.irfft2(fft.rfft2(white) * _frequencies(side, dtype) ** -power)
    return pattern / pattern.std()


def rotate(x, y, angle: float) -> tuple:
    """Coordinates along axes that are turned by an angle in radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def step(edge, ramp: float = 0.5):
    """0 where edge is negative, 1 where it is positive, linear over a width of `ramp`."""
    return np.clip(edge / ramp + 0.5, 0, 1)


def mix(base, other, share):
    """base where share is 0, other where it is 1; the three broadcast."""
    return base + share * (other - base)


def halve(picture: np.ndarray) -> np.ndarray:
    """Average over 2x2 sub-pixels: (2H,2W,C) to (H,W,C)."""
    height, width, channels = picture.shape
    return picture.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def soften(picture: np.ndarray, share: float) -> np.ndarray:
    """Mix every pixel of (H,W,...) with the mean of its four neighbours."""
    padded = np.pad(picture, [(1, 1), (1, 1)] + [(0, 0)] * (picture.ndim - 2), "edge")
    neighbours = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
    return mix(picture, neighbours, share)


def to_uint8(levels: np.ndarray) -> np.ndarray:
    """Grey levels or colours from 0 to 255, rounded and clipped to uint8."""
    return np.clip(levels + 0.5, 0, 255).astype(np.uint8)
