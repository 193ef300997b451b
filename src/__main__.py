"""The command line: ``python -m src SYSTEM ACTION [options] [key=value ...]``, and the whole project's own commands."""

import argparse
import importlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from src import checkpoints, records, settings

SYSTEMS = ("road", "defects", "sets", "series")
ACTIONS = ("data", "train", "evaluate", "predict", "figures", "report")
EXAMPLES = """examples:
  python -m src road data                            write the mini data set (offline, about a minute)
  python -m src road train                           train the mini model on it
  python -m src road evaluate --json out.json        measure the committed mini model on the test split
  python -m src road evaluate --dataset camvid --root DIR --split test \\
      --weights assets/weights/road/camvid.pth       measure the CamVid model
  python -m src road evaluate --dataset road_anomaly --root DIR --weights assets/weights/road/camvid.pth
  python -m src road predict street.jpg --weights assets/weights/road/camvid.pth --out build/street
  python -m src road train --profile real --root DIR --weights mobilenet_v2_imagenet.pth
  python -m src road train --profile real --dataset camvid_cyclists --root DIR      CamVid, no cyclist ever seen
  python -m src defects train                        teacher and students of the mini categories
  python -m src defects evaluate --dataset magnetic_tile --root DIR --weights assets/weights/defects/magnetic_tile.pth
  python -m src defects train --profile real --dataset folder --root DIR      on images/good of your own parts
  python -m src defects report --out build/report    an HTML page to look through and to set the threshold in
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
    options.add_argument("items", nargs="*", metavar="key=value | FILE", help="settings; for predict also files")
    options.add_argument("--profile", choices=settings.PROFILES, default=settings.PROFILE)
    options.add_argument("--dataset", help="default: the profile's own")
    options.add_argument("--root", type=Path, metavar="DIR", help="where the data set lies (default: under DATA_DIR)")
    options.add_argument("--split", default="test", help="split to evaluate (default: test)")
    options.add_argument("--weights", type=Path, metavar="FILE",
                         help="checkpoint to use; for train: local pretrained weights to start from")  # fmt: skip
    options.add_argument("--json", type=Path, metavar="OUT", help="write the record of an evaluation here")
    options.add_argument("--out", type=Path, metavar="DIR", default=Path("build/predictions"),
                         help="where predict and report write (default: build/predictions)")  # fmt: skip
    return options


def base_config(system, arguments: argparse.Namespace):
    """The profile's config, for the data set named on the command line where it can be trained on."""
    if arguments.profile != "real":
        return getattr(system.Config, arguments.profile)()
    return system.Config.real(arguments.dataset) if arguments.dataset in system.REAL else system.Config.real()


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 if it went well, 1 for input that cannot be used, 2 for a wrong command line."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["ablate"]:
        return reporting(lambda: importlib.import_module("src.ablations").main(argv[1:]))
    if argv in (["experiments"], ["submission"]):
        return reporting(importlib.import_module(f"src.{argv[0]}").main)
    arguments = parser().parse_intermixed_args(argv)
    system = importlib.import_module(f"src.{arguments.system}")
    overrides = [item for item in arguments.items if "=" in item]
    files = [Path(item) for item in arguments.items if "=" not in item]
    if files and arguments.action != "predict":
        print(f"error: {files[0]}: only predict takes files; settings are given as key=value", file=sys.stderr)
        return 2
    return reporting(lambda: run(system, arguments, overrides, files, argv))


def reporting(command: Callable[[], None]) -> int:
    """Run a command; 1 and its message for input that cannot be used, else 0."""
    try:
        command()
    except settings.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(system, arguments: argparse.Namespace, overrides: list[str], files: list[Path], argv: list[str]) -> None:
    """Do what the arguments ask for; raises ``settings.InputError`` for input that cannot be used."""
    config = base_config(system, arguments)
    if arguments.action == "report" and not hasattr(system, "write_report"):
        raise settings.InputError(f"{arguments.system} has no report; use evaluate, predict or figures")
    if arguments.action in ("data", "train"):
        config = config.override([f"dataset={arguments.dataset or config.dataset}", *overrides])
    if arguments.action == "data":
        system.make_data(config, arguments.root)
        return
    if arguments.action == "train":
        trained = system.train(config, arguments.root, weights=arguments.weights)
        print(f"wrote {trained.source}")
        return
    if arguments.action == "predict" and not files:
        raise settings.InputError("predict needs image files: python -m src SYSTEM predict FILE ...")
    trained = system.load(arguments.weights or existing_weights(system, config), config, overrides)
    if arguments.action == "evaluate":
        record = evaluate(system, trained, arguments, argv)
        if arguments.json:
            print(f"wrote {records.write(record, arguments.json)}")
    elif arguments.action == "predict":
        print(json.dumps(system.predict(trained, files, arguments.out), indent=1))
    else:
        for path in write_files(system, trained, arguments):
            print(f"wrote {path}")


def write_files(system, trained, arguments: argparse.Namespace) -> list[Path]:
    """Figures, or the report of a system that has one."""
    if arguments.action == "figures":
        return system.draw(trained, arguments.root, arguments.dataset)
    return system.write_report(trained, arguments.root, arguments.dataset, arguments.split, arguments.out)


def existing_weights(system, config) -> Path:
    """The committed weights of a config; an error that names the training command where there are none."""
    path = system.weights_path(config)
    if not path.exists():
        command = checkpoints.train_command(system, config)
        raise settings.InputError(f"{path} is missing; make it with `{command}`, or name a file with --weights FILE")
    return path


def evaluate(system, trained, arguments: argparse.Namespace, argv: list[str]) -> dict:
    """Evaluate, print the headline, and return the record."""
    start = time.monotonic()
    metrics, data, protocol = system.measure(trained, arguments.root, arguments.dataset, arguments.split)
    command = shlex.join(["python", "-m", "src", *_portable(argv)])
    config = vars(trained.config)
    record = records.provenance(command, config, data, protocol, time.monotonic() - start) | metrics
    headline = {key: value for key, value in metrics.items() if isinstance(value, float)}
    print("  ".join(f"{key} {value:.4f}" for key, value in headline.items()))
    return record


def _portable(arguments: list[str]) -> list[str]:
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
