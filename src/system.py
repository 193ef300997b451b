"""What all four systems share: where their files are, loading, measuring, predicting and drawing.

A system is a package under ``src``; the functions here take it as their first argument (``system.load(road, path,
config)``). It states what differs:

``Config``
    Frozen dataclass with ``mini()``, ``real(dataset)`` and ``full()``; see ``src.config``.
``REAL``, ``FOLDERS``, ``ADJUSTABLE``
    The data sets that profile real trains on; dataset -> folder below DATA_DIR, where that is not the set's name; the
    settings that a trained model may be used with other values of.
``datasets(config, root)``
    The splits by name.
``build_model(config, extras)``
    The model, initialised from the config's seed. ``extras`` of the checkpoint to load may shape it.
``train(config, root, *, weights, run_dir, out)``
    Trains or resumes, writes a checkpoint with all that scoring needs, returns ``Trained``.
``evaluate(trained, root, *, dataset, split)``
    Metrics of a split, of the model's own data set or of another one; ``PROTOCOL`` says what they mean.
``evaluated(trained, root, dataset, split)``
    The files behind that split, and what a record says of the data beside their fingerprint.
``predict(trained, files, out)``
    A row for each file, with what the model says of it; pictures below ``out``.
``list_inputs(folder)``
    The files of a folder that ``predict`` reads, in order, where these are not images alone.
``draw(trained, root, dataset)``
    Name -> figure, of a trained model on one data set.
``write_mini(root)``, ``distribution(config, root)``
    Write the synthetic data set in the real one's layout; tell what each split of a data set holds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from src import checkpoints, plots, records, settings
from src.config import SystemConfig


@dataclass
class Trained:
    """A model with what was learned beside its weights.

    ``config`` is the one asked for: it differs from ``trained_config`` in the system's ``ADJUSTABLE`` settings alone.
    ``extras`` is what the checkpoint holds beside the weights, {} for a bare state dict; ``source`` is its file.
    """

    config: SystemConfig
    model: nn.Module
    extras: dict[str, Any]
    source: Path
    trained_config: SystemConfig

    @property
    def history(self) -> Any:
        """What ``training.fit`` returned, an entry an epoch (of several trainings: by name); [] where there is none."""
        return self.extras.get("history", [])

    @property
    def calibration(self) -> Any:
        """Statistics and thresholds of the scores, from validation data; None where there are none."""
        return self.extras.get("calibration")


# ----------------------------------------------------------------------------------------------- files
def name_of(system: ModuleType) -> str:
    """``road`` for the package ``src.road``."""
    return system.__name__.rpartition(".")[2]


def default_root(system: ModuleType, dataset: str) -> Path:
    """Where a data set lies unless ``--root`` says otherwise."""
    return settings.DATA_DIR / system.FOLDERS.get(dataset, dataset)


def weights_path(system: ModuleType, config: SystemConfig) -> Path:
    """Where the weights of a config are kept."""
    return settings.WEIGHTS_DIR / name_of(system) / f"{config.weights_name}.pth"


def make_data(system: ModuleType, config: SystemConfig, root: Path | None = None) -> None:
    """Write the mini data set (if asked for), and the record of what each split of the data set holds."""
    root = root or default_root(system, config.dataset)
    if config.dataset == "mini":
        system.write_mini(root)
    record = records.record_path(name_of(system), f"{config.dataset}_distribution")
    records.write({"distribution": system.distribution(config, root)}, record)


# --------------------------------------------------------------------------------------- trained models
def save(config: SystemConfig, model: nn.Module, extras: dict[str, Any], path: Path, *, half: bool) -> Trained:
    """Write a finished training's checkpoint; ``half`` as ``checkpoints.round_to_fit`` said."""
    checkpoints.save(path, model.state_dict(), half=half, config=config.plain(), extras=extras)
    return Trained(config, model, extras, path, config)


def load(system: ModuleType, path: Path | str, fallback: SystemConfig, overrides: Sequence[str] = ()) -> Trained:
    """A trained model with its own config, which overrides must agree with but for the system's ``ADJUSTABLE``.

    A bare state dict, where the system takes one (``from_state_dict``), gets ``fallback`` with the overrides applied.
    """
    scores_without_extras = hasattr(system, "from_state_dict")
    if scores_without_extras and checkpoints.is_bare_state_dict(state := checkpoints.unwrapped(checkpoints.read(path))):
        config, model = system.from_state_dict(fallback.override(overrides), state, path)
        return Trained(config, model, {}, Path(path), config)
    content = checkpoints.load(path) if scores_without_extras else checkpoints.load_finished(path)
    extras = content.get("extras", {})  # the best.pth of a run has none yet
    config = _config_in(content, system, path)
    asked = config.override(overrides)
    fixed = replace(asked, **{name: getattr(config, name) for name in system.ADJUSTABLE})
    checkpoints.require_same_config(fixed, content, path)
    model = system.build_model(config, extras)
    checkpoints.load_weights(model, content["weights"], path)
    return Trained(asked, model.eval(), extras, Path(path), config)


def _config_in(content: dict, system: ModuleType, path: Path | str) -> SystemConfig:
    try:
        return system.Config.from_plain(content["config"])
    except settings.InputError as error:
        raise checkpoints.CheckpointError(
            f"{path} holds no weights of {name_of(system)} but of another system or version ({error}); name its own"
        ) from error


def load_or_train(
    system: ModuleType,
    config: SystemConfig,
    root: Path | None = None,
    *,
    run_training: bool = settings.RUN_TRAINING,
    weights: Path | None = None,
) -> Trained:
    """The model of a config: loaded or, with ``run_training``, trained (from ``weights``, if given) and kept.

    A training, or the rest of an interrupted one, goes on under ``runs``; committed weights are not overwritten.
    Without it, weights that are missing are an error that names the command which makes them; a file that cannot be
    loaded never becomes a training run.
    """
    committed = weights_path(system, config)
    if run_training:
        trained_here = settings.RUNS_DIR / name_of(system) / committed.name
        if not trained_here.exists():
            return system.train(config, root, weights=weights, out=trained_here)
        committed = trained_here
    elif not committed.exists():
        command = f"{train_command(system, config, weights)}    (or ./download.sh weights)"
        raise checkpoints.CheckpointError(f"{committed} is missing and training is off. Make it with:\n  {command}")
    checkpoints.require_same_config(config, checkpoints.load(committed), committed)
    return load(system, committed, config)


def train_command(system: ModuleType, config: SystemConfig, weights: Path | None = None) -> str:
    """What trains the model of a config that is one of its system's profiles, from ``weights`` of the project."""
    full, in_real = system.Config.full(), config.dataset in system.REAL
    is_full = config == full or (config.dataset == full.dataset and not in_real)
    profile = "full" if is_full else "real" if in_real else "mini"
    start = f" --weights {weights.relative_to(settings.ROOT)}" if weights else ""
    return f"python -m src {name_of(system)} train --profile {profile} --dataset {config.dataset}{start}"


# ------------------------------------------------------------------------------------------------- uses
def measure(
    system: ModuleType, trained: Trained, root: Path | None, dataset: str | None, split: str, **options: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, description of the data with its fingerprint) of an evaluation's record; ``options``: of evaluate."""
    dataset = dataset or trained.config.dataset
    root = root or default_root(system, dataset)
    metrics = system.evaluate(trained, root, dataset=dataset, split=split, **options)
    files, description = system.evaluated(trained, root, dataset, split)
    folder = root.parent if root.is_file() else root  # a table of files
    marks = records.fingerprint(files, folder) if files else {}
    return metrics, {"dataset": dataset, "split": split, **description, **marks}


def check_against_record(system: ModuleType, trained: Trained, metrics: dict[str, Any], run: str) -> dict[str, Any]:
    """``records.check_against_record`` of committed weights; the metrics as they are of weights that were trained here.

    A record was made by the committed weights, so it says nothing of others.
    """
    if not trained.source.is_relative_to(settings.WEIGHTS_DIR):
        return metrics
    return records.check_against_record(metrics, name_of(system), run)


def predict(
    system: ModuleType, trained: Trained, files: Sequence[Path], out: Path, **options: str
) -> list[dict[str, Any]]:
    """A row for each file; pictures are written below ``out`` under the files' own names, which must differ."""
    counts = Counter(file.stem for file in files)
    for file in files:
        if counts[file.stem] > 1:
            raise settings.InputError(
                f"{file}: two of the files have this name, and so would their pictures: rename one"
            )
    return system.predict(trained, files, out, **options)


def write_figures(system: ModuleType, trained: Trained, root: Path | None, dataset: str | None) -> list[Path]:
    """Write the system's figures for one data set under ``assets/figures/<system>``."""
    plots.style()
    dataset = dataset or trained.config.dataset
    root = root or default_root(system, dataset)
    written = []
    for name, figure in system.draw(trained, root, dataset).items():
        written.append(plots.save(figure, f"{name_of(system)}/{dataset}_{name}"))
    return written
