"""The command line: `gradscope COMMAND`. Each command lives in a file of its own and is imported when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

import click

from gradscope import __version__
from gradscope.errors import GradscopeError, Interrupted
from gradscope.shells.commands.streams import forget, say

COMMANDS = {
    "explain": "Run a script and explain which tensors get a gradient, which do not, and why.",
    "fix": "Try the mend of each finding by running the script again, and write those that help.",
    "show": "Report again on a kept run, without running the script.",
    "diff": "Compare two kept runs: findings gone and new, tensors that learn now or no longer.",
    "rules": "List every rule, a line each.",
    "rule": "Show one rule's page: what, why, bad, good.",
}


class _Commands(click.Group):
    """Imports a command only when it is run, so that help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"gradscope.shells.commands.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of a name; of a name that there is not, what was meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f": did you mean `gradscope {near[0]}`?" if near else ""
            if name.endswith(".py") or os.path.isfile(name):
                hint = f": to run a script, `gradscope explain {name}`"
            ctx.fail(f"No such command {name!r}{hint or '; `gradscope --help` lists them'}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="gradscope %(version)s")
def cli() -> None:
    """A debugger for PyTorch's autograd: who gets a gradient, who does not, why, and on which line."""


def main() -> None:
    """The entry point. Misuse ends with one line on standard error and exit code 2."""
    try:
        status = cli(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = 2
    except click.ClickException as error:
        say(error.format_message())
        status = 2
    except click.Abort:
        status = 130
    except Interrupted:
        sys.excepthook = lambda *_: None
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        status = 0  # who reads has enough
        if sys.stdout is not None:
            forget(sys.stdout)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        say(f"cannot use{where or ' standard output'}: {error.strerror or error}")
        status = 2
    except GradscopeError as error:
        say(str(error))
        status = error.exit_code
    sys.exit(status)
