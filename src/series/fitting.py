"""Training: one network, or a network for each fold and one for all plots."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src import checkpoints, records, series, settings, system, training
from src.labelled import Labelled
from src.series import batches, data, evaluation, generated
from src.series.config import GENERATED, Config
from src.series.model import Classifier, build_model, build_net, fit_temperature
from src.system import Trained

State = dict[str, torch.Tensor]  # of a network


def train(
    config: Config,
    root: Path | None = None,
    *,
    weights: Path | None = None,
    run_dir: Path | None = None,
    out: Path | None = None,
) -> Trained:
    """Train (or resume) the run in ``run_dir``, and write the checkpoint ``out``.

    ``weights`` is a checkpoint of this system that the networks start from. The epoch is chosen by accuracy on the
    split val. With ``cross_validate`` nothing is chosen: the last epoch is kept, of a network for each fold, which go
    to ``<out>_folds.pth``, and of one for all plots, which goes to ``out`` with the temperature that suits the folds.
    Stored as fp16 where that brings a file under ``checkpoints.LIMIT``.
    """
    root = root or data.default_root(config.dataset)
    out = out or system.weights_path(series, config)
    run_dir = run_dir or settings.RUNS_DIR / "series" / out.stem
    start = starting_state(config, weights)
    if config.cross_validate:
        return cross_validate(config, root, start, run_dir, out)

    trains_on_disk = not config.generated or not data.has_split(config, root, "val")
    splits = data.datasets(config, root, ("train", "val") if trains_on_disk else ("val",))
    held_out = splits["val"]
    fingerprint = fingerprint_of(config, root)
    net, history = fit(config, splits.get("train"), held_out, start, run_dir, fingerprint)

    def temperature(model: Classifier) -> float:
        return fit_temperature(model.log_probabilities(held_out.items), held_out.labels)

    return save(config, [net], {"val": history}, out, temperature)


def cross_validate(config: Config, root: Path, start: State, run_dir: Path, out: Path) -> Trained:
    """A network for each fold of the training plots, and one for all of them, alike in everything else."""
    plots = data.read_split(config, root, "train")
    fold = data.folds(plots.labels, config.folds, config.seed)
    fingerprint = fingerprint_of(config, root)
    nets, history = [], {}
    for k in range(config.folds):
        rest, held_out = (plots.subset(torch.where(chosen)[0]) for chosen in (fold != k, fold == k))
        net, history[f"fold {k}"] = fit(config, rest, held_out, start, run_dir / f"fold_{k}", fingerprint)
        nets.append(net)

    def temperature(model: Classifier) -> float:
        return fit_temperature(evaluation.out_of_fold(model, plots, fold), plots.labels)

    of_folds = save(config, nets, history, out.with_stem(f"{out.stem}_folds"), temperature)
    net, of_all = fit(config, plots, None, start, run_dir / "all", fingerprint)
    return save(config, [net], history | {"all": of_all}, out, lambda model: float(of_folds.model.temperature))


def starting_state(config: Config, weights: Path | None) -> State:
    """What a network starts from: the first network of a checkpoint, or random values.

    The last layer is random too where the checkpoint's classes are others.
    """
    net = build_model(config).members[0]
    if not weights:
        return net.state_dict()
    other = system.load(series, weights, config)
    state = other.model.members[0].state_dict()
    if data.class_names(other.config) != data.class_names(config):
        last = f"head.{len(net.head) - 1}."
        state |= {name: values for name, values in net.state_dict().items() if name.startswith(last)}
    checkpoints.load_weights(net, state, weights)
    return net.state_dict()


def fingerprint_of(config: Config, root: Path) -> str | None:
    """Of the plots that a run is trained and validated on; None where it is trained on generated series."""
    if config.generated or config.dataset == GENERATED:
        return None
    splits = ["train", *(["val"] if data.has_split(config, root, "val") else [])]
    files = [file for split in splits for file in data.files(root, split, config.classes)]
    return records.fingerprint(files, root)["sha256"]


def fit(
    config: Config,
    plots: Labelled | None,
    held_out: Labelled | None,
    start: State,
    run_dir: Path,
    fingerprint: str | None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """One network, and its history with accuracy and ``nll`` on the plots held out, if any.

    It is trained on ``plots``, or with ``config.generated`` on series drawn for each epoch.
    """
    net = build_net(config)
    net.load_state_dict(start)
    flips = config.flips if config.tta else ()
    count = config.generated * len(data.class_names(config)) or len(plots)
    with plots_by_epoch(config, plots) as plots_of:
        history = training.fit(
            net,
            batches.Batches(plots_of, count, config),
            partial(batches.loss, config=config),
            lambda net: evaluation.validate(net, held_out, flips, config) if held_out else {},
            config,
            run_dir=run_dir,
            monitor=None if config.cross_validate else "accuracy",
            fingerprint=fingerprint,
        )
    return net, history


def plots_by_epoch(config: Config, plots: Labelled | None):
    """Context that gives a function: epoch (from 0) -> the plots to train on."""
    if not config.generated:
        return nullcontext(lambda epoch: plots)
    _, of_series = data.item_makers(config)
    classes = data.class_names(config)
    return generated.draw_epochs(of_series, config.generated, classes, config.seed, config.epochs)


def save(
    config: Config,
    nets: list[nn.Module],
    history: dict[str, list[dict]],
    out: Path,
    temperature: Callable[[Classifier], float],
) -> Trained:
    """Round the weights to fit a file, set the temperature of what is left, write the checkpoint."""
    model = build_model(config, {"members": len(nets)})
    for member, net in zip(model.members, nets, strict=True):
        member.load_state_dict(net.state_dict())
    half = checkpoints.round_to_fit(model)
    model.eval().temperature.fill_(temperature(model))
    extras = {"history": history, "classes": list(data.class_names(config)), "members": len(nets)}
    return system.save(config, model, extras, out, half=half)
