"""The command line: ``python -m unetlib COMMAND``; ``--help`` after it lists the options.

python -m unetlib train --recipe fast --epochs 10
torchrun --nproc-per-node 2 -m unetlib train --batch-size auto
python -m unetlib predict photo.jpg folder/ --output masks --overlay
"""

import json
import sys
import warnings
from itertools import starmap

import tyro
from tqdm import tqdm

from unetlib.cli import commands as offered

DESCRIPTION = "Train, export, compare and use a small U-Net on the Carvana Image Masking Challenge."


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status: 0; 1 when it failed, and stderr says why, or when ``check``
    has found problems or ``predict`` has left images out; 130 when it was stopped.
    """
    warnings.showwarning = lambda message, *_: tqdm.write(f"warning: {message}", sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    names = ["train", "export", "predict", "score", "compare", "page"]
    names += ["download", "subset", "check"]
    commands = {name: getattr(offered, name) for name in names}
    try:
        result = tyro.extras.subcommand_cli_from_dict(
            commands, prog="python -m unetlib", description=DESCRIPTION, args=arguments
        )
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error).__name__ != "TrainingError":
            raise  # by name: importing it would import PyTorch
        print(f"error: {error}", file=sys.stderr)
        return 1
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        distributed.destroy_process_group()  # not after an error: it waits for the others
    if result is None:
        return 0
    shown = [json.dumps(result)] if "--json" in arguments else starmap(_text, result.items())
    print(*shown, sep="\n")
    left = result.get("problems") or result.get("unreadable")
    return 1 if left else 0 if result.get("finished", True) else 130


def _text(name: str, value) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        import pandas as pd

        return pd.DataFrame(value).to_string(index=False, float_format="{:.4g}".format)
    value = ", ".join(value) or "none" if isinstance(value, list) else value
    text = f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
    return text.encode(errors="backslashreplace").decode()  # a file's name need not be UTF-8


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold letters that a terminal lacks
        stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
