"""Defects on parts of which only good ones were seen: Uninformed Students (Bergmann et al., arXiv:1911.02357).

The public functions, alike in every system: ``Config``, ``datasets(config)``, ``build_model(config)``, ``train(config)``,
``evaluate(config, model)``; for the command line also ``make_data``, ``load``, ``measure``, ``predict``, ``draw`` and,
in this system alone, ``write_report``.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from torch import nn

from src import checkpoints, plots, records, settings, training
from src.defects import data, domain, evaluation, figures, report, scores, students, teacher
from src.defects.dense import STRIDES
from src.defects.model import PatchNet, StudentTeacher
from src.defects.teacher import TeacherConfig
from src.synthetic import textures

REAL = ("magnetic_tile", "mvtec", "folder", "csv")  # the data sets that profile real trains on


@dataclass(frozen=True)
class Config(training.TrainingConfig):
    """What the defects system can vary.

    Of the inherited settings the teacher shares those of ``of_teacher`` with the students, but not the seed: its own
    stays ``settings.SEED``, so that runs of other seeds share it.
    """

    dataset: str = "mini"
    categories: tuple[str, ...] = ()  # folders of an MVTec-style root, each with students of its own
    percent: tuple[int, ...] = ()  # train, val, test; () = the split that the data set comes with
    image_size: int = 256  # short side
    crop_size: int = 0  # side of random training crops; 0 = the whole image
    patch_sizes: tuple[int, ...] = (33,)
    students: int = 3
    descriptor: int = 128
    width: int = 128  # channels of the students' first layer; the paper's are 128
    stride: int = 4  # pixels between scored positions; 1 = every pixel
    backbone: str = "resnet18"
    pretrained: str = "imagenet"  # imagenet | none: the backbone's weights
    backbone_depth: str = "middle"  # middle | last
    patch_pixels: int = 64
    teacher_images: str = "imagenet"
    teacher_image_size: tuple[int, int] = (128, 320)
    teacher_augmentation: str = "paper"
    teacher_width: int = 128
    teacher_epochs: int = 200
    teacher_batch_size: int = 64
    teacher_lr: float = 2e-4
    patches_per_image: int = 1
    compactness: str = "mean"
    compactness_weight: float = 0.1
    backbone_epochs: int = 0  # of fine-tuning the backbone on the training images at hand; 0 = as it came

    def __post_init__(self):
        super().__post_init__()
        wrong = {
            "students": self.students < 1,
            "patch_sizes": not self.patch_sizes,
            "stride": self.stride not in STRIDES,
            "crop_size": bool(self.crop_size) and self.crop_size < max(self.patch_sizes, default=0),
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise settings.InputError(f"{name}={getattr(self, name)!r}: expected at least one student and patch size, "
                                      f"a stride of {STRIDES} and crops of a patch or more")  # fmt: skip
        if dotted := [name for name in self.categories if "." in name]:
            raise settings.InputError(
                f"category {dotted[0]!r}: names of weights cannot hold its dot; rename its folder"
            )
        for size in self.patch_sizes:
            self.of_teacher(size)  # which checks what it is given

    @classmethod
    def mini(cls) -> Self:
        return cls(categories=textures.CATEGORIES, image_size=128, epochs=25, batch_size=8, lr=1e-3, weight_decay=1e-5,
                   schedule="cosine", warmup=20, width=64, backbone="resnet18", pretrained="none",
                   teacher_images="mini/defects/teacher", teacher_width=64, teacher_epochs=50, teacher_batch_size=16,
                   patches_per_image=32, teacher_lr=1e-3)  # fmt: skip

    @classmethod
    def real(cls, dataset: str = "magnetic_tile") -> Self:
        percent = () if dataset == "mvtec" else (70, 15, 15)
        return cls(dataset=dataset, percent=percent, crop_size=128, epochs=40, batch_size=4, lr=3e-4, weight_decay=1e-5,
                   schedule="cosine", warmup=20, backbone="squeezenet1_0", teacher_images="imagenet_sample",
                   teacher_epochs=90, teacher_batch_size=32, patches_per_image=16, teacher_lr=5e-4)  # fmt: skip

    @classmethod
    def full(cls) -> Self:
        """The course's recipe: d = 512 descriptors distilled from ResNet-18's output, no decoder."""
        return cls(dataset="mvtec", epochs=25, batch_size=1, lr=1e-4, weight_decay=1e-5, descriptor=512, stride=1,
                   backbone_depth="last", teacher_image_size=(256, 256), teacher_augmentation="flip_rotate",
                   teacher_epochs=200, teacher_batch_size=64, teacher_lr=2e-4)  # fmt: skip

    def of_teacher(self, patch_size: int) -> TeacherConfig:
        """The part of the config that a teacher depends on; ``domain`` is known once there are images."""
        return TeacherConfig(
            epochs=self.teacher_epochs, batch_size=self.teacher_batch_size, optimizer=self.optimizer,
            lr=self.teacher_lr, weight_decay=self.weight_decay, schedule=self.schedule, warmup=self.warmup,
            workers=self.workers, amp=self.amp, compile=self.compile, patch_size=patch_size,
            descriptor=self.descriptor, width=self.teacher_width, backbone=self.backbone, pretrained=self.pretrained,
            depth=self.backbone_depth, patch_pixels=self.patch_pixels, images=self.teacher_images,
            image_size=self.teacher_image_size, augmentation=self.teacher_augmentation,
            patches_per_image=self.patches_per_image,
            compactness=self.compactness, compactness_weight=self.compactness_weight,
            backbone_epochs=self.backbone_epochs,
        )  # fmt: skip

    def parts(self) -> dict[str, str]:
        """Category -> its folder under the root ("" = the root itself)."""
        return {name: name for name in self.categories} or {self.dataset: ""}


@dataclass
class Trained:
    """A model with what was learned beside its weights.

    ``calibration``: category -> patch size -> as ``scores.calibrate`` gives it; ``thresholds``: category ->
    as ``evaluation.choose_threshold`` gives it; ``history``: ``teacher <p>`` or ``<category> <p>`` -> epochs.
    """

    config: Config
    model: StudentTeacher
    calibration: dict
    thresholds: dict
    history: dict[str, list[dict]]
    source: Path


def default_root(dataset: str) -> Path:
    return settings.DATA_DIR / ("mini/defects" if dataset == "mini" else dataset)


def weights_path(config: Config) -> Path:
    return settings.WEIGHTS_DIR / "defects" / f"{config.dataset}.pth"


def teacher_path(config: Config, patch_size: int, folder: Path | None = None) -> Path:
    """Where (default: beside the committed weights) a teacher is kept, for every category and data set that it suits.

    One that learned from a data set's own images is of that data set alone.
    """
    images = config.teacher_images.split("/")[0] + (f"_{config.dataset}" if config.backbone_epochs else "")
    return (folder or settings.WEIGHTS_DIR / "defects") / f"teacher_{images}_{patch_size}.pth"


def make_data(config: Config, root: Path | None = None) -> None:
    """Write the mini data set (if asked for), and the record of what each split of the data set holds."""
    root = root or default_root(config.dataset)
    if config.dataset == "mini":
        textures.write_dataset(root)
    found = {category: data.counts({split: part.items for split, part in sets.items()})
             for category, sets in datasets(config, root).items()}  # fmt: skip
    records.write({"distribution": found}, records.record_path("defects", f"{config.dataset}_distribution"))


def datasets(config: Config, root: Path | None = None) -> dict[str, dict[str, data.DefectDataset]]:
    """category -> split (train, val, test) -> DefectDataset, read from ``root`` (default: below DATA_DIR)."""
    root = root or default_root(config.dataset)
    return {
        category: {
            split: data.DefectDataset(items, root)
            for split, items in data.read(config.dataset, root, folder, config.percent, config.seed).items()
        }
        for category, folder in with_categories(config, root).parts().items()
    }


def with_categories(config: Config, root: Path) -> Config:
    """The config with every category under the root, where it names none and the layout has some."""
    if config.dataset != "mvtec" or config.categories:
        return config
    return replace(config, categories=tuple(data.categories(root)))


def build_model(config: Config) -> StudentTeacher:
    """Teacher and students for each patch size, and category, initialised from the config's seed."""
    return StudentTeacher(config.parts(), config.patch_sizes, config.students, config.descriptor,
                          (config.teacher_width, config.width), config.seed)  # fmt: skip


# ---------------------------------------------------------------------------------------- training
def train_teacher(config: Config, patch_size: int, weights: Path | None, runs: Path, images: Sequence[Path] = (),
                  teachers: Path | None = None) -> tuple[PatchNet, list[dict]]:  # fmt: skip
    """The teacher of a patch size: the one kept (in ``teachers``) for this config, or a new one, which is then kept.

    ``images`` are the training images that its backbone is fine-tuned on where the config says so.
    """
    path, own, adapt = teacher_path(config, patch_size, teachers), config.of_teacher(patch_size), None
    if own.backbone_epochs:
        own = replace(own, domain=domain.describe(config.dataset, images))
        adapt = partial(domain.adapt, images=images, config=own, run_dir=runs / f"{path.stem}_backbone")
    if not path.exists():
        net, history = teacher.distill(own, runs / path.stem, weights, adapt)
        checkpoints.save(path, net.state_dict(), half=True, config=checkpoints.plain(asdict(own)),
                         extras={"history": history})  # fmt: skip
    content = checkpoints.load(path)
    kept = TeacherConfig.from_plain(content["config"])
    how_run = {name: getattr(kept, name) for name in ("workers", "amp", "compile")}  # not what it became
    checkpoints.require_same_config(replace(own, **how_run), content, path)
    net = PatchNet(patch_size, own.descriptor, own.width)
    checkpoints.load_weights(net, content["weights"], path)
    return net, content["extras"]["history"]


def train(config: Config, root: Path | None = None, *, weights: Path | None = None, run_dir: Path | None = None,
          out: Path | None = None, teachers: Path | None = None) -> Trained:  # fmt: skip
    """Teach the teachers (unless ``teachers``, a folder, keeps them), then each category's students; calibrate; save.

    ``weights`` is a local state dict of the backbone, in place of torchvision's download. Runs in ``run_dir`` that
    were interrupted are resumed. Stored as fp16 where that brings the file under ``checkpoints.LIMIT``;
    calibration and thresholds are those of the stored weights.
    """
    root = root or default_root(config.dataset)
    config = with_categories(config, root)
    runs = run_dir or settings.RUNS_DIR / "defects"
    sets, model, history = datasets(config, root), build_model(config), {}
    normal = {category: data.DefectDataset([item for item in parts["val"].items if not item.is_anomalous], root)
              for category, parts in sets.items()}  # fmt: skip
    if lacking := [category for category, part in normal.items() if not part.items]:
        raise settings.InputError(f"{root}: val holds no normal images for {lacking[0]}; give it a share (percent)")
    images = [item.image for parts in sets.values() for item in parts["train"].items]
    for size in config.patch_sizes:
        net, history[f"teacher {size}"] = train_teacher(config, size, weights, runs, images, teachers)
        model.teachers[str(size)].load_state_dict(net.state_dict())
        for category, parts in sets.items():
            history[f"{category} {size}"] = students.fit(
                model.students[category][str(size)], model.teachers[str(size)], parts["train"], normal[category],
                config, runs / f"{config.dataset}_{category}_{size}",
            )  # fmt: skip
    return finish(config, model, sets, history, out or weights_path(config))


def finish(config: Config, model: StudentTeacher, sets: dict, history: dict, path: Path) -> Trained:
    """Round the weights to fit a file, calibrate scores and choose thresholds on val, write the checkpoint."""
    half = checkpoints.round_to_fit(model)
    calibration, thresholds = {}, {}
    for category, parts in sets.items():
        calibration[category] = scores.calibrate(model, category, parts["val"], config)
        thresholds[category] = evaluation.threshold_on(model, category, parts["val"], calibration[category], config)
    checkpoints.save(path, model.state_dict(), half=half, config=checkpoints.plain(asdict(config)),
                     extras={"calibration": calibration, "thresholds": thresholds, "history": history})  # fmt: skip
    return Trained(config, model, calibration, thresholds, history, path)


def load_or_train(config: Config, root: Path | None = None, *, run_training: bool = settings.RUN_TRAINING) -> Trained:
    """The trained model of a config: loaded, or trained if it is missing and ``run_training`` is on."""
    config = with_categories(config, root or default_root(config.dataset))
    return checkpoints.load_or_train(sys.modules[__name__], config, root, run_training)


def load(path: Path | str, fallback: Config, overrides: Sequence[str] = ()) -> Trained:
    """A trained model with its own config, which overrides must agree with.

    But ``stride`` may differ, which scoring alone uses, and ``categories`` and ``patch_sizes`` may name some of those
    trained on (thresholds stay those of all patch sizes).
    """
    content = checkpoints.load_finished(path)
    own = Config.from_plain(content["config"])
    asked = own.override(overrides)
    unknown = set(asked.categories) - set(own.categories)
    if unknown or (own.categories and not asked.categories):
        raise settings.InputError(f"{path} knows the categories {own.categories}, not {', '.join(unknown) or 'none'}")
    if not asked.patch_sizes or set(asked.patch_sizes) - set(own.patch_sizes):
        raise settings.InputError(f"{path} knows the patch sizes {own.patch_sizes}, not {asked.patch_sizes}")
    comparable = replace(asked, stride=own.stride, categories=own.categories, patch_sizes=own.patch_sizes)
    checkpoints.require_same_config(comparable, content, path)
    model = build_model(own)
    checkpoints.load_weights(model, content["weights"], path)
    extras = content["extras"]
    return Trained(asked, model, extras["calibration"], extras["thresholds"], extras["history"], Path(path))


# -------------------------------------------------------------------------------------- evaluation
def samples(config: Config, root: Path | None, dataset: str | None, split: str) -> dict[str, data.DefectDataset]:
    """Category of the model -> the images to score: a split of its own data set, or of another one.

    Of another one whose layout has no splits, every image is scored: none was trained on.
    """
    dataset = dataset or config.dataset
    root = root or default_root(dataset)
    if split not in ("train", "val", "test"):
        raise settings.InputError(f"split {split!r}: expected train, val or test")
    if dataset == config.dataset:
        config = with_categories(config, root)
    if dataset != config.dataset and dataset not in data.NESTED:
        found = [data.DefectDataset(data.pooled(dataset, root), root)]
    else:
        found = [parts[split] for parts in datasets(replace(config, dataset=dataset), root).values()]
    if len(found) != len(config.parts()):
        raise settings.InputError(f"{dataset} is one set of images, the weights know the categories "
                                  f"{', '.join(config.parts())}: choose one with categories=NAME")  # fmt: skip
    return dict(zip(config.parts(), found, strict=True))


def evaluate(
    config: Config,
    model: nn.Module,
    root: Path | None = None,
    *,
    calibration: dict,
    thresholds: dict,
    dataset: str | None = None,
    split: str = "test",
    records: Path | None = None,
) -> dict:
    """Metrics of a model on a split of its own data set, or of another one (``dataset``) in any layout.

    ``records`` names a folder for each category's pictures and ``records.json``, from which ``report`` is made.
    """
    found = {}
    for category, images in samples(config, root, dataset, split).items():
        items = evaluation.scored(model, category, images, calibration[category], config)
        found[category] = evaluation.measure(
            items, category, split, thresholds[category], records and records / category
        )
    return evaluation.mean_over_categories(found)


def measure(trained: Trained, root: Path | None, dataset: str | None, split: str,
            records: Path | None = None) -> tuple[dict, dict, str]:  # fmt: skip
    """(metrics, data description, protocol) of an evaluation's record."""
    config, name = trained.config, dataset or trained.config.dataset
    metrics = evaluate(config, trained.model, root, calibration=trained.calibration, thresholds=trained.thresholds,
                       dataset=dataset, split=split, records=records)  # fmt: skip
    root = root or default_root(name)
    files = [file for images in samples(config, root, dataset, split).values() for file in data.paths(images)]
    root = root.parent if root.is_file() else root  # a CSV table
    described = {"dataset": name, "split": split, "stride": config.stride, **records.fingerprint(files, root)}
    return metrics, described, evaluation.PROTOCOL


def predict(trained: Trained, files: Sequence[Path], out: Path) -> list[dict]:
    """The record of each image file; its heat map and uncertainty map are written below ``out``."""
    if len({file.stem for file in files}) < len(files):
        raise settings.InputError("two of the files have the same name, and so would their pictures: rename one")
    if len(trained.config.parts()) > 1:
        raise settings.InputError("of which category are the images? Choose one of "
                                  f"{', '.join(trained.config.parts())} with categories=NAME")  # fmt: skip
    (category,) = trained.config.parts()
    images = data.DefectDataset([data.Item(file) for file in files], Path())
    items = evaluation.scored(trained.model, category, images, trained.calibration[category], trained.config)
    named = (replace(item, name=Path(item.name).name) for item in items)
    threshold = trained.thresholds[category]["value"]
    return [{**evaluation.write_pictures(item, out, threshold), "threshold": threshold} for item in named]


def write_report(trained: Trained, root: Path | None, dataset: str | None, split: str, out: Path) -> list[Path]:
    """Evaluate, and write a self-contained HTML page for each category beside its ``records.json`` below ``out``."""
    measure(trained, root, dataset, split, out)
    return [report.write(out / category, out / f"{category}.html") for category in trained.config.parts()]


def draw(trained: Trained, root: Path | None, dataset: str | None) -> list[Path]:
    """The PNGs under assets/figures/defects for a trained model on the test split of one data set."""
    plots.style()
    return figures.draw_all(trained, dataset or trained.config.dataset, samples(trained.config, root, dataset, "test"))
