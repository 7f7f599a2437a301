"""The command `mlspec`: a table of commands, each loaded only when it is called.

`mlspec --help` and `mlspec validate` must not pay for clients or data libraries.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

import mlspec
from mlspec_reconciler.cluster import Conflict, Refused, Unavailable

COMMANDS = {
    "init": "Write a working project into a folder.",
    "validate": "Check specs; every mistake with its line and a way out.",
    "plan": "Show what apply would do, and why.",
    "apply": "Make the target equal to the specs.",
    "status": "Say how everything is, and what to look at.",
    "url": "Print the address of a serving graph.",
    "logs": "Print the logs of a resource.",
    "runs": "List the runs of a resource.",
    "stop": "End a run before its time.",
    "retry": "Start a failed run again.",
    "retrain": "Ask for a training on newer data.",
    "switch": "Go back to the model that served before.",
    "refresh": "Read a dataset again.",
    "requests": "List what policies, schedules and persons ask for.",
    "withdraw": "Take a request back.",
    "reproduce": "Run a finished training again and compare.",
    "propose": "Turn what monitoring policies propose into a change in git.",
    "render": "Print the plain objects of a target.",
    "explain": "Print the documentation of a field.",
    "schema": "Write or check the JSON Schemas and CRDs.",
    "features": "Check that batch and online features agree.",
    "dev": "Validate and plan on every save.",
    "destroy": "Remove what apply has made.",
}
"""Command -> one line of help. Each is `command` in `mlspec_reconciler.commands.<name>`."""


class Commands(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table, which is the order of work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mlspec_reconciler.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without an import."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(mlspec.__version__, prog_name="mlspec")
def group() -> None:
    """Production ML from YAML specs in git.

    \b
    mlspec init churn && cd churn
    mlspec plan
    mlspec apply
    mlspec status
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; the exit code. An unexpected error leaves its traceback in a file, not on the screen."""
    spare_collections()
    try:
        result = group.main(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. Run the same command to resume.", err=True)
        return 130
    except Unavailable as error:
        click.echo(f"error[unavailable]: {error}", err=True)
        return 1
    except Refused as error:
        click.echo(f"error[refused]: {error}", err=True)
        return 1
    except Conflict as error:
        click.echo(f"error[changed-meanwhile]: {error}; the same command looks again", err=True)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        click.echo(f"error[files]: {error.strerror or error}{where}", err=True)
        return 1
    except Exception as error:  # the edge of the process
        return _crash(error)
    return result if isinstance(result, int) else 0


def spare_collections() -> None:
    """A command builds large data without cycles and ends: walking it again and again took half of a plan of 10,000 objects."""
    gc.set_threshold(200_000, 20, 20)


def _crash(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="mlspec-crash-", suffix=".log", delete=False) as file:
        file.write(f"mlspec {mlspec.__version__} {sys.argv}\n")
        traceback.print_exception(error, file=file)
    click.echo(f"error[internal]: {type(error).__name__}: {error}", err=True)
    click.echo(f"  This is a mistake of mlspec, not yours. Details: {Path(file.name)}", err=True)
    return 1


def entry() -> None:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
