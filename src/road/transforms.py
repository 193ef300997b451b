"""From a sample to what a model sees: the training views, and the test images."""

from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from src.backbones import normalize
from src.road.data import IGNORE

_FILL = {tv_tensors.Image: 124, tv_tensors.Mask: IGNORE, "others": 0}
_FLIP = v2.RandomHorizontalFlip(0.5)
_JITTER = v2.ColorJitter(0.3, 0.3, 0.3)
_ROTATION = v2.RandomRotation(5, interpolation=v2.InterpolationMode.BILINEAR, fill=_FILL)
_BLUR = v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))])
# name -> (scale range or none, transforms of image and mask together)
TRANSFORMS: dict[str, tuple[tuple[float, float] | None, list[Callable]]] = {
    "none": (None, []),
    "flip": (None, [_FLIP]),
    "flip_color": (None, [_FLIP, _JITTER]),
    "moderate": ((1.0, 1.3), [_FLIP, _JITTER, _ROTATION]),
    "heavy": ((0.5, 2.0), [_FLIP, _JITTER, _ROTATION, _BLUR]),
    "scale": ((0.5, 2.0), [_FLIP]),
    "scale_jitter": ((0.5, 1.5), [_FLIP, _JITTER]),
}


class Augment:
    """Training transform by its name in ``TRANSFORMS``: resize, random scale and crop, flip, colour; then normalise.

    Gives ``{"image": float32 (3,h,w), "mask": int64 (h,w)}`` with every label outside the known classes,
    anomalies among them, set to IGNORE.
    """

    def __init__(self, name: str, num_classes: int, image_size: tuple[int, ...], crop_size: tuple[int, int] | None):
        self.scale, self.transforms = TRANSFORMS[name]
        self.num_classes, self.image_size = num_classes, list(image_size)
        self.crop = crop_size and v2.RandomCrop(crop_size, pad_if_needed=True, fill=_FILL)

    def __call__(self, sample: dict) -> dict[str, torch.Tensor]:
        image = F.resize(sample["image"], self.image_size, antialias=True)
        mask = F.resize(sample["mask"], self.image_size)
        if self.scale:
            image, mask = _random_scale(image, mask, *self.scale)
        if self.crop:
            image, mask = self.crop(image, mask)
        for transform in self.transforms:
            image, mask = transform(image, mask)
        mask = mask.as_subclass(torch.Tensor)[0].long()
        mask[mask >= self.num_classes] = IGNORE
        return {"image": normalize(image), "mask": mask}


def _random_scale(image, mask, low: float, high: float):
    factor = torch.empty(()).uniform_(low, high).item()
    size = [round(side * factor) for side in image.shape[-2:]]
    return F.resize(image, size, antialias=True), F.resize(mask, size)


def preprocess(image: torch.Tensor, image_size: tuple[int, ...]) -> torch.Tensor:
    """What a model sees of an image at test time: resized to (H,W), or to a short side of (S,)."""
    return normalize(F.resize(image, list(image_size), antialias=True))


class _Preprocessed(Dataset):
    def __init__(self, dataset: Dataset, image_size: tuple[int, ...]):
        self.dataset, self.image_size = dataset, image_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        mask = sample["mask"].as_subclass(torch.Tensor)[0].long()
        return {"image": preprocess(sample["image"], self.image_size), "mask": mask}


def evaluation_loader(dataset: Dataset, image_size: tuple[int, ...], batch_size: int, workers: int = 0) -> DataLoader:
    """Batches of preprocessed images and masks in the masks' own size, in order."""
    return DataLoader(_Preprocessed(dataset, image_size), batch_size, num_workers=workers)
