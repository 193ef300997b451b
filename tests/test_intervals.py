"""The interval of a mean; those of other statistics are tested with the metrics that they resample."""

import pytest
import torch

from src import metrics as intervals


def test_intervals_hold_the_mean_and_narrow_with_the_number_of_values():
    for count in (200, 2000):
        correct = torch.arange(count) % 10 < 7
        low, high = intervals.mean_interval(correct)
        assert low < 0.7 < high and high - low == pytest.approx(2 * 1.96 * (0.21 / count) ** 0.5, rel=0.15)
    assert intervals.mean_interval(torch.ones(50, dtype=torch.bool)) == (1, 1)
    assert intervals.mean_interval([0.0] * 50) == (0, 0)


def test_the_mean_is_of_any_numbers():
    ones = intervals.mean_interval([k % 10 < 7 for k in range(200)])
    assert intervals.mean_interval([3.0 * (k % 10 < 7) - 1 for k in range(200)]) == pytest.approx([3 * x - 1 for x in ones])
