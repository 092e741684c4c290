"""What all verbs of the command line share: how they speak, how they fail, how they read options."""

import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
import yaml
from rich.console import Console

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
ScenesOption = Annotated[str | None, typer.Option(help="Only these scenes, comma-separated.")]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

KNOWN_ERRORS = {
    "pipelines.config:ConfigError": 2,
    "train.config:ConfigError": 2,
    "pipelines.datasets.records:DataError": 1,
    "pipelines.batches:ClusterLost": 1,
    "pipelines.batches:WorkerLost": 1,
    "storage.errors:StoreError": 1,
    "model.checkpoint:CheckpointError": 1,
    "train.checkpoint:CheckpointError": 1,
    "train.watch:TrainingDiverged": 1,
    "eval.rules:EvaluationError": 2,
    "pipelines.prefect_home:PrefectError": 1,
    "occflow_shell:CommandError": 2,
}
"""Errors whose message is a remedy, and the exit code they give; anything else is a bug and shows its traceback."""


class CommandError(ValueError):
    """An option that cannot be used."""


def exit_code(error: BaseException) -> int | None:
    """The exit code for an error that needs no traceback, else None. Looks only at modules imported already."""
    for name, code in KNOWN_ERRORS.items():
        module, _, cls = name.partition(":")
        kind = getattr(sys.modules.get(module), cls, None)
        if kind is not None and isinstance(error, kind):
            return code
    # The operating system's own message, where it says which file.
    return 1 if isinstance(error, OSError) and error.filename is not None else None


def verb(function: FunctionT) -> FunctionT:
    """Show a known error as one red paragraph, without a traceback unless --debug asks for it."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("\n[yellow]interrupted[/]: what is committed stays; run the same command to go on")
            raise typer.Exit(130) from None
        except Exception as error:
            code = exit_code(error)
            if code is None or os.environ.get("OCCFLOW_DEBUG"):
                raise
            err.print(str(error), style="red", markup=False, soft_wrap=True)
            raise typer.Exit(code) from None

    return run  # type: ignore[return-value]


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """["a.b=c"] as {"a.b": c}, c read as YAML."""
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise CommandError(f"--set {pair}: expected key=value, such as runner.workers=4")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            why = getattr(error, "problem", None) or error
            raise CommandError(f"--set {pair}: the value is no YAML ({why}); a list is written [a, b]") from None
    return parsed


def say(line: str, console: Console = out) -> None:
    """One line on standard output, as it is: not wrapped, no markup, so that paths can be copied."""
    console.print(line, markup=False, soft_wrap=True)


def command(*words: object) -> str:
    """A command as a shell takes it: a path with a space in it stays one word."""
    return shlex.join(str(word) for word in words)


def refuse(options: dict[str, Any], why: str) -> None:
    """Say that options were given (are not None) which mean nothing here, instead of passing over them."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise CommandError(f"{', '.join(given)}: {why}; leave it out")


def preset_list(package: str) -> str:
    """Names of the presets that ship with a package, for a help text, which must be quick: no module is loaded."""
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), package, "configs")
    return ", ".join(sorted(name.removesuffix(".yaml") for name in os.listdir(folder) if name.endswith(".yaml")))


def names(text: str | None) -> tuple[str, ...] | None:
    """ "a,b" as ("a", "b"), None where the option was not given.

    One that names nothing is refused: a script whose list came out empty would do nothing, or everything, and succeed.
    """
    if text is None:
        return None
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise CommandError(f"{text!r}: names nothing; give names with commas between, or leave the option out for all")
    return found
