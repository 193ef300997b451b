"""Checks the pixel metrics against a stored score map whose values scikit-learn computed once.

    python -m tests.check_metrics

``tests/reference/scores.npz`` holds ``score`` (float16 (H,W), max logit of a synthetic test scene), ``mask`` (uint8
(H,W): 0 normal, 1 anomalous, 255 ignored) and ``aupr``, ``auroc``, ``fpr95`` of its labelled pixels: scikit-learn 1.9's
``average_precision_score``, ``roc_auc_score``, and the lowest false positive rate of ``roc_curve`` at a recall of 0.95.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from src.metrics import PixelRanking

STORED = Path(__file__).parent / "reference" / "scores.npz"
LARGEST_DIFFERENCE = 1e-4  # the bound that every ranking keeps


def differences(stored: Path = STORED) -> dict[str, tuple[float, float]]:
    """Metric -> (our value, scikit-learn's stored one)."""
    with np.load(stored) as content:
        score, mask = torch.from_numpy(content["score"]).float(), torch.from_numpy(content["mask"])
        expected = {name: float(content[name]) for name in ("aupr", "auroc", "fpr95")}
    ranking, labelled = PixelRanking(), mask != 255
    ranking.update(score[labelled], mask[labelled] == 1)
    found = ranking.compute()
    return {name: (found[name].value, value) for name, value in expected.items()}


def main() -> int:
    """0 if all agree, else 1."""
    rows = differences()
    for name, (value, expected) in rows.items():
        print(f"{name:6} {value:.6f}  scikit-learn {expected:.6f}  difference {abs(value - expected):.1e}")
    return int(any(abs(value - expected) > LARGEST_DIFFERENCE for value, expected in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
