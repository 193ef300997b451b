"""The command line: ``python -m src SYSTEM ACTION [options] [key=value ...]``, and the whole project's own commands.

What can be checked without torch, which takes seconds to import, is checked before it is loaded.
"""

import argparse
import importlib
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    from src import settings
    from src.config import SystemConfig
except ValueError as unusable:  # an environment variable
    sys.exit(f"error: {unusable}")

SYSTEMS = ("road", "defects", "sets", "series")
ACTIONS = ("data", "train", "evaluate", "predict", "figures", "report")
EXAMPLES = """examples:
  python -m src road data                            write the mini data set (offline, about a minute)
  python -m src road train                           train the mini model on it
  python -m src road evaluate --json out.json        measure the committed mini model on the test split
  python -m src road evaluate --dataset camvid --root DIR --split test \\
      --weights assets/weights/road/camvid.pth       measure the CamVid model
  python -m src road evaluate --dataset road_anomaly --root DIR --weights assets/weights/road/cityscapes.pth
  python -m src road evaluate --dataset smiyc --root DIR --weights assets/weights/road/cityscapes.pth
  python -m src road predict street.jpg --weights assets/weights/road/cityscapes.pth --out build/street
  python -m src defects predict photographs --profile real --out build/parts      every image of a folder
  python -m src road train --profile real --root DIR --weights mobilenet_v2_imagenet.pth
  python -m src road train --profile real --dataset camvid_cyclists --root DIR      CamVid, no cyclist ever seen
  python -m src road train --profile real --dataset cityscapes --root DIR --weights assets/weights/road/cityscapes.pth
  python -m src defects train                        teacher and students of the mini categories
  python -m src defects evaluate --dataset magnetic_tile --root DIR --weights assets/weights/defects/magnetic_tile.pth
  python -m src defects train --profile real --dataset folder --root DIR      on images/good of your own parts
  python -m src defects report --out build/report    an HTML page to look through and to set the threshold in
  python -m src defects predict part.png --profile real --threshold 12 --out build/parts
  python -m src sets train --profile real --root DIR --weights mobilenet_v2_imagenet.pth
  python -m src sets evaluate --dataset folder --root DIR --split test --weights assets/weights/sets/cifar100.pth
  python -m src sets predict 0.png 1.png 2.png 3.png 4.png 5.png 6.png 7.png 8.png 9.png
  python -m src series evaluate --dataset plots --root DIR --split test --weights assets/weights/series/plots.pth
  python -m src series predict plot.png numbers.csv --weights assets/weights/series/plots.pth --out build/series
  python -m src ablate sets                          what each choice of a system is worth (ablate --help)
  python -m src experiments                          EXPERIMENTS.md from the records
  python -m src submission                           build/submission.zip, or what it still lacks
  torchrun --nproc-per-node 4 -m src road train --profile full --root DIR
  python -m src road train epochs=5 lr=1e-3          any setting of the system's Config as key=value
"""


def parser() -> argparse.ArgumentParser:
    """The options of every system and action."""
    options = argparse.ArgumentParser(
        prog="python -m src",
        description="Find what does not belong: data, training, evaluation, prediction and figures of a system.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("system", choices=SYSTEMS)
    options.add_argument("action", choices=ACTIONS)
    options.add_argument(
        "items",
        nargs="*",
        metavar="key=value | FILE | DIR",
        help="settings; for predict also files, and folders of them",
    )
    options.add_argument("--profile", choices=settings.PROFILES, default=settings.PROFILE)
    options.add_argument("--dataset", help="default: the profile's own")
    options.add_argument("--root", type=Path, metavar="DIR", help="where the data set lies (default: under DATA_DIR)")
    options.add_argument("--split", default="test", help="split to evaluate (default: test)")
    options.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint to use; for train: weights to start from"
    )
    options.add_argument("--column", metavar="NAME", help="of CSV files: the series to predict or evaluate")
    options.add_argument(
        "--threshold", type=float, metavar="VALUE", help="defects: predict and report with this one, not the stored"
    )
    options.add_argument("--json", type=Path, metavar="OUT", help="write the record of an evaluation here")
    options.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("build/predictions"),
        help="where predict and report write (default: build/predictions)",
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0 if it went well, 1 for input that cannot be used, 2 for a wrong command line, 130 or 143 if interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["ablate"]:
        return report_errors(lambda: importlib.import_module("src.ablations").main(argv[1:]))
    if argv in (["experiments"], ["submission"]):
        return report_errors(importlib.import_module(f"src.{argv[0]}").main)
    arguments = parser().parse_intermixed_args(argv)
    arguments.files = [Path(item) for item in arguments.items if not is_setting(item)]
    arguments.settings = [item for item in arguments.items if is_setting(item)]
    if arguments.files and arguments.action != "predict":
        message = "only predict takes files; settings are given as key=value"
        print(f"error: {arguments.files[0]}: {message}", file=sys.stderr)
        return 2
    return report_errors(lambda: run(arguments, argv))


def is_setting(item: str) -> bool:
    """Whether a word of the command line is ``key=value``; a file may have = in its path, but exists."""
    return item.partition("=")[0].isidentifier() and "=" in item and not Path(item).exists()


def report_errors(command: Callable[[], None]) -> int:
    """Run a command; what a person can cause ends as one line: 1 for input and files, 130 and 143 if interrupted."""
    signal.signal(signal.SIGTERM, _raise_exit)
    try:
        command()
    except settings.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}; check the path, its rights and the free space", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: a training goes on from its last finished epoch with the same command", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code != 143:
            raise
        print("terminated: a training goes on from its last finished epoch with the same command", file=sys.stderr)
        return 143
    return 0


def _raise_exit(*_: Any) -> None:
    raise SystemExit(143)


# ------------------------------------------------------------------------------- before torch is loaded
def run(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Do what the arguments ask for; raises ``settings.InputError`` for input that cannot be used."""
    package = importlib.import_module(f"src.{arguments.system}")  # its config alone: the rest is imported on first use
    config = requested_config(package, arguments)
    check_paths(arguments)
    if arguments.action == "report" and arguments.system != "defects":
        raise settings.InputError(f"{arguments.system} has no report; use evaluate, predict or figures")
    if arguments.threshold is not None:
        if arguments.system != "defects" or arguments.action not in ("predict", "report"):
            raise settings.InputError("--threshold is for predict and report of defects: leave it out")
        if not math.isfinite(arguments.threshold):
            raise settings.InputError(f"--threshold {arguments.threshold}: give a number")
    if arguments.action == "predict":
        arguments.files = list(input_files(package, arguments.files))
        if not arguments.files:
            raise settings.InputError("predict needs files: python -m src SYSTEM predict FILE ...")
    if arguments.column and (arguments.system != "series" or arguments.action not in ("predict", "evaluate")):
        raise settings.InputError("--column chooses a series of CSV files: only series predict and evaluate read them")
    ACTIONS_OF[arguments.action](package, config, arguments, argv)


def requested_config(package: ModuleType, arguments: argparse.Namespace) -> SystemConfig:
    """The profile's config, for the data set named where it can be trained on; for data and train with the settings.

    Settings of the other actions belong to the weights' own config; here they are checked alone.
    """
    if arguments.profile != "real":
        config = getattr(package.Config, arguments.profile)()
    else:
        config = package.Config.real(arguments.dataset) if arguments.dataset in package.REAL else package.Config.real()
    if arguments.action in ("data", "train"):
        return config.override([f"dataset={arguments.dataset or config.dataset}", *arguments.settings])
    config.parse(arguments.settings)
    return config


def input_files(package: ModuleType, paths: Sequence[Path]) -> Iterator[Path]:
    """The files to predict: a folder stands for those in it that the system reads, in order; InputError for none."""
    from src.images import list_images

    for path in paths:
        inside = getattr(package, "list_inputs", list_images)(path) if path.is_dir() else [path]
        if not inside:
            raise settings.InputError(f"{path} holds no images (series: nor CSV files): name them or their folder")
        yield from inside


def check_paths(arguments: argparse.Namespace) -> None:
    """InputError for files and folders that are not there, and for outputs that cannot be written."""
    for file in [*arguments.files, *([arguments.weights] if arguments.weights else [])]:
        if not (file.is_file() or file.is_dir() and file in arguments.files):
            raise settings.InputError(f"{file} is not a file: check the path")
    if arguments.root and arguments.action != "data" and not arguments.root.exists():
        raise settings.InputError(f"{arguments.root} does not exist: name the data set's folder with --root DIR")
    if arguments.json and arguments.json.is_dir():
        raise settings.InputError(f"{arguments.json} is a folder: name a file with --json OUT")
    outputs = [arguments.json] if arguments.json else []
    outputs += [arguments.out] if arguments.action in ("predict", "report") else []
    for path in outputs:
        folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if path != folder and not folder.is_dir() or not os.access(folder, os.W_OK):
            raise settings.InputError(f"{path} cannot be written: {folder} is no folder with write permission")


# ----------------------------------------------------------------------------------------------- actions
def make_data(package, config, arguments, argv) -> None:
    """Write the mini data set, and the record of what a data set holds."""
    from src import system

    system.make_data(package, config, arguments.root)


def train(package, config, arguments, argv) -> None:
    """Train, or go on with an interrupted training."""
    trained = package.train(config, arguments.root, weights=arguments.weights)
    print(f"wrote {trained.source}")


def evaluate(package, config, arguments, argv) -> None:
    """Evaluate, print the headline, and write the record where ``--json`` says."""
    from src import records, system

    trained = load(package, config, arguments)
    start = time.monotonic()
    metrics, data = system.measure(
        package, trained, arguments.root, arguments.dataset, arguments.split, **_column(arguments)
    )
    command = shlex.join(["python", "-m", "src", *_portable(argv)])
    seconds = time.monotonic() - start
    record = records.provenance(command, trained.config.plain(), data, package.PROTOCOL, seconds) | metrics
    numbers = {key: value for key, value in metrics.items() if isinstance(value, float) and not math.isnan(value)}
    print("  ".join(f"{key} {value:.4f}" for key, value in numbers.items()))
    if arguments.json:
        print(f"wrote {records.write(record, arguments.json)}")


def predict(package, config, arguments, argv) -> None:
    """Print what the model says of each file."""
    from src import system

    rows = system.predict(
        package, load(package, config, arguments), arguments.files, arguments.out, **_column(arguments)
    )
    print(json.dumps(rows, indent=1))


def draw_figures(package, config, arguments, argv) -> None:
    """Draw the figures of a trained model."""
    from src import system

    trained = load(package, config, arguments)
    _print_written(system.write_figures(package, trained, arguments.root, arguments.dataset))


def write_report(package, config, arguments, argv) -> None:
    """Write the HTML report of an evaluation."""
    trained = load(package, config, arguments)
    _print_written(package.write_report(trained, arguments.root, arguments.dataset, arguments.split, arguments.out))


ACTIONS_OF = {
    "data": make_data,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "figures": draw_figures,
    "report": write_report,
}


def load(package: ModuleType, config: SystemConfig, arguments: argparse.Namespace):
    """The trained model in ``--weights``, or the committed one of the config."""
    from src import system

    path = arguments.weights or system.weights_path(package, config)
    if not path.exists():
        command = system.train_command(package, config)
        raise settings.InputError(f"{path} is missing; make it with `{command}`, or name a file with --weights FILE")
    trained = system.load(package, path, config, arguments.settings)
    if arguments.threshold is not None:
        given = {"value": arguments.threshold, "rule": "given with --threshold"}
        trained.extras["thresholds"] = dict.fromkeys(trained.extras["thresholds"], given)
    return trained


def _column(arguments: argparse.Namespace) -> dict[str, str]:
    return {"column": arguments.column} if arguments.column else {}


def _print_written(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"wrote {path}")


def _portable(arguments: Sequence[str]) -> list[str]:
    """Arguments without this machine's folders: a path outside the project becomes DIR/<its name>."""
    shown = []
    for argument in arguments:
        option, equals, value = argument.rpartition("=")
        path = Path(value)
        if path.is_absolute():
            inside = path.is_relative_to(settings.ROOT)
            value = str(path.relative_to(settings.ROOT)) if inside else f"DIR/{path.name}"
        shown.append(option + equals + value)
    return shown


if __name__ == "__main__":
    sys.exit(main())
