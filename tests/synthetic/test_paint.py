"""What the generators paint with, by its definition."""

import numpy as np
import pytest

from src.synthetic import paint


@pytest.mark.parametrize("power", [0.2, 1.4, 2.2])
def test_noise_has_the_stated_spectrum(power):
    pattern = paint.noise(np.random.default_rng(0), power, 128)
    assert pattern.shape == (128, 128) and pattern.dtype == np.float32
    assert abs(pattern.mean()) < 1e-3 and pattern.std() == pytest.approx(1, abs=1e-3)
    spectrum = abs(np.fft.fft2(pattern))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    bands = [(radius > low) & (radius < 1.2 * low) for low in (0.05, 0.1, 0.2, 0.4)]
    slope = np.polyfit(
        [np.log(radius[band].mean()) for band in bands], [np.log(spectrum[band].mean()) for band in bands], 1
    )
    assert slope[0] == pytest.approx(-power, abs=0.15)


def test_rotation_and_edges():
    x, y = paint.rotate(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.pi / 2)
    np.testing.assert_allclose([x, y], [[0, 1], [-1, 0]], atol=1e-12)
    np.testing.assert_allclose(paint.step(np.array([-1, -0.25, 0, 0.25, 1])), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(paint.step(np.array([-1, 1]), ramp=4), [0.25, 0.75])


def test_camera():
    picture = np.arange(48.0).reshape(4, 4, 3)
    np.testing.assert_allclose(paint.halve(picture)[0, 1], picture[:2, 2:].mean((0, 1)))
    dot = np.zeros((5, 5, 1))
    dot[2, 2] = 1
    soft = paint.soften(dot, 0.4)[..., 0]
    assert soft[2, 2] == pytest.approx(0.6) and soft[1, 2] == soft[2, 3] == pytest.approx(0.1) and soft[1, 1] == 0
    np.testing.assert_array_equal(paint.to_uint8(np.array([-9.0, 0.4, 0.6, 254.6, 300])), [0, 0, 1, 255, 255])
    np.testing.assert_allclose(paint.rgb("#fff #00f"), [(1, 1, 1), (0, 0, 1)])
    np.testing.assert_allclose(paint.subpixels(16)[:, 0, :3], [[0.25] * 3, [0.25, 0.75, 1.25]])
