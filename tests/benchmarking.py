"""What benchmarks share: options in, one measurement, numbers shown, a record out."""

import argparse
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from src import records


def run(
    module: str,
    doc: str,
    options: Mapping[str, dict[str, Any]],
    measure: Callable[[argparse.Namespace], tuple[dict, dict, dict]],
    show: Callable[[dict], None],
    protocol: str,
) -> None:
    """Measure with the options of the command line, show what was found, and write its record where ``--json`` says.

    ``options``: name -> keywords of ``add_argument``. ``measure``: options -> config (with its seed) and data as
    ``records.provenance`` takes them, and metrics. The record's command says DIR for folders, which are this machine's.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc.splitlines()[0])
    for name, keywords in options.items():
        parser.add_argument(f"--{name}", **keywords)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the record here")
    arguments = parser.parse_args()
    start = time.monotonic()
    config, data, found = measure(arguments)
    show(found)
    if arguments.json:
        given = {name: getattr(arguments, name.replace("-", "_")) for name in options}
        given = {name: "DIR" if isinstance(value, Path) and value.is_dir() else value for name, value in given.items()}
        shown = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
        command = shlex.join(["python", "-m", module, *shown])
        record = records.provenance(command, config, data, protocol, time.monotonic() - start) | found
        print(f"wrote {records.write(record, arguments.json)}")
