"""Unexpected objects on roads: closed-set segmentation, and scores of what it does not know.

The public functions, alike in every system: ``Config``, ``datasets(config)``, ``build_model(config)``, ``train(config)``,
``evaluate(config, model)``; for the command line also ``make_data``, ``load``, ``measure``, ``predict`` and ``draw``.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from torch import nn
from torch.utils.data import DataLoader

from src import checkpoints, plots, records, settings, training
from src.metrics import ConfusionMatrix
from src.road import data, evaluation, figures, outliers
from src.road.model import deeplabv3, load_by_class, load_pretrained, load_segmentation, segmentation_loss
from src.road.model import predict as predict_maps
from src.synthetic import street_scenes

REAL = ("camvid", "camvid_cyclists", "cityscapes")  # the data sets that profile real trains on


@dataclass(frozen=True)
class Config(training.TrainingConfig):
    """What the road system can vary; the three profiles are its named values."""

    REMOVED = {"focal_gamma": 0.0}

    dataset: str = "mini"
    backbone: str = "mobilenet_v2"
    width: float = 1.0  # channel multiplier of mobilenet_v2
    output_stride: int = 8
    pretrained: str = "none"  # none | imagenet (backbone) | coco (all but the class layers)
    image_size: tuple[int, ...] = (180, 320)  # (H,W), or (short side,) with the aspect ratio kept
    crop_size: tuple[int, int] | None = None
    augmentation: str = "flip"
    balance: bool = False  # weigh classes by 1/sqrt(pixel share) in the loss
    aux_weight: float = 0.4
    outlier_epochs: int = 0  # of training a head that scores outliers, on the frozen backbone; 0 = no such head

    def __post_init__(self):
        super().__post_init__()
        if self.outlier_epochs < 0:
            raise settings.InputError(f"outlier_epochs={self.outlier_epochs}: 0 trains no outlier head")

    @classmethod
    def mini(cls) -> Self:
        return cls(epochs=14, batch_size=8, optimizer="adamw", lr=3e-3, weight_decay=1e-2, schedule="poly",
                   warmup=75, clip_norm=5.0, width=0.5, augmentation="flip_color", balance=True,
                   outlier_epochs=8)  # fmt: skip

    @classmethod
    def real(cls, dataset: str = "camvid") -> Self:
        recipe = cls(
            dataset=dataset,
            pretrained="imagenet",
            output_stride=16,
            image_size=(540,),
            crop_size=(360, 480),
            augmentation="scale_jitter",
            balance=True,
            epochs=40 if dataset == "camvid_cyclists" else 24,  # of 134 frames, of 367
            batch_size=8,
            optimizer="adamw",
            lr=6e-4,
            weight_decay=1e-2,
            schedule="poly",
            warmup=100,
            clip_norm=5.0,
            outlier_epochs=8,
        )
        if dataset != "cityscapes":
            return recipe
        # 2,678 frames, an epoch takes minutes: a run is 100 of them, and the next goes on from its weights
        return replace(recipe, image_size=(384,), crop_size=(256, 256), epochs=4, outlier_epochs=2)

    @classmethod
    def full(cls) -> Self:
        """The course's recipe for StreetHazards: torchvision's DeepLabV3-ResNet50 from COCO weights."""
        return cls(dataset="streethazards", backbone="resnet50", pretrained="coco", image_size=(512, 512),
                   augmentation="flip_color", epochs=30, batch_size=4, optimizer="adam", lr=1e-4,
                   schedule="plateau", plateau_patience=3, plateau_factor=0.5, outlier_epochs=2)  # fmt: skip


@dataclass
class Trained:
    """A model with what was learned beside its weights.

    ``calibration`` is None for a bare state dict, and for the ``best.pth`` of a run.
    """

    config: Config
    model: nn.Module
    calibration: dict | None
    history: list[dict]
    source: Path


def default_root(dataset: str) -> Path:
    return settings.DATA_DIR / {"mini": "mini/road", "camvid_cyclists": "camvid"}.get(dataset, dataset)


def weights_path(config: Config) -> Path:
    return settings.WEIGHTS_DIR / "road" / f"{config.dataset}.pth"


def make_data(config: Config, root: Path | None = None) -> None:
    """Write the mini data set (if asked for), and the record of class shares of whatever data set it is."""
    root = root or default_root(config.dataset)
    if config.dataset == "mini":
        street_scenes.write_dataset(root)
    sets = datasets(config, root, data.dataset_class(config.dataset).splits)
    shares = {split: data.class_distribution(dataset) for split, dataset in sets.items()}
    records.write({"distribution": shares}, records.record_path("road", f"{config.dataset}_distribution"))


def datasets(config: Config, root: Path | None = None, splits: Sequence[str] = ("train", "val", "test")) -> dict:
    """split -> RoadDataset, read from ``root`` (default: the data set's folder under DATA_DIR)."""
    kind = data.dataset_class(config.dataset)
    return {split: kind(root or default_root(config.dataset), split) for split in splits}


def get_dataloaders(config: Config, sets: dict[str, data.RoadDataset]) -> dict[str, DataLoader]:
    """split -> batches of its data set: of ``Batches``, shuffled and augmented, for train; in order for the others.

    The others give this process's share of the split, whole images, and masks in their own size.
    """
    loaders = {}
    for split, dataset in sets.items():
        if split == "train":
            augment = data.Augment(config.augmentation, len(dataset.classes), config.image_size, config.crop_size)
            loaders[split] = training.Batches(dataset, config, augment)
        else:
            share = training.shard(dataset)
            loaders[split] = data.evaluation_loader(share, config.image_size, config.batch_size, config.workers)
    return loaders


def build_model(config: Config) -> nn.Module:
    """DeepLabV3 for the known classes of the config's data set, randomly initialised from its seed."""
    settings.seed_everything(config.seed)
    classes = len(data.dataset_class(config.dataset).classes)
    if not classes:
        raise settings.InputError(f"{config.dataset} names no classes to train on; use it with `evaluate` only")
    model = deeplabv3(config.backbone, classes, config.output_stride, config.width)
    if config.outlier_epochs:
        model.outlier_head = outliers.build_head(config.backbone, model.backbone)
    return model


def train(config: Config, root: Path | None = None, *, weights: Path | None = None,
          run_dir: Path | None = None, out: Path | None = None) -> Trained:  # fmt: skip
    """Train (or resume) the run in ``run_dir``, calibrate the scores, and write the checkpoint ``out``.

    ``weights`` is a checkpoint of this system to go on from, or a local file for the config's ``pretrained`` weights,
    in place of torchvision's download.
    The epoch is chosen by validation mIoU; then the outlier head learns, if the config has one. The file is stored
    in fp16 where that brings it under ``checkpoints.LIMIT``; calibration is that of the stored weights.
    """
    run_dir = run_dir or settings.RUNS_DIR / "road" / config.dataset
    sets = datasets(config, root, ("train", "val"))
    loaders = get_dataloaders(config, sets)
    segmenter = replace(config, outlier_epochs=0)
    model = build_model(segmenter)
    start_from(model, config, weights)
    balance = data.class_weights(sets["train"]).to(settings.DEVICE) if config.balance else None
    history = training.fit(
        model,
        loaders["train"],
        partial(
            segmentation_loss,
            class_weights=balance,
            aux_weight=config.aux_weight,
            ignore=data.IGNORE,
        ),
        partial(validate, loader=loaders["val"], dataset=sets["val"]),
        segmenter,
        run_dir=run_dir,
        monitor="miou",
    )
    return finish(config, model, sets, history, run_dir, out or weights_path(config))


def start_from(model: nn.Module, config: Config, weights: Path | None) -> None:
    """Fill a fresh segmenter from ``weights``: a checkpoint of this system, or the config's ``pretrained`` weights.

    Of a checkpoint, backbone, ASPP and the class rows of equal names are taken over, whatever data set it is of.
    """
    content = checkpoints.read(weights) if weights else {}
    if "format" not in content:
        load_pretrained(model, config.backbone, config.pretrained, weights)
        return
    content = checkpoints.load(weights)
    known, own = ([entry.name for entry in data.dataset_class(name).classes]
                  for name in (content["config"]["dataset"], config.dataset))  # fmt: skip
    kept = load_by_class(model, content["weights"], weights, known, own)
    print(f"{weights}: starts from its weights, with the rows of {len(kept)} of {len(own)} classes: {', '.join(kept)}")


def finish(config: Config, model: nn.Module, sets: dict, history: list[dict], run_dir: Path, path: Path) -> Trained:
    """Teach a trained segmenter's outlier head, round the weights to fit a file, calibrate, write the checkpoint."""
    extras = {"history": history}
    if config.outlier_epochs:
        settings.seed_everything(config.seed)
        model.outlier_head = outliers.build_head(config.backbone, model.backbone)
        extras["outlier_history"] = outliers.fit(model, sets["train"], sets["val"], config, run_dir / "outliers")
    half = checkpoints.round_to_fit(model)
    extras["calibration"] = evaluation.calibrate(model, sets, config)
    checkpoints.save(path, model.state_dict(), half=half, config=checkpoints.plain(asdict(config)), extras=extras)
    return Trained(config, model, extras["calibration"], history, path)


def load_or_train(config: Config, root: Path | None = None, *, run_training: bool = settings.RUN_TRAINING) -> Trained:
    """The trained model of a config: loaded, or trained if it is missing and ``run_training`` is on."""
    return checkpoints.load_or_train(sys.modules[__name__], config, root, run_training)


def validate(model: nn.Module, loader: DataLoader, dataset: data.RoadDataset) -> dict[str, float]:
    """Closed-set mIoU and pixel accuracy on a data set, of which ``loader`` gives this rank's share."""
    matrix = ConfusionMatrix(len(dataset.classes), data.IGNORE)
    for batch in loader:
        batch = training.to_device(batch)
        logits, _ = predict_maps(model, batch["image"], batch["mask"].shape[-2:])
        matrix.update(logits.max(1).indices, data.known_only(batch["mask"], dataset))
    matrix.all_reduce()
    result = matrix.compute()
    return {name: result[name] for name in ("miou", "pixel_accuracy")}


def load(path: Path | str, fallback: Config, overrides: Sequence[str] = ()) -> Trained:
    """Model, config and calibration of a checkpoint of this project, or of a bare torchvision state dict.

    A checkpoint brings its own config; an override that contradicts it is an error. A bare state dict takes
    ``fallback`` with the overrides applied, and has no calibration.
    """
    content = checkpoints.read(path)
    if checkpoints.is_bare_state_dict(content):
        config = replace(fallback.override(overrides), outlier_epochs=0)
        model = build_model(config)
        load_segmentation(model, content, path)
        return Trained(config, model, None, [], Path(path))
    content = checkpoints.load(path)
    config = Config.from_plain(content["config"])
    checkpoints.require_same_config(config.override(overrides), content, path)
    model = build_model(config)
    checkpoints.load_weights(model, content["weights"], path)
    extras = content.get("extras", {})  # the best.pth of a run has none yet
    return Trained(config, model, extras.get("calibration"), extras.get("history", []), Path(path))


def samples(config: Config, root: Path | None, dataset: str | None, split: str) -> data.RoadDataset:
    """A split of the config's own data set, or of another one (``dataset``) with the same classes or none stated."""
    name = dataset or config.dataset
    kind = data.dataset_class(name)
    if kind.classes and kind.classes != data.dataset_class(config.dataset).classes:
        raise settings.InputError(f"weights for the classes of {config.dataset} cannot be used on {name}")
    return kind(root or default_root(name), split)


def evaluate(config: Config, model: nn.Module, root: Path | None = None, *, calibration: dict | None = None,
             dataset: str | None = None, split: str = "test") -> evaluation.Evaluation:  # fmt: skip
    """Measure a model on a split of its own data set, or of another one (``dataset``), as ``samples`` allows."""
    return evaluation.evaluate(model, samples(config, root, dataset, split), config, calibration)


def measure(trained: Trained, root: Path | None, dataset: str | None, split: str) -> tuple[dict, dict, str]:
    """(metrics, data description, protocol) of an evaluation's record."""
    config, images = trained.config, samples(trained.config, root, dataset, split)
    metrics = evaluation.evaluate(trained.model, images, config, trained.calibration).metrics
    files = records.fingerprint(data.paths(images), images.root)
    return metrics, {"dataset": dataset or config.dataset, "split": split, **files}, evaluation.PROTOCOL


def predict(trained: Trained, files: Sequence[Path], out: Path) -> list[dict]:
    """Write ``<stem>_overlay.png`` and ``<stem>_<score>.png`` for each image file; one summary row each."""
    if len({file.stem for file in files}) < len(files):
        raise settings.InputError("two of the files have the same name, and so would their pictures: rename one")
    return [figures.write_prediction(trained, file, out) for file in files]


def draw(trained: Trained, root: Path | None, dataset: str | None) -> list[Path]:
    """The PNGs under assets/figures/road for a trained model on one data set."""
    plots.style()
    name = dataset or trained.config.dataset
    splits = [split for split in data.dataset_class(name).splits if split != "train"]
    return figures.draw_all(trained, name, {split: samples(trained.config, root, name, split) for split in splits})
