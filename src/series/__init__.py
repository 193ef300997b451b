"""Nine kinds of time-series behaviour, named from their plots: by the picture, or by the trace of its line.

The public functions, alike in every system: ``Config``, ``datasets(config)``, ``build_model(config)``, ``train(config)``,
``evaluate(config, model)``; for the command line also ``make_data``, ``load``, ``measure``, ``predict`` and ``draw``.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import nn

from src import checkpoints, plots, records, settings, training
from src.series import data, envelope, evaluation, figures
from src.series.batches import Batches, loss
from src.series.model import FLIPS, ENVELOPE, Classifier, PictureNet, PictureTrunk, EnvelopeNet, fit_temperature
from src.synthetic import series_plots, series_raster
from src.synthetic.time_series import CLASSES

REAL = ("plots",)  # the data sets that profile real trains on
GENERATED = "generated"  # the data set that is on no disk: fresh series for every split
DRAWN = 500  # series of each class in one of its splits
PRETRAINED = settings.WEIGHTS_DIR / "series" / "generated.pth"  # on generated series alone


@dataclass(frozen=True)
class Config(training.TrainingConfig):
    """What the series system can vary."""

    REMOVED = {"label_smoothing": 0.0, "mixup": 0.0, "cutout": 0.0, "noise": 0.0, "color_jitter": 0.0, "rotation": 0.0}

    dataset: str = "mini"
    classes: tuple[str, ...] = ()  # () = all
    backbone: str = ENVELOPE  # or a classifier of torchvision by name, which sees the picture
    size: tuple[int, int] = (120, 160)  # height and width of pictures
    axes: bool = True  # pictures with axes, grid and labels; else the line alone
    width: int = 32  # channels of the trace network's first stage
    dropout: tuple[float, ...] = (0.3, 0.3, 0.2)  # before each layer of the head
    generated: int = 0  # series of each class that are drawn anew for every epoch, in place of the training split
    folds: int = 5  # parts of a training split that brings no validation split
    cross_validate: bool = False  # a network for each fold, then one for all; else the first fold validates
    flips: tuple[str, ...] = ("horizontal", "vertical")  # of which a plot may be any, with the same class
    tta: bool = True  # probabilities are the mean over them
    activation_weight: float = 0.0  # of looking where recorded events are

    def __post_init__(self):
        super().__post_init__()
        wrong = {
            "flips": set(self.flips) - FLIPS.keys(),
            "dropout": len(self.dropout) != 3 or not all(0 <= share < 1 for share in self.dropout),
            "size": len(self.size) != 2 or min(self.size) < 32,
            "folds": self.folds < 2,
            "classes": self.classes and len({c for c in self.classes if type(c) is str}) < max(2, len(self.classes)),
            **{name: getattr(self, name) < 0 for name in ("generated", "activation_weight")},
            "patience": self.cross_validate and (self.patience or self.schedule == "plateau"),
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise settings.InputError(
                f"{name}={getattr(self, name)!r}: expected flips among {', '.join(FLIPS)}; three shares of dropout; "
                "height and width of 32 pixels or more; two folds or more; two classes or more by name, none twice; "
                "nothing negative; and with cross_validate, where no plot is left to choose an "
                "epoch by, neither patience nor schedule=plateau"
            )

    @classmethod
    def mini(cls) -> Self:
        return cls(generated=6000, epochs=8, batch_size=128, optimizer="adamw", lr=3e-3, weight_decay=1e-2,
                   schedule="cosine", warmup=200, clip_norm=5.0, dropout=(0.1, 0.1, 0.1),
                   activation_weight=0.3)  # fmt: skip

    @classmethod
    def real(cls, dataset: str = "plots") -> Self:
        """Starts from PRETRAINED: --weights assets/weights/series/generated.pth."""
        return cls(dataset=dataset, cross_validate=True, epochs=3, batch_size=32, optimizer="adamw", lr=1e-4,
                   weight_decay=1e-2, schedule="cosine", warmup=50, clip_norm=5.0)  # fmt: skip

    @classmethod
    def full(cls) -> Self:
        """The course's recipe: ResNet-50 on whole pictures, but the epoch chosen on validation."""
        return cls(dataset="plots", backbone="resnet50", size=(224, 224), epochs=30, batch_size=32, lr=1e-3,
                   schedule="plateau", flips=("horizontal",), tta=False)  # fmt: skip


@dataclass
class Trained:
    """A classifier with its classes and histories: ``fold K`` and ``all``, or ``val`` -> epochs."""

    config: Config
    model: Classifier
    classes: tuple[str, ...]
    history: dict[str, list[dict]]
    source: Path


def default_root(dataset: str) -> Path:
    return settings.DATA_DIR / {"mini": "mini/series", "plots": "series_plots"}.get(dataset, dataset)


def weights_path(config: Config) -> Path:
    """Where weights are kept: by data set, and of another backbone or of some classes under a name of their own."""
    of_pictures = [] if config.backbone == ENVELOPE else [config.backbone, *([] if config.axes else ["line"])]
    parts = [config.dataset, *of_pictures, *config.classes]
    return settings.WEIGHTS_DIR / "series" / f"{'_'.join(parts)}.pth"


def make_data(config: Config, root: Path | None = None) -> None:
    """Write the mini data set (if asked for), and the record of what each split of the data set holds."""
    root = root or default_root(config.dataset)
    if config.dataset == "mini":
        series_plots.write_dataset(root)
    splits = ["train", *(split for split in ("val", "test") if data.has_split(root, split))]
    found = {split: data.counts(root, split) for split in splits}
    records.write({"distribution": found}, records.record_path("series", f"{config.dataset}_distribution"))


# -------------------------------------------------------------------------------------------- data
def view_of(config: Config) -> tuple[Callable, Callable]:
    """(of a plot's pixels, of a series' numbers) -> the item that the config's network sees."""
    if config.backbone == ENVELOPE:
        return envelope.of_plot, envelope.of_series
    return (partial(data.picture, size=config.size, axes=config.axes),
            partial(series_raster.picture, size=config.size, axes=config.axes))  # fmt: skip


def datasets(config: Config, root: Path | None = None,
             splits: Sequence[str] = ("train", "val", "test")) -> dict[str, data.Labelled]:  # fmt: skip
    """split asked for -> plots as the network's items; val is a fold of train where there is none on disk."""
    root = root or default_root(config.dataset)
    found = {split: read(config, root, split) for split in splits if has_split(config, root, split)}
    if "train" in splits and "train" not in found:
        raise data.DataError(f"{root} has no train/<class> folders of plots or CSV (mini: python -m src series data)")
    if "train" in found and not has_split(config, root, "val"):
        fold = data.folds(found["train"].labels, config.folds, config.seed)
        found |= {"train": found["train"].subset((fold > 0).nonzero()[:, 0]),
                  "val": found["train"].subset((fold == 0).nonzero()[:, 0])}  # fmt: skip
    return found


def has_split(config: Config, root: Path, split: str) -> bool:
    return config.dataset == GENERATED or data.has_split(root, split)


def read(config: Config, root: Path, split: str) -> data.Labelled:
    """The series of a split on disk, or (data set ``generated``) as many drawn for it alone.

    Labelled by the config's classes, of which a folder may lack some but (unless they are chosen) bring no other.
    """
    view, classes = view_of(config), config.classes or CLASSES
    if config.dataset == GENERATED:
        return data.pool(view[1], DRAWN, classes, seed=config.seed, split=split)
    found = data.read_series(root, split, view, config.classes)
    if unknown := set(found.classes) - set(classes):
        raise settings.InputError(f"{root} holds classes that are not known: {', '.join(sorted(unknown))}; known are "
                                  f"{', '.join(classes)}; to train on others, name them: classes=...")  # fmt: skip
    numbers = torch.tensor([classes.index(name) for name in found.classes])
    return replace(found, labels=numbers[found.labels], classes=classes)


def build_model(config: Config, members: int = 1) -> Classifier:
    """``members`` networks of the config's seed, randomly initialised."""
    settings.seed_everything(config.seed)
    flips = config.flips if config.tta else ()
    return Classifier(partial(build_net, config), members, flips)


def build_net(config: Config) -> nn.Module:
    """A randomly initialised network, of traces or of pictures as the backbone says."""
    classes = len(config.classes or CLASSES)
    if config.backbone == ENVELOPE:
        return EnvelopeNet(config.width, classes, config.dropout)
    return PictureNet(PictureTrunk(config.backbone, config.size), classes, config.dropout)


# ---------------------------------------------------------------------------------------- training
def drawn(config: Config, epoch: int) -> data.Labelled:
    """An epoch's series straight from the generator: none twice in a run, none of the mini set on disk."""
    first = data.FIRST_STREAMED + epoch * config.generated
    return data.pool(view_of(config)[1], config.generated, config.classes or CLASSES, first, config.seed)


def train(config: Config, root: Path | None = None, *, weights: Path | None = None,
          run_dir: Path | None = None, out: Path | None = None) -> Trained:  # fmt: skip
    """Train (or resume) the run in ``run_dir``, and write the checkpoint ``out``.

    ``weights`` is a checkpoint of this system that the networks start from. The epoch is chosen by accuracy on the
    split val. With ``cross_validate`` nothing is chosen: the last epoch is kept, of a network for each fold, which go
    to ``<out>_folds.pth``, and of one for all plots, which goes to ``out`` with the temperature that suits the folds.
    Stored as fp16 where that brings a file under ``checkpoints.LIMIT``.
    """
    root, out = root or default_root(config.dataset), out or weights_path(config)
    run_dir = run_dir or settings.RUNS_DIR / "series" / out.stem
    fit_net = partial(fit, config=config, start=starting_net(config, weights))
    if config.cross_validate:
        return cross_validate(config, read(config, root, "train"), fit_net, run_dir, out)
    streamed = config.generated and has_split(config, root, "val")  # nothing of train is looked at
    parts = datasets(config, root, ("val",) if streamed else ("train", "val"))
    net, history = fit_net(parts.get("train"), parts["val"], run_dir=run_dir)
    logs = partial(Classifier.log_probabilities, items=parts["val"].items)
    return save(config, [net], {"val": history}, out, lambda model: fit_temperature(logs(model), parts["val"].labels))


def cross_validate(config: Config, found: data.Labelled, fit_net: Callable, run_dir: Path, out: Path) -> Trained:
    """A network for each fold of the training plots, and one for all of them, alike in everything else."""
    fold, nets, history = data.folds(found.labels, config.folds, config.seed), [], {}
    for k in range(config.folds):
        rest, held_out = (found.subset(chosen.nonzero()[:, 0]) for chosen in (fold != k, fold == k))
        net, history[f"fold {k}"] = fit_net(rest, held_out, run_dir=run_dir / f"fold_{k}")
        nets.append(net)
    logs = partial(evaluation.out_of_fold, found=found, fold=fold)
    of_folds = save(config, nets, history, out.with_stem(f"{out.stem}_folds"),
                    lambda model: fit_temperature(logs(model), found.labels))  # fmt: skip
    net, whole = fit_net(found, None, run_dir=run_dir / "all")
    return save(config, [net], history | {"all": whole}, out, lambda _: float(of_folds.model.temperature))


def fit(found: data.Labelled | None, held_out: data.Labelled | None, *, config: Config, start: Callable[[], nn.Module],
        run_dir: Path) -> tuple[nn.Module, list[dict]]:  # fmt: skip
    """One network, and its history with accuracy and ``nll`` on the plots held out, if any.

    It learns from the plots ``found``, or with ``config.generated`` from series drawn for each epoch.
    """
    net = start()
    if config.generated:
        plots, draw = config.generated * len(config.classes or CLASSES), partial(drawn, config)
    else:
        plots, draw = len(found), lambda epoch: found
    flips = config.flips if config.tta else ()
    history = training.fit(
        net,
        Batches(draw, plots, config),
        partial(loss, config=config),
        (lambda net: evaluation.validate(net, held_out, flips, config)) if held_out else lambda net: {},
        config,
        run_dir=run_dir,
        monitor=None if config.cross_validate else "accuracy",
    )
    return net, history


def starting_net(config: Config, weights: Path | None) -> Callable[[], nn.Module]:
    """Makes the network that a run starts from: of a checkpoint, or random; its last layer anew for other classes."""
    if not weights:
        return lambda: build_model(config).members[0]
    other = load(weights, config)
    state = other.model.members[0].state_dict()

    def start() -> nn.Module:
        net = build_model(config).members[0]
        last = f"head.{len(net.head) - 1}."
        kept = state if other.classes == (config.classes or CLASSES) else state | {
            name: own for name, own in net.state_dict().items() if name.startswith(last)}  # fmt: skip
        checkpoints.load_weights(net, kept, weights)
        return net

    return start


def save(config: Config, nets: list[nn.Module], history: dict, out: Path, temperature: Callable) -> Trained:
    """Round the weights to fit a file, set the temperature of what is left, write the checkpoint."""
    model = build_model(config, len(nets))
    for member, net in zip(model.members, nets, strict=True):
        member.load_state_dict(net.state_dict())
    half = checkpoints.round_to_fit(model)
    model.to(settings.DEVICE).eval().temperature.fill_(temperature(model))
    classes = config.classes or CLASSES
    checkpoints.save(out, model.state_dict(), half=half, config=checkpoints.plain(asdict(config)),
                     extras={"history": history, "classes": list(classes), "members": len(nets)})  # fmt: skip
    return Trained(config, model, classes, history, out)


def load_or_train(config: Config, root: Path | None = None, *, run_training: bool = settings.RUN_TRAINING) -> Trained:
    """The trained model of a config: loaded, or trained if it is missing and ``run_training`` is on."""
    weights = PRETRAINED if config == Config.real(config.dataset) else None
    return checkpoints.load_or_train(sys.modules[__name__], config, root, run_training, weights)


def load(path: Path | str, fallback: Config, overrides: Sequence[str] = ()) -> Trained:
    """A trained model with its own config, which overrides must agree with."""
    content = checkpoints.load_finished(path)
    config = Config.from_plain(content["config"])
    checkpoints.require_same_config(config.override(overrides), content, path)
    extras = content["extras"]
    model = build_model(config, extras["members"])
    checkpoints.load_weights(model, content["weights"], path)
    return Trained(config, model.to(settings.DEVICE).eval(), tuple(extras["classes"]), extras["history"], Path(path))


# -------------------------------------------------------------------------------------- evaluation
def judged_config(config: Config, dataset: str) -> Config:
    """The model's config for a data set: only of its own have the folds' networks left out any plot."""
    return replace(config, dataset=dataset, cross_validate=config.cross_validate and dataset == config.dataset)


def is_carved(config: Config, root: Path, split: str) -> bool:
    """Whether the split is held-out plots of train: val where there is none of its own."""
    has_train = config.cross_validate or has_split(config, root, "train")
    return split == "val" and has_train and not has_split(config, root, "val")


def judge(trained: Trained, root: Path, dataset: str, split: str) -> tuple[data.Labelled, torch.Tensor]:
    """The plots of a split and their probabilities (N,classes), for val by networks that have not learnt from them.

    Where the folder holds class folders directly, every plot belongs to the split named. Split val of a data set
    that was cross-validated is all of train.
    """
    config = judged_config(trained.config, dataset)
    carved = is_carved(config, root, split)
    found = datasets(config, root, ("train",))["val"] if carved and not config.cross_validate else read(
        config, root, "train" if carved else split)  # fmt: skip
    if not (carved and config.cross_validate):
        return found, trained.model.probabilities(found.items)
    if len(trained.model.members) != config.folds:
        raise settings.InputError(f"{trained.source} has learnt from all training plots: evaluate --split test, or "
                                  "--split val with the networks of the folds, ..._folds.pth")  # fmt: skip
    fold = data.folds(found.labels, config.folds, config.seed)
    return found, evaluation.held_out_probabilities(trained.model, found, fold)


def evaluate(config: Config, model: Classifier, root: Path | None = None, *, dataset: str | None = None,
             split: str = "test") -> dict:  # fmt: skip
    """Metrics of a model on a split of its own data set, or of another folder of class folders."""
    return measure(Trained(config, model, config.classes or CLASSES, {}, weights_path(config)), root, dataset, split)[0]


def measure(trained: Trained, root: Path | None, dataset: str | None, split: str) -> tuple[dict, dict, str]:
    """(metrics, data description, protocol) of an evaluation's record."""
    name = dataset or trained.config.dataset
    root = root or default_root(name)
    found, probabilities = judge(trained, root, name, split)
    part = "train" if is_carved(judged_config(trained.config, name), root, split) else split
    metrics = evaluation.measure(probabilities, found.labels, trained.classes)
    if known := found.known or data.metadata(root, found.names, part):
        metrics |= evaluation.measure_known(trained.model.members[0], probabilities, found, known)
    metrics["temperature"] = float(trained.model.temperature)
    described = {"dataset": name, "split": split}
    if name != GENERATED:
        described |= records.fingerprint(data.files(root, part, trained.config.classes), root)
    return metrics, described, evaluation.PROTOCOL


def predict(trained: Trained, files: Sequence[Path], out: Path) -> list[dict]:
    """The probabilities of every class for plots or CSV files; each one's activation map is drawn below ``out``."""
    if len({file.stem for file in files}) < len(files):
        raise settings.InputError("two of the files have the same name, and so would their pictures: rename one")
    view = view_of(trained.config)
    items = torch.stack([torch.tensor(data.read_item(file, view)) for file in files])
    found = trained.model.probabilities(items)
    figures.write_predictions(trained, files, items, found, out)
    return [{"filename": str(file), "class": trained.classes[int(row.argmax())],
             "probabilities": dict(zip(trained.classes, row.tolist(), strict=True))}
            for file, row in zip(files, found, strict=True)]  # fmt: skip


def draw(trained: Trained, root: Path | None, dataset: str | None) -> list[Path]:
    """The PNGs under assets/figures/series for a trained model on the split val."""
    plots.style()
    name = dataset or trained.config.dataset
    found, probabilities = judge(trained, root or default_root(name), name, "val")
    metrics = evaluation.measure(probabilities, found.labels, trained.classes)
    return figures.draw_all(trained, name, found, metrics, probabilities)
