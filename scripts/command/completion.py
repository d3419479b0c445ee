"""The verb ``completion``: a script that completes verbs and arguments in the shell."""

from __future__ import annotations

import argparse

from scripts.command.optional import needed
from scripts.command.verbs import Outcome, Parser

__all__ = ["execute"]

WORD = "tumorlens"


def execute(arguments: argparse.Namespace) -> Outcome:
    """Print the script and nothing else, as a shell reads it.

    Raises:
        ValueError: when the package shtab is not installed.
    """
    shtab = needed("shtab", "the package shtab is not installed: pip install '.[completion]'")
    parser: Parser = arguments.parser
    parser.prog = WORD
    return Outcome(shtab.complete(parser, shell=arguments.shell), quiet=True)
