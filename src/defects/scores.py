"""From an image to score maps: where students fail to predict the teacher's descriptors, and disagree.

For M students S_k with mean mu and the normalised teacher T, at every pixel, as in Bergmann et al. (arXiv:1911.02357):

- ``error`` e = |mu - T|^2 and ``uncertainty`` v = mean_k |S_k - mu|^2, each z-scored by its mean and std over
  defect-free validation images, which makes patch sizes comparable; ``sum`` of the two;
- ``calibrated``: log e and log v, each less what is usual for such a patch on defect-free validation images and in
  units of its spread there, summed and smoothed. Both are long-tailed, grow with a patch's contrast (|T|^2) and near
  the border, where reflection makes patches that are seldom seen: without this, the brightest normal corner
  outshines a fine crack.

Maps of several patch sizes are averaged. An image's score is the maximum of its map.
"""

import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from src import settings, training
from src.backbones import normalize
from src.defects.config import Config
from src.defects.data import DefectDataset
from src.defects.dense import dense
from src.defects.model import PatchNet, Students, StudentTeacher
from src.defects.students import resize

SCORES = ("error", "uncertainty", "sum", "calibrated")
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


def upsample(maps: torch.Tensor, stride: int, size: tuple[int, int]) -> torch.Tensor:
    """Maps (...,h,w) known at the pixels 0, stride, ... -> (...,H,W): bilinear between, the last held at the edge."""
    if stride == 1:
        return maps
    *lead, height, width = maps.shape
    reached = ((height - 1) * stride + 1, (width - 1) * stride + 1)
    full = F.interpolate(maps.reshape(1, -1, height, width), reached, mode="bilinear", align_corners=True)
    full = F.pad(full, (0, size[1] - reached[1], 0, size[0] - reached[0]), mode="replicate")
    return full.reshape(*lead, *size)


def smooth(score: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian filter of a map (h,w): a defect spans more than one position, noise does not."""
    return TF.gaussian_blur(score[None], 2 * round(3 * sigma) + 1, sigma)[0]


def pixels_of(image: torch.Tensor, config: Config) -> torch.Tensor:
    """The networks' input of an image uint8 (3,H,W): float32 (1,3,h,w), resized and normalised, on the device."""
    return training.to_device(normalize(resize(image, config.image_size))[None])


def score_maps(
    model: StudentTeacher, category: str, image: torch.Tensor, calibration: dict, config: Config
) -> dict[str, torch.Tensor]:
    """Score name -> map float32 (h,w) on the CPU, of one image uint8 (3,H,W), at the size the model works at."""
    pixels = pixels_of(image, config)
    size, stride, of_sizes = tuple(pixels.shape[-2:]), config.stride, []
    for patch_size in config.patch_sizes:
        name = str(patch_size)
        maps = raw_maps(model.teachers[name], model.students[category][name], pixels, stride)[:, 0].cpu()
        mean, std = torch.tensor(calibration[name]["zscore"]).T[:, :, None, None]
        zscores = upsample((maps[:2] - mean) / std, stride, size)
        calibrated = upsample(calibrated_map(maps, calibration[name], stride, patch_size), stride, size)
        of_sizes.append(torch.stack([*zscores, smooth(calibrated, patch_size / 8)]))
    error, uncertainty, calibrated = torch.stack(of_sizes).mean(0)
    return dict(zip(SCORES, (error, uncertainty, error + uncertainty, calibrated), strict=True))


# --------------------------------------------------------------------------------------- calibration
def rings(shape: tuple[int, int], stride: int, patch_size: int) -> torch.Tensor:
    """Which ring along the border each position (h,w) of a map lies in, int64, 0 at the border."""
    rows, columns = (torch.minimum(torch.arange(n), torch.arange(n).flip(0)) for n in shape)
    distance = stride * torch.minimum(rows[:, None], columns[None])
    return (distance // max(_STRIDE, patch_size // 8)).clamp(max=RINGS - 1)


def calibrated_map(maps: torch.Tensor, calibration: dict, stride: int, patch_size: int) -> torch.Tensor:
    """What error and uncertainty exceed the usual by, in units of their spread: ``raw_maps`` (3,h,w) -> (h,w)."""
    ring = rings(maps.shape[1:], stride, patch_size)
    logs, terms = _terms(maps, torch.tensor(calibration["offset"]), ring)
    usual = torch.einsum("ik,khw->ihw", torch.tensor(calibration["weights"]), terms)
    return ((logs - usual) / torch.tensor(calibration["spread"])[:, ring]).sum(0)


def _terms(maps: torch.Tensor, offset: torch.Tensor, ring: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logs of error and uncertainty (2,h,w), and what predicts them (RINGS + 2,h,w): ring, log contrast, its square.

    ``offset`` (3,), the means over normal pixels, keeps what is small from mattering: log(x + offset).
    """
    *logs, contrast = (maps + offset[:, None, None]).log()
    rows = F.one_hot(ring, RINGS).permute(2, 0, 1).float()
    return torch.stack(logs), torch.cat([rows, contrast[None], contrast[None].square()])


def calibrate(model: StudentTeacher, category: str, val: DefectDataset, config: Config) -> dict[str, dict]:
    """What scoring needs beside the weights, from the normal validation images alone, for each patch size.

    ``zscore`` (2,2): mean and std of error and of uncertainty over pixels. ``offset`` (3): means of error, uncertainty
    and contrast. ``weights`` (2, RINGS + 2), ``spread`` (2, RINGS): least squares of both logs on ring and log
    contrast, and the std of its residuals in each ring.
    """
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    stride = min(config.stride, _STRIDE)
    images = [sample["image"] for sample in val.normal()]
    calibration = {}
    for size, students in model.students[category].items():
        teacher, maps = model.teachers[size], []
        for image in images:
            maps.append(raw_maps(teacher, students, pixels_of(image, config), stride)[:, 0].cpu())
        calibration[size] = _fit(maps, [rings(m.shape[1:], stride, int(size)) for m in maps])
    return calibration


def _fit(maps: list[torch.Tensor], ring: list[torch.Tensor]) -> dict[str, list]:
    """The calibration of one patch size, from ``raw_maps`` (3,h,w) and rings (h,w) of normal images."""
    pixels = torch.cat([m.flatten(1) for m in maps], 1).double()
    offset = pixels.mean(1).float().clamp(min=_TINY)
    pairs = [_terms(m, offset, r) for m, r in zip(maps, ring, strict=True)]
    logs, terms = (torch.cat([part.flatten(1) for part in parts], 1).double() for parts in zip(*pairs, strict=True))
    ring = torch.cat([r.flatten() for r in ring])
    weights = torch.linalg.solve(terms @ terms.T + 1e-6 * torch.eye(len(terms)), terms @ logs.T).T
    residuals = logs - weights @ terms
    return {
        "zscore": torch.stack([pixels[:2].mean(1), pixels[:2].std(1).clamp(min=_TINY)], 1).tolist(),
        "offset": offset.tolist(),
        "weights": weights.tolist(),
        "spread": torch.stack([_spread(residuals, ring == k) for k in range(RINGS)], 1).tolist(),
    }


def _spread(residuals: torch.Tensor, in_ring: torch.Tensor) -> torch.Tensor:
    """Std (2,) of the residuals in a ring; over all rings where images are too small to reach this one."""
    inside = residuals[:, in_ring] if in_ring.sum() > 1 else residuals
    return inside.std(1).clamp(min=1e-6)
