"""From a seed to the text of a program."""

from __future__ import annotations

import ast
from collections.abc import Collection

from tests.fuzz.episodes import ending, episode, way
from tests.fuzz.head import HEAD, TAIL
from tests.fuzz.layers import layer
from tests.fuzz.optimizers import optimizer, scheduler
from tests.fuzz.program import Program, block, indented
from tests.fuzz.training import habit, setting

ALL = (layer, optimizer, scheduler, habit, setting, episode, way, ending)


def made(seed: int, without: Collection[str] = ()) -> str:
    """The program of a seed, without some ingredients: a training loop, episodes, or both."""
    program = Program(seed, without)
    if program.chance(0.3):
        setting.draw(program)
    trains = program.chance(0.75)
    if trains:
        training(program)
    for _ in range(program.pick(0, 1, 2, 3) if trains else program.pick(1, 2, 4)):
        told(program)
    last = ending.draw(program) or "pass"
    parts = [
        HEAD,
        *map(block, program.definitions),
        *map(block, program.settings),
        f"torch.manual_seed({program.pick(0, 1, 2)})" if program.chance(0.9) else "",
        *(loop(program) if trains else ("model = None",)),
        *program.episodes,
        *map(block, program.ending),
        TAIL,
        block(last),
    ]
    text = "\n".join(part + "\n" for part in parts if part)
    ast.parse(text)
    return f"# {', '.join(program.used)}\n{text}"


def training(program: Program) -> None:
    """A model, an optimizer and what is done with them."""
    layers = [str(layer.draw(program)) for _ in range(program.pick(1, 2, 2, 3, 4))]
    program.setup.append(f"model = nn.Sequential({', '.join(layers)}, nn.Linear(6, 6))")
    program.setup.append("model(torch.zeros(5, 6))" if any("Lazy" in one for one in layers) else "pass")
    optimizer.draw(program)
    for _ in range(program.pick(0, 1, 1, 2, 3)):
        habit.draw(program)
    if program.chance(0.25):
        scheduler.draw(program)


def loop(program: Program) -> list[str]:
    """The training loop, at the top of the program or in a function."""
    inner = [
        "x, y = torch.randn(5, 6), torch.rand(5, 6)",
        *program.batch,
        "h = model(x)",
        *program.hidden,
        "loss = F.mse_loss(h, y)",
        *program.loss,
        program.clear,
        program.backward,
        *program.after_backward,
        program.update,
        *program.after_update,
        "show('loss', loss, loss.item())",
    ]
    steps = f"for step in range({program.steps}):\n" + indented(inner)
    for line in reversed(program.around):
        steps = f"{block(line)}\n" + indented([steps])
    lines = [*map(block, program.setup), steps]
    told_at_end = [
        "show('parameters', list(model.parameters()), [p.grad for p in model.parameters()], list(model.buffers()))",
        "show('state', opt.state_dict()['param_groups'], list(opt.state.values())) if opt is not None else None",
    ]
    if program.chance(0.3):
        inside = indented([*lines, *program.ending, *told_at_end])
        program.ending = []
        return [f"model, opt = None, None\ndef train():\n    global model, opt\n{inside}train()"]
    return [*lines, *told_at_end]


def told(program: Program) -> None:
    """An episode and the way in which it is called."""
    code = episode.draw(program)
    call = way.draw(program)
    if code is None or call is None:
        return
    name = f"episode_{program.number()}"
    program.episodes.append(f"def {name}():\n{indented([code])}\n{call.format(name=name)}")
