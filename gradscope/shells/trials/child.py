"""The process in which a program runs for `gradscope fix`: `python -m gradscope.shells.trials.child WANTED`."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from gradscope.errors import GradscopeError
from gradscope.graph.storage import encode
from gradscope.shells.commands.streams import say
from gradscope.shells.trials.overlay import serve
from gradscope.shells.trials.runs import Wanted


def main(path: str) -> int:
    """Run what is wanted, keep its run, and return the exit status that the program has."""
    wanted = msgspec.json.decode(Path(path).read_bytes(), type=Wanted)
    serve(wanted.changed)
    from gradscope.probes.program.scripts import observe_program, program_of_module, program_of_script, show

    try:
        program = (program_of_module if wanted.module else program_of_script)(wanted.script, wanted.args)
    except GradscopeError as error:
        say(str(error))
        return 2
    outcome = observe_program(program, wanted.steps, wanted.checks)
    Path(wanted.save).write_bytes(encode(outcome.run))
    outcome.leave()
    return show(outcome.error) if outcome.error is not None else outcome.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
