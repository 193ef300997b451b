"""Train a road model: the segmenter, its decoder, its outlier head; then calibrate the scores."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from src import checkpoints, records, settings, system, training
from src.metrics import ConfusionMatrix
from src.road import outliers
from src.road.config import Config
from src.road.data import IGNORE, RoadDataset, class_weights, dataset_class, datasets, known_only, paths
from src.road.evaluation import calibrate
from src.road.model import (
    build_decoder,
    build_model,
    build_outlier_head,
    decoder_inputs,
    infer,
    layer_outputs,
    load_by_class,
    load_pretrained,
)
from src.road.transforms import Augment, evaluation_loader

HEAD_SETTINGS = ("outlier_epochs", "fine_outlier_head")  # what shapes an outlier head on a given network
DECODER_LR = 2e-3


def train(
    config: Config,
    root: Path | None = None,
    *,
    weights: Path | None = None,
    run_dir: Path | None = None,
    out: Path | None = None,
) -> system.Trained:
    """Train (or resume) the run in ``run_dir``, calibrate the scores, and write the checkpoint ``out``.

    ``weights`` is a checkpoint of this system to go on from, or a local file for the config's ``pretrained`` weights,
    in place of torchvision's download.
    The epoch is chosen by validation mIoU; then a decoder is trained on the frozen segmenter, if the config has one
    and ``weights`` none of the same data set, which would be trained with the segmenter; then the outlier head. With
    ``epochs=0`` the segmenter stays as the checkpoint has it, and so does an outlier head that was trained alike.
    The file is stored in fp16 where that brings it under ``checkpoints.LIMIT``; calibration is that of the stored
    weights.
    """
    check_batch_size(config)
    run_dir = run_dir or settings.RUNS_DIR / "road" / config.dataset
    out = out or settings.WEIGHTS_DIR / "road" / f"{config.weights_name}.pth"
    splits = datasets(config, root, ("train", "val"))
    fingerprint = fingerprint_of(splits, weights)

    segmenter_config = replace(config, decoder_epochs=0, outlier_epochs=0, fine_outlier_head=False)  # no parts yet
    model = build_model(segmenter_config)
    given = start_from(model, config, weights)
    if config.epochs:
        extras = {"history": fit_segmenter(model, splits, segmenter_config, run_dir, fingerprint)}
    else:
        extras = kept_extras(config, given)
    if config.decoder_epochs and not hasattr(model, "decoder"):
        settings.seed_everything(config.seed)
        model.decoder = build_decoder(config, model.backbone)
        extras["decoder_history"] = fit_decoder(model, splits, config, run_dir / "decoder", fingerprint)
    if config.outlier_epochs:
        settings.seed_everything(config.seed)
        model.outlier_head = build_outlier_head(config, model.backbone)
        if trained_alike(config, given):
            load_part(model, "outlier_head", given, weights)
        else:
            extras["outlier_history"] = outliers.fit(
                model, splits["train"], splits["val"], config, run_dir / "outliers", fingerprint
            )

    half = checkpoints.round_to_fit(model)
    extras["calibration"] = calibrate(model, splits, config)
    return system.save(config, model, extras, out, half=half)


def check_batch_size(config: Config) -> None:
    """InputError for one image a process: batch normalisation of a 1x1 map, in DeepLabV3's pooled branch, needs two.

    Several GPUs normalise over all their images together.
    """
    processes = training.start_distributed()[1]
    needed = 2 if settings.DEVICE.type == "cuda" else 2 * processes
    if config.batch_size < needed:
        raise settings.InputError(
            f"batch_size={config.batch_size}: expected {needed} or more, as DeepLabV3's batch normalisation needs two "
            f"images in each of {processes} process(es); set batch_size={needed}"
        )


def fingerprint_of(splits: dict[str, RoadDataset], weights: Path | None) -> str:
    """SHA-256 of the training files, and of the weights to begin with: a run is resumed with the same ones alone."""
    files = {path for dataset in splits.values() for path in paths(dataset)}
    fingerprint = records.fingerprint(files, splits["train"].root)["sha256"]
    return f"{fingerprint} from {hashlib.sha256(weights.read_bytes()).hexdigest()}" if weights else fingerprint


def start_from(model: nn.Module, config: Config, weights: Path | None) -> dict:
    """Fill a fresh segmenter from ``weights``: a checkpoint of this system, or the config's ``pretrained`` weights.

    Of a checkpoint, backbone, ASPP and the class rows of equal names are taken over, whatever data set it is of; of one
    of the same data set, its decoder too, where the config has one. Returns its content, {} for pretrained weights.
    """
    content = checkpoints.read(weights) if weights else {}
    if "format" not in content:
        load_pretrained(model, config.backbone, config.pretrained, weights)
        return {}
    content = checkpoints.load(weights)
    their_classes = class_names(content["config"]["dataset"])
    classes = class_names(config.dataset)
    shared = load_by_class(model, content["weights"], weights, their_classes, classes)
    print(
        f"{weights}: starts from its weights, with the rows of {len(shared)} of {len(classes)} classes: "
        f"{', '.join(shared)}"
    )
    has_decoder = any(name.startswith("decoder.") for name in content["weights"])
    if has_decoder and config.decoder_epochs and content["config"]["dataset"] == config.dataset:
        model.decoder = build_decoder(config, model.backbone)
        load_part(model, "decoder", content, weights)
        print(f"{weights}: its decoder is taken over too")
    return content


def kept_extras(config: Config, given: dict) -> dict:
    """What stays beside the weights of a segmenter that is not trained again."""
    if given.get("config", {}).get("dataset") != config.dataset:
        raise settings.InputError(
            f"epochs=0: expected --weights of a segmenter trained on {config.dataset}; else set epochs=1 or more"
        )
    return dict(given.get("extras", {}))


def trained_alike(config: Config, given: dict) -> bool:
    """Whether the weights to begin with have this network and an outlier head of the same settings."""
    if config.epochs:
        return False
    theirs = Config().plain() | Config.current(given["config"])
    return all(theirs[setting] == getattr(config, setting) for setting in HEAD_SETTINGS)


def load_part(model: nn.Module, name: str, given: dict, source: Path) -> None:
    """Fill a decoder or outlier head from a checkpoint's content."""
    state = {key.removeprefix(f"{name}."): v for key, v in given["weights"].items() if key.startswith(f"{name}.")}
    checkpoints.load_weights(model.get_submodule(name), state, source)


def class_names(dataset: str) -> list[str]:
    """The known classes of a data set, in the order of their labels."""
    return [entry.name for entry in dataset_class(dataset).classes]


# ------------------------------------------------------------------------------------------- segmenter
def fit_segmenter(
    model: nn.Module, splits: dict[str, RoadDataset], config: Config, run_dir: Path, fingerprint: str | None
) -> list[dict]:
    """Train (or resume) DeepLabV3 with both its heads, and the decoder that it may have; returns the history."""
    weights = class_weights(splits["train"]).to(settings.DEVICE) if config.balance else None
    loaders = get_dataloaders(config, splits)
    return training.fit(
        model,
        loaders["train"],
        partial(segmentation_loss, class_weights=weights, aux_weight=config.aux_weight),
        partial(validate, loader=loaders["val"], dataset=splits["val"]),
        config,
        run_dir=run_dir,
        monitor="miou",
        fingerprint=fingerprint,
    )


def get_dataloaders(config: Config, splits: dict[str, RoadDataset]) -> dict[str, DataLoader]:
    """split -> batches of its data set: of ``Batches``, shuffled and augmented, for train; in order for the others.

    The others give this process's share of the split, whole images, and masks in their own size.
    """
    loaders = {}
    for split, dataset in splits.items():
        if split == "train":
            augment = Augment(config.augmentation, len(dataset.classes), config.image_size, config.crop_size)
            loaders[split] = training.Batches(dataset, config, augment)
        else:
            share = training.shard(dataset)
            loaders[split] = evaluation_loader(share, config.image_size, config.batch_size, config.workers)
    return loaders


def segmentation_loss(
    model: nn.Module, batch: dict, class_weights: torch.Tensor | None, aux_weight: float
) -> torch.Tensor:
    """Cross-entropy of the main head + ``aux_weight`` x that of the auxiliary head, over labelled pixels."""
    outputs, mask = model(batch["image"]), batch["mask"]
    main = F.cross_entropy(outputs["out"].float(), mask, class_weights, ignore_index=IGNORE)
    auxiliary = F.cross_entropy(outputs["aux"].float(), mask, class_weights, ignore_index=IGNORE)
    return main + aux_weight * auxiliary


def fit_decoder(
    model: nn.Module, splits: dict[str, RoadDataset], config: Config, run_dir: Path, fingerprint: str | None
) -> list[dict]:
    """Train (or resume) ``model.decoder`` on the frozen network, which is left in eval mode; returns the history."""
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    weights = class_weights(splits["train"]).to(settings.DEVICE) if config.balance else None
    loaders = get_dataloaders(config, splits)

    def loss(decoder: nn.Module, batch: dict) -> torch.Tensor:
        with torch.no_grad():
            inputs = decoder_inputs(model, layer_outputs(model.backbone, model.decoder.names, batch["image"]))
        logits = F.interpolate(decoder(*inputs).float(), batch["mask"].shape[-2:], mode="bilinear")
        return F.cross_entropy(logits, batch["mask"], weights, ignore_index=IGNORE)

    return training.fit(
        model.decoder,
        loaders["train"],
        loss,
        lambda _: validate(model, loaders["val"], splits["val"]),
        replace(config, epochs=config.decoder_epochs, optimizer="adamw", lr=DECODER_LR, schedule="cosine", warmup=50),
        run_dir=run_dir,
        monitor="miou",
        fingerprint=fingerprint,
    )


def validate(model: nn.Module, loader: DataLoader, dataset: RoadDataset) -> dict[str, float]:
    """Closed-set mIoU and pixel accuracy on a data set, of which ``loader`` gives this rank's share."""
    matrix = ConfusionMatrix(len(dataset.classes), IGNORE)
    for batch in loader:
        batch = training.to_device(batch)
        logits, _ = infer(model, batch["image"], batch["mask"].shape[-2:])
        matrix.update(logits.max(1).indices, known_only(batch["mask"], dataset))
    matrix.all_reduce()
    metrics = matrix.compute()
    return {name: metrics[name] for name in ("miou", "pixel_accuracy")}
