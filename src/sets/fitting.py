"""Training of a head on frozen features, or of the whole model end to end."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from src import checkpoints, records, sets, settings, system, training
from src.labelled import Labelled
from src.sets import data, evaluation, features
from src.sets.config import Config
from src.sets.model import SetModel, build_model
from src.sets.sampling import Sampler, fixed_sets
from src.system import Trained


def train(
    config: Config,
    root: Path | None = None,
    *,
    weights: Path | None = None,
    run_dir: Path | None = None,
    out: Path | None = None,
) -> Trained:
    """Train (or resume) the run in ``run_dir``, and write the checkpoint ``out``, which needs no other file.

    ``weights`` is a local state dict of the backbone, or a checkpoint of this system to start from. The epoch is
    chosen by top1 on fixed validation sets. Stored as fp16 where that brings the file under ``checkpoints.LIMIT``.
    """
    out = out or system.weights_path(sets, config)
    run_dir = run_dir or settings.RUNS_DIR / "sets" / out.stem
    root = root or data.default_root(config.dataset)
    images = data.read_training_part(config, root)
    splits = data.divide(config, images)
    classes = list(images.classes)
    model = build_model(config, {"classes": classes})
    initialise(model, config, classes, weights)
    training_of = head_training if config.frozen else joint_training
    history = training.fit(
        *training_of(config, model, images, splits),
        config,
        run_dir=run_dir,
        monitor="top1",
        fingerprint=records.fingerprint(data.files(root, "train"), root)["sha256"],
    )
    half = checkpoints.round_to_fit(model)
    return system.save(config, model, {"history": history, "classes": classes}, out, half=half)


def head_training(config: Config, model: SetModel, images: Labelled, splits: dict[str, torch.Tensor]) -> tuple:
    """(model, batches, loss, validate) of ``training.fit``: the head learns from features that are computed once.

    Those of all images, so that every choice of classes and images shares one cache.
    """
    model.encoder.requires_grad_(False)
    image_features = features.extract_mixed(model.encoder, images, config, cache=settings.DATA_DIR / "features")
    train_features, val_features = (image_features[splits[name]].to(settings.DEVICE) for name in ("train", "val"))
    train_images, val_images = (images.subset(splits[name]) for name in ("train", "val"))
    val_sets = fixed_sets(val_images, config.val_sets, config.seed, config.set_size)

    def validate(head: nn.Module) -> dict[str, float]:
        return evaluation.validate(head, val_features, val_sets)

    return model.head, FeatureBatches(config, train_images, train_features), head_loss, validate


def joint_training(config: Config, model: SetModel, images: Labelled, splits: dict[str, torch.Tensor]) -> tuple:
    """(model, batches, loss, validate) of ``training.fit``: encoder, head and class layer learn from the pixels."""
    train_images, val_images = (images.subset(splits[name]) for name in ("train", "val"))
    val_sets = fixed_sets(val_images, config.val_sets, config.seed, config.set_size)

    def validate(model: SetModel) -> dict[str, float]:
        val_features = features.extract_mixed(model.encoder, val_images, config, batch_size=512)
        return evaluation.validate(model.head, val_features, val_sets)

    loss = partial(joint_loss, class_weight=config.class_weight)
    return model, PixelBatches(config, train_images), loss, validate


def head_loss(head: nn.Module, batch: dict) -> torch.Tensor:
    """Cross-entropy over the positions of a set."""
    return F.cross_entropy(head(batch["features"]).float(), batch["position"])


def joint_loss(model: nn.Module, batch: dict, class_weight: float) -> torch.Tensor:
    """Cross-entropy over the positions of a set, plus the weighted one over the classes of each image."""
    logits, class_logits = model(batch["pixels"], batch["indices"])
    loss = F.cross_entropy(logits.float(), batch["position"])
    if class_logits is None:
        return loss
    return loss + class_weight * F.cross_entropy(class_logits.float(), batch["labels"])


# ---------------------------------------------------------------------------------------------- batches
class SetBatches:
    """Batches of sets that are drawn anew every epoch, as index tensors, on the device where their images are.

    What is drawn depends on the seed, the epoch and the rank of the process, which has its share of every batch.
    """

    def __init__(self, config: Config, images: Labelled):
        self.rank, self.world = training.start_distributed()
        if config.batch_size % self.world:
            raise settings.InputError(f"batch_size={config.batch_size} does not divide over {self.world} processes")
        self.config, self.size, self.epoch = config, config.batch_size // self.world, 0
        self.labels, self.classes = images.labels.to(settings.DEVICE), images.classes
        self.sampler = Sampler(self.labels, self.classes)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose sets the next iteration draws."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict]:
        seed = hash((self.config.seed, self.epoch, self.rank)) % 2**63
        return self.draw(torch.Generator(settings.DEVICE).manual_seed(seed))


class FeatureBatches(SetBatches):
    """{features (B,N,F), position (B,)}: sets drawn from all images, whose features (M,F) are given."""

    def __init__(self, config: Config, images: Labelled, features: torch.Tensor):
        super().__init__(config, images)
        self.features = features
        if not len(self):
            raise settings.InputError(f"train_sets={config.train_sets} do not fill one batch of {config.batch_size}")

    def __len__(self) -> int:
        return self.config.train_sets // self.config.batch_size

    def draw(self, generator: torch.Generator) -> Iterator[dict]:
        """The batches of an epoch."""
        sets = self.sampler.draw(len(self) * self.size, generator, self.config.set_size)
        for indices, position in zip(sets.indices.split(self.size), sets.position.split(self.size), strict=True):
            # The same rows as self.features[indices], gathered in less than half the time on a CPU
            yield {"features": F.embedding(indices, self.features), "position": position}


class PixelBatches(SetBatches):
    """{pixels (P,3,H,W), labels (P,), indices (B,N), position (B,)}: sets drawn from a pool of P images.

    The pool, classes x images of each, is drawn anew for every batch; each of its images is encoded once. An epoch
    draws as many images as there are.
    """

    def __init__(self, config: Config, images: Labelled):
        super().__init__(config, images)
        self.pixels = images.items.to(settings.DEVICE)
        self.sampler.pool(*config.pool, torch.Generator(settings.DEVICE))  # raises where the images are too few

    def __len__(self) -> int:
        classes, each = self.config.pool
        return max(1, len(self.labels) // (classes * each * self.world))

    def draw(self, generator: torch.Generator) -> Iterator[dict]:
        """The batches of an epoch."""
        for _ in range(len(self)):
            pool = self.sampler.pool(*self.config.pool, generator)
            labels = self.labels[pool]
            sets = Sampler(labels, self.classes).draw(self.size, generator, self.config.set_size)
            yield {"pixels": self.pixels[pool], "labels": labels, **sets._asdict()}


# ------------------------------------------------------------------------------------------ where it starts
def initialise(model: SetModel, config: Config, classes: Sequence[str], weights: Path | None) -> None:
    """Give the model what it starts from: a checkpoint of this system, ImageNet's weights, or nothing."""
    if weights and not checkpoints.is_bare_state_dict(checkpoints.unwrapped(checkpoints.read(weights))):
        start_from(model, config, classes, weights)
    elif config.pretrained == "imagenet":
        model.encoder.load_pretrained(weights)
    elif weights:
        raise settings.InputError(f"{weights} would not be used: set pretrained=imagenet")


def start_from(model: SetModel, config: Config, classes: Sequence[str], checkpoint: Path) -> None:
    """Take a checkpoint's encoder; end to end, a head of the same kind; the class layer, if of the same classes."""
    other = system.load(sets, checkpoint, config)
    checkpoints.load_weights(model.encoder, other.model.encoder.state_dict(), checkpoint)
    is_same_head = config.head == other.config.head and config.head != "posterior"  # which is its class layer alone
    if is_same_head and not config.frozen:
        checkpoints.load_weights(model.head, other.model.head.state_dict(), checkpoint)
    layer, other_layer = model.class_layer(), other.model.class_layer()
    if layer and other_layer and other.extras["classes"] == list(classes):
        layer.load_state_dict(other_layer.state_dict())
