"""The verb ``completion``: a script that completes verbs and arguments in the shell."""

from __future__ import annotations

import argparse
import importlib

from scripts.command.verbs import Outcome, Parser

__all__ = ["execute"]

WORD = "tumorlens"


def execute(arguments: argparse.Namespace) -> Outcome:
    """Print the script and nothing else, as a shell reads it.

    Raises:
        ValueError: when the package shtab is not installed.
    """
    try:
        shtab = importlib.import_module("shtab")
    except ImportError as error:
        raise ValueError("the package shtab is not installed: pip install '.[completion]'") from error
    parser: Parser = arguments.parser
    parser.prog = WORD
    return Outcome(shtab.complete(parser, shell=arguments.shell), quiet=True)
