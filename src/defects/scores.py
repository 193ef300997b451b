"""From an image to score maps: the signals of a method, and what they exceed the usual by.

Every method gives one or two signals at each position of a grid (``SIGNALS``). *Uninformed Students*, for M students
S_k with mean mu and the normalised teacher T (Bergmann et al., arXiv:1911.02357): ``error`` e = |mu - T|^2 and
``uncertainty`` v = mean_k |S_k - mu|^2. The others: see ``features``. Scores are

- each signal z-scored by its mean and std over defect-free validation images, which makes patch sizes comparable, and
  where there are two, their ``sum``;
- ``calibrated``: the log of each signal, less what is usual for such a place on defect-free validation images and in
  units of its spread there, summed and smoothed. Signals are long-tailed, grow with contrast (the squared norm of what
  describes the place) and near the border, where places are seldom alike: without this, the brightest normal corner
  outshines a fine crack.

Maps of several patch sizes are averaged. An image's score is the maximum of its map.
"""

from collections import defaultdict

import torch
from scipy import ndimage
from torch.nn import functional as F

from src import settings, training
from src.backbones import normalize
from src.defects.config import Config
from src.defects.data import DefectDataset
from src.defects.dense import dense
from src.defects.features import FeatureDetector, upsample
from src.defects.model import Detector, PatchNet, Students
from src.defects.students import resize

SIGNALS = {
    "uninformed_students": ("error", "uncertainty"),
    "feature_student": ("error",),
    "nearest_neighbours": ("distance",),
}
HEADLINE = "calibrated"  # chosen on validation images
RINGS = 6  # distances to the border told apart, an eighth of a patch wide (4 px at least); the last is the rest
_STRIDE = 4  # the coarsest to calibrate at: no ring may be empty
_TINY = 1e-12  # one student is never uncertain: 0 / 0 is to be 0


@torch.inference_mode()
def raw_maps(teacher: PatchNet, students: Students, images: torch.Tensor, stride: int) -> torch.Tensor:
    """Error, uncertainty and squared norm of the target: float32 (3,B,ceil(H/stride),ceil(W/stride)).

    ``images`` is float32 (B,3,H,W), normalised.
    """
    target = students.normalize(dense(teacher, images, stride))
    predictions = [dense(net, images, stride) for net in students.nets]
    mean = torch.stack(predictions).mean(0)
    error = (mean - target).square().sum(1)
    uncertainty = torch.stack([(prediction - mean).square().sum(1) for prediction in predictions]).mean(0)
    return torch.stack([error, uncertainty, target.square().sum(1)])


def smooth(score: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian filter of a map (h,w): a defect spans more than one position, noise does not."""
    return torch.from_numpy(ndimage.gaussian_filter(score.numpy(), sigma, mode="mirror", radius=round(3 * sigma)))


def pixels_of(images: torch.Tensor, config: Config) -> torch.Tensor:
    """The networks' input of images uint8 (B,3,H,W): float32 (B,3,h,w), resized and normalised, on the device."""
    return training.to_device(normalize(resize(images, config.image_size)))


def signal_maps(
    model: Detector, category: str, pixels: torch.Tensor, config: Config, stride: int
) -> dict[str, torch.Tensor]:
    """Patch size -> the method's signals and the contrast, float32 (S+1,B,h,w) on the CPU, of ``pixels_of`` images."""
    if isinstance(model, FeatureDetector):
        return {str(model.patch_size): model(pixels, category).cpu()}
    students = {str(size): model.students[category][str(size)] for size in config.patch_sizes}
    return {size: raw_maps(model.teachers[size], own, pixels, stride).cpu() for size, own in students.items()}


def score_maps(
    model: Detector, category: str, images: torch.Tensor, calibration: dict, config: Config
) -> list[dict[str, torch.Tensor]]:
    """Score name -> map float32 (h,w) on the CPU, of each image uint8 (B,3,H,W), at the size the model works at."""
    pixels = pixels_of(images, config)
    signals = signal_maps(model, category, pixels, config, getattr(model, "stride", config.stride))
    of_images = ({size: maps[:, k] for size, maps in signals.items()} for k in range(len(images)))
    return [_scores(model, maps, tuple(pixels.shape[-2:]), calibration, config) for maps in of_images]


def _scores(
    model: Detector, signals: dict[str, torch.Tensor], size: tuple[int, int], calibration: dict, config: Config
) -> dict[str, torch.Tensor]:
    stride, of_sizes = getattr(model, "stride", config.stride), []
    for name, maps in signals.items():
        mean, std = torch.tensor(calibration[name]["zscore"]).T[:, :, None, None]
        zscores = upsample((maps[:-1] - mean) / std, stride, size)
        calibrated = calibrated_map(maps, calibration[name], stride, int(name))
        if isinstance(model, FeatureDetector):
            calibrated -= calibrated.median()  # unusual light lifts all places of an image; chosen on validation images
        of_sizes.append(torch.stack([*zscores, smooth(upsample(calibrated, stride, size), int(name) / 8)]))
    *signals, calibrated = torch.stack(of_sizes).mean(0)
    total = {"sum": sum(signals)} if len(signals) > 1 else {}
    return dict(zip(SIGNALS[config.method], signals, strict=True)) | total | {HEADLINE: calibrated}


# --------------------------------------------------------------------------------------- calibration
def rings(shape: tuple[int, int], stride: int, patch_size: int) -> torch.Tensor:
    """Which ring along the border each position (h,w) of a map lies in, int64, 0 at the border."""
    rows, columns = (torch.minimum(torch.arange(n), torch.arange(n).flip(0)) for n in shape)
    distance = stride * torch.minimum(rows[:, None], columns[None])
    return (distance // max(_STRIDE, patch_size // 8)).clamp(max=RINGS - 1)


def calibrated_map(maps: torch.Tensor, calibration: dict, stride: int, patch_size: int) -> torch.Tensor:
    """What the signals exceed the usual by, in units of their spread: ``signal_maps`` (S+1,h,w) -> (h,w)."""
    ring = rings(maps.shape[1:], stride, patch_size)
    logs, terms = _terms(maps, torch.tensor(calibration["offset"]), ring)
    usual = torch.einsum("ik,khw->ihw", torch.tensor(calibration["weights"]), terms)
    return ((logs - usual) / torch.tensor(calibration["spread"])[:, ring]).sum(0)


def _terms(maps: torch.Tensor, offset: torch.Tensor, ring: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logs of the signals (S,h,w), and what predicts them (RINGS + 2,h,w): ring, log contrast, its square.

    ``offset`` (S+1,), the means over normal pixels, keeps what is small from mattering: log(x + offset).
    """
    *logs, contrast = (maps + offset[:, None, None]).log()
    rows = F.one_hot(ring, RINGS).permute(2, 0, 1).float()
    return torch.stack(logs), torch.cat([rows, contrast[None], contrast[None].square()])


def calibrate(model: Detector, category: str, val: DefectDataset, config: Config) -> dict[str, dict]:
    """What scoring needs beside the weights, from the normal validation images alone, for each patch size.

    ``zscore`` (S,2): mean and std of each signal over pixels. ``offset`` (S+1): means of the signals and of the
    contrast. ``weights`` (S, RINGS + 2), ``spread`` (S, RINGS): least squares of the signals' logs on ring and log
    contrast, and the std of its residuals in each ring.
    """
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    stride, of_sizes = getattr(model, "stride", min(config.stride, _STRIDE)), defaultdict(list)
    for sample in val.normal():
        pixels = pixels_of(sample["image"][None], config)
        for name, maps in signal_maps(model, category, pixels, config, stride).items():
            of_sizes[name].append(maps[:, 0])
    return {
        name: _fit(of_size, [rings(maps.shape[1:], stride, int(name)) for maps in of_size])
        for name, of_size in of_sizes.items()
    }


def _fit(maps: list[torch.Tensor], ring: list[torch.Tensor]) -> dict[str, list]:
    """The calibration of one patch size, from signals and contrast (S+1,h,w) and rings (h,w) of normal images."""
    pixels = torch.cat([m.flatten(1) for m in maps], 1).double()
    offset = pixels.mean(1).float().clamp(min=_TINY)
    pairs = [_terms(m, offset, r) for m, r in zip(maps, ring, strict=True)]
    logs, terms = (torch.cat([part.flatten(1) for part in parts], 1).double() for parts in zip(*pairs, strict=True))
    ring = torch.cat([r.flatten() for r in ring])
    weights = torch.linalg.solve(terms @ terms.T + 1e-6 * torch.eye(len(terms)), terms @ logs.T).T
    residuals = logs - weights @ terms
    return {
        "zscore": torch.stack([pixels[:-1].mean(1), pixels[:-1].std(1).clamp(min=_TINY)], 1).tolist(),
        "offset": offset.tolist(),
        "weights": weights.tolist(),
        "spread": torch.stack([_spread(residuals, ring == k) for k in range(RINGS)], 1).tolist(),
    }


def _spread(residuals: torch.Tensor, in_ring: torch.Tensor) -> torch.Tensor:
    """Std (S,) of the residuals in a ring; over all rings where images are too small to reach this one."""
    inside = residuals[:, in_ring] if in_ring.sum() > 1 else residuals
    return inside.std(1).clamp(min=1e-6)
