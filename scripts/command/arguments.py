"""Arguments of the verb ``completion``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb

__all__ = ["VERBS"]


def _completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the script's language")


VERBS = (
    Verb(
        "completion", "print a script that completes verbs and arguments in the shell", "scripts.command.completion",
        _completion,
        "  alias tumorlens='python -m scripts'\n"
        "  eval \"$(python -m scripts completion bash)\"      # then: tumorlens tr<TAB> --ov<TAB>",
    ),
)  # fmt: skip
