"""The verbs of `python -m scripts`: their arguments in the same words, their errors in a sentence, their last line.

A package describes its verbs in a module ``arguments`` that imports nothing heavy; the work lies in another module,
which is imported only when the verb runs. The words that several verbs share are added by the functions here, so that a
word means the same everywhere.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from scripts.command.errors import start_logging

__all__ = [
    "PARTS", "Outcome", "Parser", "Verb", "add_backend", "add_compute", "add_data", "add_earlier", "add_folder",
    "add_limit", "add_out", "add_overlay", "add_part", "add_port", "add_run", "add_seed", "add_shards", "add_size",
    "add_weights", "compute_values", "folder",
    "inference_overlays", "root_parser", "run_verb",
]  # fmt: skip

PROGRAM = "python -m scripts"
PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class Outcome:
    """What a verb did.

    Attributes:
        text: to print.
        written: files and folders, named in the last line.
        quiet: whether the text is all that is printed, for another program to read.
        failed: whether what was looked for is wrong: exit status 1. Errors are raised: exit status 2.
    """

    text: str = ""
    written: Sequence[str | Path] = ()
    failed: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        name: the word on the command line.
        purpose: one line for the list of verbs.
        module: dotted; its ``execute(arguments)`` does the work and returns an `Outcome`.
        add: adds the verb's arguments to its parser.
        details: what follows the arguments in the help: examples first.
        overrides: whether ``--ID VALUE`` pairs of config values may follow; they arrive as ``arguments.overrides``.
    """

    name: str
    purpose: str
    module: str
    add: Callable[[Parser], None]
    details: str = ""
    overrides: bool = False


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviated options and raises its errors.

    Raises:
        ValueError: by ``parse_args`` and the like, in one sentence.
    """

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _format, **settings})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Raise the sentence."""
        raise ValueError(f"{message}; the arguments are listed by: {self.prog} --help")


def _format(prog: str) -> argparse.HelpFormatter:
    """Examples as they are written, and room for the names of the options."""
    width = min(120, shutil.get_terminal_size((120, 0)).columns)
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=width)


def folder(text: str) -> Path:
    """A path on the command line; ``~`` is the home folder also where the shell leaves it, as after ``=``."""
    return Path(text).expanduser()


def add_data(parser: Parser, required: bool = True, extra: str = "", datalist: bool = True) -> None:
    """``--dataset_dir`` and, with `datalist`, ``--datalist_file``."""
    parser.add_argument(
        "--dataset_dir", type=folder, metavar="DIR", required=required, help=f"folder of the images{extra}"
    )
    if not datalist:
        return
    text = "images and their splits, as python -m scripts datalist writes them; its paths are relative to --dataset_dir"
    parser.add_argument("--datalist_file", type=folder, metavar="LIST.json", required=required, help=text)


def add_folder(parser: Parser, text: str, required: bool = False, earlier: str | None = None, **settings: Any) -> None:
    """``--folder``: images without a datalist; `earlier` is how the option was spelled, which is still taken."""
    parser.add_argument(
        "--folder", type=folder, metavar="DIR", required=required, help=f"folder of the images: {text}", **settings
    )
    if earlier:
        add_earlier(parser, earlier, "folder", type=folder)


def add_earlier(parser: Parser, option: str, dest: str, **settings: Any) -> None:
    """An earlier spelling of an option, which no help lists."""
    parser.add_argument(option, dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **settings)


def add_run(parser: Parser, text: str = "trained run", required: bool = True) -> None:
    """``--run_dir``."""
    parser.add_argument("--run_dir", type=folder, metavar="RUN", required=required, help=text)


def add_out(parser: Parser, text: str, default: str | None = None, required: bool = False) -> None:
    """``--out``."""
    ending = f" (default: {default})" if default else ""
    parser.add_argument("--out", type=folder, metavar="PATH", default=default, required=required, help=text + ending)


def add_overlay(parser: Parser, over: str = "each stage's") -> None:
    """``--overlay``, repeatable."""
    text = f"config file merged over {over}; repeatable. Configs are code: take them from people you trust"
    parser.add_argument("--overlay", type=folder, metavar="CONFIG.yaml", action="append", default=[], help=text)


def add_part(parser: Parser) -> None:
    """``--part``."""
    parser.add_argument("--part", default="test", help=f"part of the datalist: {', '.join(PARTS)} (default: test)")


def add_limit(parser: Parser, text: str, default: Any = None) -> None:
    """``--limit``."""
    parser.add_argument("--limit", type=int, metavar="N", default=default, help=f"at most so many {text}")


def add_seed(parser: Parser, of: str, default: int | None = 0) -> None:
    """``--seed``."""
    ending = "" if default is None else f" (default: {default})"
    parser.add_argument("--seed", type=int, metavar="N", default=default, help=f"of {of}{ending}")


def add_shards(parser: Parser, default: str = "as many as cores") -> None:
    """What `scripts.inference.engines` runs by: ``--processes``, ``--engine``, ``--shard``, ``--merge``, ..."""
    parser.add_argument(
        "--processes", type=int, metavar="N", help=f"so many processes, which is the number of shards ({default})"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "slurm", "ray"),
        help="where they run: on this machine, as jobs of Slurm, or as actors of a Ray cluster",
    )
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME=VALUE", help="of the jobs: timeout_min, slurm_partition, ..."
    )
    parser.add_argument(
        "--ray",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="address of the cluster (default: one on this machine), and of each actor num_cpus, num_gpus, ...",
    )
    parser.add_argument("--shard", metavar="I/N", help="the I-th of N shards alone, in this process; then --merge")
    parser.add_argument("--tries", type=int, metavar="N", help="of an input that fails, by shards (default: 3)")
    parser.add_argument("--merge", action="store_true", help="one result of all shards; every input once, or an error")


def add_compute(parser: Parser, precision: bool = False) -> None:
    """``--device`` and, of trainings, ``--precision``."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    if precision:
        parser.add_argument("--precision", help="float32, bfloat16, float16 or auto (default: that of the config)")


def add_size(
    parser: Parser, nargs: str | None = None, default: int | None = None, ending: str = " (default: 256)"
) -> None:
    """``--spatial_size``."""
    text = "side of the network's input in pixels" + (", one number or one an axis" if nargs else "") + ending
    parser.add_argument("--spatial_size", type=int, nargs=nargs, metavar="N", default=default, help=text)


def add_port(parser: Parser, default: int) -> None:
    """``--port``."""
    parser.add_argument(
        "--port", type=int, metavar="N", default=default, help=f"port to listen on (default: {default})"
    )


def add_weights(parser: Parser) -> None:
    """Whose weights answer: ``--run_dir``, ``--overlay``, ``--weights`` and ``--device``."""
    add_run(parser, "trained run that answers (default: models/model.pt)", required=False)
    add_overlay(parser, "inference.yaml")
    parser.add_argument("--weights", type=folder, metavar="FILE.pt", help="state dict in place of the config's")
    add_compute(parser)


def add_prevalence(parser: Parser) -> None:
    """``--prevalence``."""
    parser.add_argument(
        "--prevalence", metavar="SHARE",
        help="share of any tumor where it is used, as 0.1, or of the classes, as glioma=0.02,meningioma=0.03,... "
        "(default: that of the training)",
    )  # fmt: skip


def add_backend(parser: Parser) -> None:
    """``--backend``."""
    parser.add_argument(
        "--backend", choices=("torch", "onnxruntime"), default="torch",
        help="what runs the network (default: torch); onnxruntime (extra export) is faster for pictures on a CPU",
    )  # fmt: skip


def inference_overlays(arguments: argparse.Namespace) -> list[Path]:
    """The config files that `add_weights` asked for: the run's, then the others.

    Raises:
        FileNotFoundError: when the run has none.
    """
    if arguments.run_dir is None:
        return list(arguments.overlay)
    network_file = arguments.run_dir / "network.yaml"
    if not network_file.is_file():
        raise FileNotFoundError(f"{arguments.run_dir} has no network.yaml: not the folder of a run that was trained")
    return [network_file, *arguments.overlay]


def compute_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_compute` and `add_seed` asked for, as config values; what was not given is left to the config."""
    settings = {name: getattr(arguments, name, None) for name in ("seed", "device", "precision")}
    return {name: value for name, value in settings.items() if value is not None}


def root_parser(verbs: Sequence[Verb]) -> Parser:
    """The parser of all verbs; light, as none of the modules that do the work is imported."""
    parser = Parser(prog=PROGRAM, description="TumorLens: one command a job; each verb has its own --help.")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for verb in verbs:
        command = commands.add_parser(
            verb.name, help=verb.purpose, description=_described(verb), epilog=f"examples:\n{verb.details}"
        )
        verb.add(command)
        command.set_defaults(chosen=verb)
    return parser


def _described(verb: Verb) -> str:
    return verb.purpose[:1].upper() + verb.purpose[1:] + "."


def _normal(token: str) -> str:
    """An option with underscores, which is how every option here is spelled; hyphens are taken too.

    >>> _normal("--max-distance=a-b"), _normal("data-dir/x"), _normal("--train#step")
    ('--max_distance=a-b', 'data-dir/x', '--train#step')
    """
    return re.sub(r"^--[^=]+", lambda match: "--" + match[0][2:].replace("-", "_"), token)


def parse(verbs: Sequence[Verb], argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line.

    Raises:
        ValueError: when one is missing, wrong or unknown; names the nearest.
    """
    parser = root_parser(verbs)
    names = [verb.name for verb in verbs]
    if argv and not argv[0].startswith("-") and argv[0] not in names:
        near = difflib.get_close_matches(argv[0], names, n=1)
        hint = f"nearest: {near[0]}" if near else f"there are {', '.join(names)}"
        raise ValueError(f"no verb {argv[0]!r}; {hint}")
    tokens = [*argv[:1], *map(_normal, argv[1:])]
    if argv and argv[0] in names and not verbs[names.index(argv[0])].overrides:
        known = options(parser, argv[0])
        for option in (token.partition("=")[0] for token in tokens if token.startswith("--")):
            if option not in known:
                near = difflib.get_close_matches(option, known, n=1)
                hint = f"nearest: {near[0]}" if near else f"they are listed by: {PROGRAM} {argv[0]} --help"
                raise ValueError(f"{argv[0]} has no argument {option}; {hint}")
    arguments, rest = parser.parse_known_args(tokens)
    arguments.overrides, arguments.parser = rest, parser
    if arguments.overrides and not arguments.chosen.overrides:
        raise ValueError(f"{arguments.verb} takes no further argument {arguments.overrides[0]!r}")
    return arguments


def options(parser: Parser, verb: str) -> list[str]:
    """Every option of a verb, those of its own sub-commands included."""
    flags: list[str] = []
    waiting = [action.choices[verb] for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    while waiting:
        for action in waiting.pop()._actions:
            flags += action.option_strings
            waiting += action.choices.values() if isinstance(action, argparse._SubParsersAction) else []
    return flags


def run_verb(verbs: Sequence[Verb], argv: Sequence[str]) -> int:
    """Parse, work, print; the exit status: 0, or 1 where what was looked for is wrong.

    Raises:
        ValueError, OSError: when it cannot be done, in one sentence (`scripts.command.errors.one_sentence_errors`).
    """
    arguments = parse(verbs, argv)
    start_logging()
    outcome = importlib.import_module(arguments.chosen.module).execute(arguments)
    if outcome.text:
        print(outcome.text)
    if not outcome.quiet:
        print(f"written: {', '.join(map(str, outcome.written)) or 'nothing'}")
    return int(outcome.failed)
