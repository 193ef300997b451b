"""Training of the whole model: what its method learns of each category, calibration, thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from src import checkpoints, settings, system
from src.defects import domain, evaluation, feature_fitting, scores, students, teacher
from src.defects.config import Config, TeacherConfig
from src.defects.data import DefectDataset, datasets, default_root
from src.defects.features import FeatureDetector
from src.defects.model import Detector, PatchNet, StudentTeacher, build_model
from src.system import Trained

HOW_RUN = ("workers", "amp", "compile")  # settings of a training that do not change what a teacher is


def train(
    config: Config,
    root: Path | None = None,
    *,
    weights: Path | None = None,
    run_dir: Path | None = None,
    out: Path | None = None,
    teachers: Path | None = None,
) -> Trained:
    """Train what the config's method learns from good parts, calibrate, save.

    Uninformed Students: distil the teachers (unless ``teachers``, a folder, keeps them), train the students.

    ``weights`` is a local state dict of the backbone, in place of torchvision's download. Runs in ``run_dir`` that
    were interrupted are resumed. Stored as fp16 where that brings the file under ``checkpoints.LIMIT``;
    calibration and thresholds are those of the stored weights.
    """
    root = root or default_root(config.dataset)
    runs = run_dir or settings.RUNS_DIR / "defects"
    splits = datasets(config, root)
    for category, parts in splits.items():
        if not parts["val"].normal().items:
            raise settings.InputError(f"{root}: val holds no normal images for {category}; give it a share (percent)")
    model = build_model(replace(config, categories=tuple(splits)))
    if isinstance(model, FeatureDetector):
        history = feature_fitting.fit(model, splits, config, weights, runs)
    else:
        history = fit_students(model, splits, config, weights, runs, teachers)
    out = out or settings.WEIGHTS_DIR / "defects" / f"{config.weights_name}.pth"
    return finish(config, model, {category: parts["val"] for category, parts in splits.items()}, history, out)


def fit_students(
    model: StudentTeacher,
    splits: Mapping[str, Mapping[str, DefectDataset]],
    config: Config,
    weights: Path | None,
    runs: Path,
    teachers: Path | None,
) -> dict[str, list[dict]]:
    """Give the model its teachers, and train the students of every category; returns all histories."""
    images, history = [item.image for parts in splits.values() for item in parts["train"].items], {}
    for size in config.patch_sizes:
        net, history[f"teacher {size}"] = train_teacher(config, size, weights, runs, images, teachers)
        model.teachers[str(size)].load_state_dict(net.state_dict())
        for category, parts in splits.items():
            history[f"{category} {size}"] = students.fit(
                model.students[category][str(size)],
                model.teachers[str(size)],
                parts["train"],
                parts["val"].normal(),
                config,
                runs / f"{config.dataset}_{category}_{size}",
            )
    return history


def train_teacher(
    config: Config,
    patch_size: int,
    weights: Path | None,
    runs: Path,
    images: Sequence[Path] = (),
    teachers: Path | None = None,
) -> tuple[PatchNet, list[dict]]:
    """(network, history) of a patch size's teacher: the one kept in ``teachers`` for this config, or a new one.

    A new one is kept there. ``images`` are the training images that its backbone is fine-tuned on where the config
    says so.
    """
    path = teacher_path(config, patch_size, teachers)
    fine_tuned_on = domain.describe(config.dataset, images) if config.backbone_epochs else ""
    teacher_config = config.teacher_config(patch_size, fine_tuned_on)
    if not path.exists():
        net, history = teacher.distill(teacher_config, runs / path.stem, weights, images)
        checkpoints.save(path, net.state_dict(), half=True, config=teacher_config.plain(), extras={"history": history})
    content = checkpoints.load_finished(path)
    stored = TeacherConfig.from_plain(content["config"])
    same_run = {name: getattr(stored, name) for name in HOW_RUN}
    checkpoints.require_same_config(replace(teacher_config, **same_run), content, path)
    net = PatchNet(patch_size, config.descriptor, config.teacher_width)
    checkpoints.load_weights(net, content["weights"], path)
    return net, content["extras"]["history"]


def teacher_path(config: Config, patch_size: int, folder: Path | None = None) -> Path:
    """Where (default: beside the committed weights) a teacher is kept, for every category and data set that it suits.

    One whose backbone was fine-tuned on a data set's own images is of that data set alone.
    """
    images = config.teacher_images.split("/")[0] + (f"_{config.dataset}" if config.backbone_epochs else "")
    return (folder or settings.WEIGHTS_DIR / "defects") / f"teacher_{images}_{patch_size}.pth"


def finish(
    config: Config, model: Detector, val: Mapping[str, DefectDataset], history: dict[str, list[dict]], path: Path
) -> Trained:
    """Round the weights to fit a file, calibrate scores and choose thresholds on each category's val, save."""
    half = checkpoints.round_to_fit(model)
    calibration = {category: scores.calibrate(model, category, images, config) for category, images in val.items()}
    extras = {"calibration": calibration, "thresholds": {}, "history": history}
    trained = Trained(config, model, extras, path, config)
    for category, images in val.items():
        extras["thresholds"][category] = evaluation.threshold_on(trained, category, images)
    return system.save(config, model, extras, path, half=half)
