"""How well a segmentation fits, how well a score ranks anomalous pixels, and how sure these numbers are.

Everything here is a sufficient statistic: updated image by image, merged over shards or ranks, and turned into
numbers once, over the whole split; nothing is a mean of batch means.
"""

from src.metrics.intervals import ImageHistograms, bootstrap, mean_interval
from src.metrics.pixel_ranking import Bounded, PixelRanking, SortedScores, metric_from_counts
from src.metrics.regions import RegionOverlap
from src.metrics.segmentation import ConfusionMatrix, class_iou, mean_iou

__all__ = [
    "Bounded",
    "ConfusionMatrix",
    "ImageHistograms",
    "PixelRanking",
    "RegionOverlap",
    "SortedScores",
    "bootstrap",
    "class_iou",
    "mean_interval",
    "mean_iou",
    "metric_from_counts",
]
