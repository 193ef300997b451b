"""Training on a frozen backbone's features: memories are filled, students learn to reproduce them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn

from src import backbones, checkpoints, settings, training
from src.backbones import normalize
from src.defects.config import Config
from src.defects.data import DefectDataset, fingerprint
from src.defects.features import FeatureDetector, Features, FeatureStudent
from src.defects.students import Pixels

PLACES = 256  # of each image, drawn once, that students learn from
CANDIDATES, MOST_PLACES = 100_000, 1024  # for a memory, over all images; of one image at most
PROJECTED = 32  # dimensions in which candidates are compared
NOISE = 1.0  # std of what students learn to remove, in units of the whitened vectors' spread
_LEAST_STD = 1e-2  # of the largest: a channel that hardly varies on good parts must not drown the others
_LEAST_VARIANCE = 0.05  # is added to each: nor must a direction in which they hardly vary


def fit(
    detector: FeatureDetector,
    splits: Mapping[str, Mapping[str, DefectDataset]],
    config: Config,
    weights: Path | None,
    runs: Path,
) -> dict[str, list[dict]]:
    """Give the detector its backbone and every category its memory or student; returns the students' histories.

    ``weights`` is a local state dict of the backbone, in place of torchvision's download. A student's run in ``runs``
    that was interrupted is resumed.
    """
    if config.pretrained == "imagenet":
        detector.backbone.load_state_dict(load_backbone(config, weights).state_dict())
    detector.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    history = {}
    for category, parts in splits.items():
        if category in detector.memories:
            places = min(MOST_PLACES, -(-CANDIDATES // len(parts["train"])))
            candidates = draw(detector.backbone, parts["train"], config, places).flatten(0, 1)
            detector.memories[category].vectors.copy_(candidates[coreset(candidates, config)])
        if category in detector.students:
            run_dir = runs / f"{config.dataset}_{category}_features"
            history[category] = fit_student(detector.students[category], detector.backbone, parts, config, run_dir)
    return history


def load_backbone(config: Config, weights: Path | None) -> Features:
    """The backbone's layers, from ``weights``, or kept beside the committed weights, or from torchvision's download.

    Where none are kept, these are, as fp16, so that the next training needs neither.
    """
    kept = settings.WEIGHTS_DIR / "defects" / f"features_{config.backbone}.pth"
    if weights or not kept.exists():
        features = Features(backbones.pretrained(config.backbone, weights)[0], config.backbone)
    else:
        features = Features(torchvision.models.get_model(config.backbone, weights=None), config.backbone)
        checkpoints.load_weights(features, checkpoints.load(kept)["weights"], kept)
    if not kept.exists():
        checkpoints.save(kept, features.state_dict(), half=True, config={"backbone": config.backbone})
    return features


@torch.inference_mode()
def draw(backbone: Features, dataset: DefectDataset, config: Config, count: int) -> torch.Tensor:
    """Vectors (N,count,D) on the CPU: ``count`` places of each of N images, drawn at random by the config's seed."""
    pixels, drawn, generator = Pixels(dataset, config.image_size), [], torch.Generator().manual_seed(config.seed)
    for image in (pixels[index] for index in range(len(pixels))):
        vectors = backbone(training.to_device(normalize(image)[None]))[0].flatten(1).T
        drawn.append(vectors[torch.randint(len(vectors), (count,), generator=generator)].cpu())
    return torch.stack(drawn)


def coreset(candidates: torch.Tensor, config: Config) -> torch.Tensor:
    """Indices (``config.memory``,) of candidates (N,D) that leave none of them far from all chosen.

    Greedy k-center, as PatchCore: next is always the candidate that is farthest from those chosen already, by
    distances in a random projection. Rare looks of good parts are kept, which a random draw would miss.
    """
    generator = torch.Generator().manual_seed(config.seed)
    points = candidates @ torch.randn(candidates.shape[1], PROJECTED, generator=generator)
    norms = points.square().sum(1)
    distance, chosen, last = torch.full_like(norms, torch.inf), [], 0
    for _ in range(config.memory):
        chosen.append(last)
        distance = torch.minimum(distance, norms + norms[last] - 2 * points @ points[last])
        last = int(distance.argmax())
    return torch.tensor(chosen)


def fit_student(
    student: FeatureStudent, backbone: Features, parts: Mapping[str, DefectDataset], config: Config, run_dir: Path
) -> list[dict]:
    """Train (or resume) the student of one category; the epoch is chosen on defect-free validation images."""
    train, val = (draw(backbone, part, config, PLACES) for part in (parts["train"], parts["val"].normal()))
    student.mean.copy_(train.mean((0, 1)))
    student.whitening.copy_(whitening(train.flatten(0, 1)))
    return training.fit(
        student,
        training.Batches(train, config, nn.Identity()),
        loss,
        partial(validate, vectors=training.to_device(val)),
        replace(config, amp=False),  # whitening enlarges small differences: half precision would be noise
        run_dir=run_dir,
        monitor="regression_error",
        minimize=True,
        fingerprint=fingerprint(parts["train"].files() + parts["val"].normal().files())["sha256"],
    )


def whitening(vectors: torch.Tensor) -> torch.Tensor:
    """Matrix (D,D) that turns centred vectors (N,D) into uncorrelated ones of variance 1 (less where it was small).

    Channels are standardised first, so that their scale does not matter.
    """
    std = vectors.std(0)
    std = std.clamp(min=_LEAST_STD * float(std.max()))
    variances, axes = torch.linalg.eigh(torch.cov((vectors / std).double().T))
    return (axes / (variances + _LEAST_VARIANCE).sqrt() / std[:, None]).float()


def loss(model: nn.Module, vectors: torch.Tensor) -> torch.Tensor:
    """Mean error of the student over vectors (B,P,D) with noise."""
    return model(vectors.movedim(-1, 1), NOISE).mean()


@torch.inference_mode()
def validate(student: FeatureStudent, vectors: torch.Tensor) -> dict[str, float]:
    """``regression_error`` over vectors (N,P,D) of good parts, the same noise each time; 1: as the mean alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"regression_error": float(loss(student, vectors))}
