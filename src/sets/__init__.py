"""Which of ten images is the odd one: frozen or trained features of each image, attention over the set of them.

The public functions, alike in every system: ``Config``, ``datasets(config)``, ``build_model(config)``, ``train(config)``,
``evaluate(config, model)``; for the command line also ``make_data``, ``load``, ``measure``, ``predict`` and ``draw``.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from src import checkpoints, plots, records, settings, training
from src.sets import data, evaluation, features, figures
from src.sets.model import ClassPosterior, Encoder, FlatMLP, SetAttention, SetModel, SetTransformer
from src.synthetic import glyphs

REAL = ("cifar100", "folder")  # the data sets that profile real trains on
HEADS = ("transformer", "attention", "mlp", "posterior")


@dataclass(frozen=True)
class Config(training.FitConfig):
    """What the sets system can vary; ``batch_size`` counts sets."""

    REMOVED = {"attention": "dot", "positional": False}

    dataset: str = "mini"
    classes: tuple[str, ...] = ()  # names, firstK or diverse20; () = all
    exclude: tuple[str, ...] = ()  # classes left out, named likewise
    unseen: int = 0  # classes kept from training, for the split "unseen"
    per_class: tuple[float, ...] = (450, 50)  # train and val images of each class, or fractions of them
    train_sets: int = 10_000  # an epoch, where frozen; end to end an epoch is one pass over the images
    val_sets: int = 2_000  # by which the epoch is chosen
    test_sets: int = 10_000  # of an evaluation
    set_size: int = data.SIZE
    backbone: str = "resnet18"
    pretrained: str = "imagenet"  # imagenet | none
    frozen: bool = True  # features computed once; else the encoder learns too, from the pixels
    image_size: int = 224  # side of what the backbone sees
    head: str = "transformer"  # transformer | attention | mlp | posterior
    width: int = 256
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    pool: tuple[int, int] = (16, 10)  # end to end: classes x images that a batch's sets are drawn from
    class_weight: float = 0.0  # end to end: weight of naming each image's class

    def __post_init__(self):
        super().__post_init__()
        wrong = {
            "head": self.head not in HEADS,
            "pretrained": self.pretrained not in ("imagenet", "none"),
            "set_size": self.set_size < 3,
            "heads": self.heads < 1,
            "width": self.width < 1 or (self.heads > 0 and self.width % self.heads != 0),
            "pool": len(self.pool) != 2 or (not self.frozen and (self.pool[0] < 2 or self.pool[1] < self.set_size)),
            "per_class": len(self.per_class) not in (2, 3),
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise settings.InputError(
                f"{name}={getattr(self, name)!r}: expected a head of {', '.join(HEADS)}; imagenet or none; sets of "
                "three or more; a width that the heads divide; a pool with a set's images of each class; train and "
                "val (and test) per class"
            )

    @classmethod
    def mini(cls) -> Self:
        return cls(per_class=(90, 10), backbone="convnet", pretrained="none", frozen=False, image_size=32, epochs=45,
                   batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=1e-2, schedule="cosine", warmup=50,
                   clip_norm=1.0, class_weight=1.0, test_sets=2_000)  # fmt: skip

    @classmethod
    def real(cls, dataset: str = "cifar100") -> Self:
        per_class = (450, 50) if dataset == "cifar100" else (0.8, 0.2)
        return cls(dataset=dataset, per_class=per_class, backbone="mobilenet_v2", frozen=False, image_size=96,
                   head="posterior", epochs=14, batch_size=64, optimizer="adamw", lr=7e-4, weight_decay=5e-2,
                   schedule="cosine", warmup=200, clip_norm=1.0, class_weight=1.0)  # fmt: skip

    @classmethod
    def full(cls) -> Self:
        """The course's recipe: frozen ResNet-18 features, attention over the set."""
        return cls(dataset="cifar100", optimizer="adamw", lr=3e-4, weight_decay=1e-4, batch_size=32, epochs=50,
                   patience=10, test_sets=2_000)  # fmt: skip


@dataclass
class Trained:
    """A model with its history, and the classes to draw sets from (() = all those of its config)."""

    config: Config
    model: SetModel
    history: list[dict]
    source: Path
    classes: tuple[str, ...] = ()


def default_root(dataset: str) -> Path:
    return settings.DATA_DIR / ("mini/sets" if dataset == "mini" else dataset)


def weights_path(config: Config) -> Path:
    """Where the weights of a config are kept; of some classes, or of frozen features, under a name of their own."""
    parts = [config.dataset, *([config.backbone, config.head] if config.frozen else []), *config.classes]
    parts += [f"without_{name}" for name in config.exclude] + [f"unseen{config.unseen}"] * bool(config.unseen)
    return settings.WEIGHTS_DIR / "sets" / f"{'_'.join(map(str, parts))}.pth"


def make_data(config: Config, root: Path | None = None) -> None:
    """Write the mini data set (if asked for), and the record of what each split of the data set holds."""
    root = root or default_root(config.dataset)
    if config.dataset == "mini":
        glyphs.write_dataset(root)
    sets = datasets(config, root)
    found = {split: {"images": len(part), "classes": len(part.labels.unique())} for split, part in sets.items()}
    records.write({"distribution": found}, records.record_path("sets", f"{config.dataset}_distribution"))


def datasets(config: Config, root: Path | None = None) -> dict[str, data.Images]:
    """split -> Images: train and val are carved from the part ``train``; test is a part of its own, if it is there.

    A val/ on disk is not used. With ``per_class`` of three numbers, test too is carved from ``train``. With ``unseen``,
    those classes are in no other split than ``unseen``, which holds all their images.
    """
    root = root or default_root(config.dataset)
    whole = training_part(config, root)
    parts = {split: whole.subset(chosen) for split, chosen in divide(config, whole).items()}
    if "test" not in parts and data.has_part(root, "test"):
        test = data.read(root, "test", config.image_size)
        parts["test"] = test.subset(test.of([whole.classes[label] for label in parts["train"].labels.unique()]))
    return parts


def training_part(config: Config, root: Path) -> data.Images:
    """The part ``train`` of a data set; DataError where class folders lie directly below ``root``.

    There every image belongs to whatever split is evaluated, and would be measured on what it taught.
    """
    if not data.has_part(root, "train"):
        raise data.DataError(f"{root} holds no train/<class>/*.png: put there what is to be learnt from (the mini set: "
                             "python -m src sets data; CIFAR-100: ./download.sh cifar100)")  # fmt: skip
    return data.read(root, "train", config.image_size)


def divide(config: Config, whole: data.Images) -> dict[str, torch.Tensor]:
    """split -> int64 indices of its images in the part ``train`` as it is on disk."""
    seen, unseen = data.choose_classes(whole.classes, config.classes, config.exclude), ()
    if config.unseen:
        seen, unseen = data.hold_out_classes(seen, config.unseen, config.seed)
    parts = data.split(whole, seen, config.per_class, config.seed)
    found = dict(zip(("train", "val", "test"), parts, strict=False))
    return found | ({"unseen": whole.of(unseen)} if unseen else {})


def build_model(config: Config, classes: int = 0) -> SetModel:
    """Encoder and head, randomly initialised from the config's seed; ``classes`` for the class layer, if any."""
    settings.seed_everything(config.seed)
    encoder = Encoder(config.backbone, config.image_size)
    learned = {"width": config.width, "dropout": config.dropout}
    heads = {
        "transformer": partial(SetTransformer, layers=config.layers, heads=config.heads, **learned),
        "attention": partial(SetAttention, heads=config.heads, **learned),
        "mlp": partial(FlatMLP, size=config.set_size, **learned),
        "posterior": partial(ClassPosterior, classes=classes),
    }
    return SetModel(encoder, heads[config.head](encoder.features), classes if config.class_weight else 0)


# ---------------------------------------------------------------------------------------- training
class SetBatches:
    """Batches of sets redrawn every epoch, as index tensors, on the device where their images or features are.

    Frozen: {features (B,N,F), position (B,)}, sets drawn from all images. End to end: {pixels (P,3,H,W),
    labels (P,), indices (B,N), position (B,)}, sets drawn from a pool of P = classes x images that are encoded once.
    """

    def __init__(self, config: Config, images: data.Images, found: torch.Tensor | None):
        self.rank, self.world = training.start_distributed()
        if config.batch_size % self.world:
            raise settings.InputError(f"batch_size={config.batch_size} does not divide over {self.world} processes")
        self.config, self.size, self.epoch = config, config.batch_size // self.world, 0
        self.labels, self.features = images.labels.to(settings.DEVICE), found
        self.pixels = None if config.frozen else images.pixels.to(settings.DEVICE)
        self.sampler = data.Sampler(self.labels, images.classes)
        if config.frozen and not len(self):
            raise settings.InputError(f"train_sets={config.train_sets} do not fill one batch of {config.batch_size}")
        if not config.frozen:
            self.sampler.pool(*config.pool, torch.Generator(settings.DEVICE))  # whether the classes are enough

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose sets the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.config.frozen:
            return self.config.train_sets // self.config.batch_size
        return max(1, len(self.labels) // (self.config.pool[0] * self.config.pool[1] * self.world))

    def __iter__(self) -> Iterator[dict]:
        seed = hash((self.config.seed, self.epoch, self.rank)) % 2**63
        generator = torch.Generator(settings.DEVICE).manual_seed(seed)
        if self.config.frozen:
            yield from self._frozen(generator)
        else:
            yield from (self._pooled(generator) for _ in range(len(self)))

    def _frozen(self, generator: torch.Generator) -> Iterator[dict]:
        sets = self.sampler.draw(len(self) * self.size, generator, self.config.set_size)
        for indices, position in zip(sets.indices.split(self.size), sets.position.split(self.size), strict=True):
            # The same rows as self.features[indices], gathered in less than half the time on a CPU
            yield {"features": F.embedding(indices, self.features), "position": position}

    def _pooled(self, generator: torch.Generator) -> dict:
        chosen = self.sampler.pool(*self.config.pool, generator)
        labels = self.labels[chosen]
        sets = data.Sampler(labels).draw(self.size, generator, self.config.set_size)
        return {"pixels": self.pixels[chosen], "labels": labels, **sets._asdict()}


def loss(model: nn.Module, batch: dict, class_weight: float) -> torch.Tensor:
    """Cross-entropy over the positions of a set; end to end, plus the weighted one over each image's classes."""
    if "features" in batch:
        return F.cross_entropy(model(batch["features"]).float(), batch["position"])
    logits, named = model(batch["pixels"], batch["indices"])
    total = F.cross_entropy(logits.float(), batch["position"])
    return total if named is None else total + class_weight * F.cross_entropy(named.float(), batch["labels"])


def train(config: Config, root: Path | None = None, *, weights: Path | None = None,
          run_dir: Path | None = None, out: Path | None = None) -> Trained:  # fmt: skip
    """Train (or resume) the run in ``run_dir``, and write the checkpoint ``out``, which needs no other file.

    ``weights`` is a local state dict of the backbone, or a checkpoint of this system to start from. The epoch is
    chosen by top1 on fixed validation sets. Stored as fp16 where that brings the file under ``checkpoints.LIMIT``.
    """
    out = out or weights_path(config)
    run_dir = run_dir or settings.RUNS_DIR / "sets" / out.stem
    whole = training_part(config, root or default_root(config.dataset))
    chosen = {split: rows for split, rows in divide(config, whole).items() if split in ("train", "val")}
    parts = {split: whole.subset(rows) for split, rows in chosen.items()}
    model = build_model(config, len(whole.classes))
    start(model, config, whole.classes, weights)
    model.encoder.requires_grad_(not config.frozen)
    found = frozen_features(model, whole, chosen, config) if config.frozen else {}
    sets = data.fixed_sets(parts["val"], config.val_sets, config.seed, config.set_size)
    features_of = (partial(found.get, "val") if config.frozen else
                   partial(features.extract_mixed, model.encoder, parts["val"], config, batch_size=512))  # fmt: skip
    history = training.fit(
        model.head if config.frozen else model,
        SetBatches(config, parts["train"], found.get("train")),
        partial(loss, class_weight=config.class_weight),
        partial(evaluation.validate, sets=sets, features_of=features_of),
        config,
        run_dir=run_dir,
        monitor="top1",
    )
    half = checkpoints.round_to_fit(model)
    checkpoints.save(out, model.state_dict(), half=half, config=checkpoints.plain(asdict(config)),
                     extras={"history": history, "classes": list(whole.classes)})  # fmt: skip
    return Trained(config, model, history, out)


def frozen_features(model: SetModel, whole: data.Images, chosen: dict, config: Config) -> dict[str, torch.Tensor]:
    """split -> features (N,F): computed of all images at once, so that every choice of classes shares one cache."""
    found = features.extract_mixed(model.encoder, whole, config, cache=settings.DATA_DIR / "features")
    return {split: found[rows].to(settings.DEVICE) for split, rows in chosen.items()}


def start(model: SetModel, config: Config, classes: Sequence[str], weights: Path | None) -> None:
    """Give the model what it starts from: a checkpoint of this system, ImageNet's weights, or nothing.

    Of a checkpoint with another head, or for a frozen encoder, only the encoder is taken, and the class layer where
    both have one of the same classes.
    """
    if not weights or checkpoints.is_bare_state_dict(checkpoints.read(weights)):
        if config.pretrained == "imagenet":
            model.encoder.load_pretrained(weights)
        elif weights:
            raise settings.InputError(f"{weights} would not be used: set pretrained=imagenet")
        return
    content = checkpoints.load(weights)
    other = load(weights, config).model
    if not config.frozen and content["config"]["head"] == config.head:
        checkpoints.load_weights(model, content["weights"], weights)
        return
    checkpoints.load_weights(model.encoder, other.encoder.state_dict(), weights)
    mine, theirs = model.class_layer(), other.class_layer()
    if mine and theirs and content["extras"]["classes"] == list(classes):
        mine.load_state_dict(theirs.state_dict())


def load_or_train(config: Config, root: Path | None = None, *, run_training: bool = settings.RUN_TRAINING) -> Trained:
    """The trained model of a config: loaded, or trained if it is missing and ``run_training`` is on."""
    return checkpoints.load_or_train(sys.modules[__name__], config, root, run_training)


def load(path: Path | str, fallback: Config, overrides: Sequence[str] = ()) -> Trained:
    """A trained model with its own config, which overrides must agree with.

    But ``classes`` may name some of those trained on, for an evaluation on sets of these alone.
    """
    content = checkpoints.load_finished(path)
    config = Config.from_plain(content["config"])
    asked = replace(config, classes=()).override(overrides)
    checkpoints.require_same_config(replace(asked, classes=config.classes), content, path)
    model = build_model(config, len(content["extras"]["classes"]))
    checkpoints.load_weights(model, content["weights"], path)
    return Trained(config, model.eval(), content["extras"]["history"], Path(path), asked.classes)


# -------------------------------------------------------------------------------------- evaluation
def is_divided(config: Config, root: Path, dataset: str) -> bool:
    """Whether a data set is the model's own, with a part ``train`` to carve splits from."""
    return dataset == config.dataset and data.has_part(root, "train")


def images_of(config: Config, root: Path | None, dataset: str | None, split: str) -> data.Images:
    """The images of a split of the model's own data set, or of any folder of class folders (``dataset``).

    Where that folder holds class folders directly, every image belongs to the split named. The config's choice of
    classes is of its own data set: of another, all count.
    """
    dataset = dataset or config.dataset
    root = root or default_root(dataset)
    if not is_divided(config, root, dataset):
        whole = data.read(root, split, config.image_size)
        chosen = (config.classes, config.exclude) if dataset == config.dataset else ((),)
        return whole.subset(whole.of(data.choose_classes(whole.classes, *chosen)))
    parts = datasets(config, root)
    if split not in parts:
        raise settings.InputError(f"{root} has no split {split}: expected one of {', '.join(parts)}")
    return parts[split]


def evaluate(
    config: Config,
    model: SetModel,
    root: Path | None = None,
    *,
    dataset: str | None = None,
    split: str = "test",
    classes: Sequence[str] = (),
) -> dict:
    """Metrics of a model on a split of its own data set, or of another folder of class folders (``dataset``).

    With ``classes`` all sets are of these.
    """
    images = images_of(config, root, dataset, split)
    if classes:
        images = images.subset(images.of(data.choose_classes(images.classes, classes)))
    found = features.extract(model.encoder, images)
    return evaluation.measure(model.head, found, images, config.test_sets, config.seed, config.set_size)


def measure(trained: Trained, root: Path | None, dataset: str | None, split: str) -> tuple[dict, dict, str]:
    """(metrics, data description, protocol) of an evaluation's record."""
    name = dataset or trained.config.dataset
    metrics = evaluate(trained.config, trained.model, root, dataset=dataset, split=split, classes=trained.classes)
    root = root or default_root(name)
    carved = is_divided(trained.config, root, name) and (split != "test" or len(trained.config.per_class) > 2)
    found = records.fingerprint(data.files(root, "train" if carved else split), root)
    described = {"dataset": name, "split": split, "classes": list(trained.classes), **found}
    return metrics, described, evaluation.PROTOCOL


def predict(trained: Trained, files: Sequence[Path], out: Path) -> list[dict]:
    """Which of the image files is the odd one: a row for each with its score, and ``set.png`` below ``out``."""
    if len(files) < 3:
        raise settings.InputError(f"{len(files)} images: the odd one of three or more can be told")
    if len(files) != getattr(trained.model.head, "size", len(files)):
        raise settings.InputError(f"these weights are for sets of {trained.model.head.size} images, not {len(files)}")
    images = data.from_files(files, trained.config.image_size)
    scores = evaluation.scores_of(trained.model.head, features.extract(trained.model.encoder, images),
                                  torch.arange(len(files))[None])[0]  # fmt: skip
    figures.write_set(images, scores, out / "set.png")
    shares = scores.softmax(0)
    return [{"filename": str(file), "score": float(score), "probability": float(share),
             "is_odd": bool(score == scores.max())}
            for file, score, share in zip(files, scores, shares, strict=True)]  # fmt: skip


def draw(trained: Trained, root: Path | None, dataset: str | None) -> list[Path]:
    """The PNGs under assets/figures/sets for a trained model on validation images."""
    plots.style()
    name = dataset or trained.config.dataset
    return figures.draw_all(trained, name, images_of(trained.config, root, dataset, "val"))
