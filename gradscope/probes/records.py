"""What a tape holds: structs and tuples that hold no tensor, no module and no node of autograd.

What is written at every operation are structs that the garbage collector does not track, and tuples of them, which it
drops at first sight: thousands of tracked objects a step would set off full collections. No such struct may lead back
to itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import torch

from gradscope.folds.modes import ModeCount
from gradscope.graph.events import AnyEvent
from gradscope.graph.facts import Registration
from gradscope.probes.forward.callsites import Site
from gradscope.probes.training.courses import Course

if TYPE_CHECKING:
    from gradscope.probes.backward.nonfinite import Event
    from gradscope.probes.backward.refusals import RefusalRecord
    from gradscope.probes.backward.walker import Walk
    from gradscope.probes.tape import Tape
    from gradscope.probes.training.movement import Moment


Reference: TypeAlias = Callable[[], torch.Tensor | None]


def nobody() -> None:
    """Stands for the weak reference to a tensor that was let go, or that never was."""


class Subject(msgspec.Struct, eq=False, gc=False):
    """One tensor object, as far as it can be told without holding it; `Tape.meet` reads what it is like.

    `value` numbers what it holds now and `version` is torch's count of its changes when that was read. `thread` is the
    thread that used it last. `gradient_of` is the serial of the leaf whose `.grad` it was when that was read.
    `built` is the line whose call made the module that it belongs to, and those that called its function;
    `constructors` are the lines that were being run then, from the innermost on, where a constructor was among them.
    `wrapper` says that a transform of `torch.func` put another tensor into it, which has the name.
    `step`, `call`, `steps` and `calls` say when its value was made and how far its graph leads back (see `growth`), and
    `order` when it was made, by the numbers of operations.
    """

    serial: int
    ref: Callable[[], torch.Tensor | None]
    site: Site | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    leaf: bool
    nn_parameter: bool
    value: int
    version: int
    thread: int = 0
    used: bool = False
    consumed: bool = False
    name: tuple[ModuleMark, str] | None = None
    registered: Registration | None = None
    course: Course | None = None
    built: tuple[Site, ...] = ()
    constructors: tuple[Site, ...] = ()
    gradient_of: int = 0
    step: int = 0
    call: int = 0
    steps: int = 0
    calls: int = 0
    wrapper: bool = False
    order: int = 0

    def held(self) -> ValueRecord:
        """What it holds now."""
        return self.value, self, self.requires_grad


class OptimizerMark:
    """One optimizer and the tensors that it holds, in its order."""

    __slots__ = (
        "cleared_at", "fed", "in_a_row", "moment", "ref", "refused", "scale", "serial", "site", "stateful",
        "stepped_at", "steps", "subjects", "type", "uses", "withheld", "withheld_at", "withheld_event",
    )  # fmt: skip

    def __init__(self, serial: int, kind: str, ref: Callable[[], Any], site: Site | None) -> None:
        self.serial = serial
        self.type = kind
        self.ref = ref
        self.site = site
        self.steps = 0
        self.refused = False
        self.subjects: dict[int, Subject] = {}
        # Calls that used gradients (steps, or calls of their closures), and those that found any new to use.
        self.uses = self.fed = 0
        self.stepped_at: Site | None = None
        self.cleared_at: Site | None = None
        self.moment: Moment | None = None
        # Steps that a GradScaler kept back, in all and since the last one taken; what was not finite at the first.
        self.withheld = self.in_a_row = 0
        self.withheld_at: Site | None = None
        self.withheld_event: Event | None = None
        self.scale: float | None = None
        self.stateful = False

    def holds(self, tape: Tape, tensor: torch.Tensor) -> Subject | None:
        """What is known of a tensor that the optimizer holds."""
        subject = tape.seen(tensor)
        return subject if subject is not None and subject.serial in self.subjects else None


def in_training(module: torch.nn.Module) -> bool:
    """The mode of a module, read without running code of its class.

    Some that never called the constructor of `nn.Module` have none, and TorchScript keeps it elsewhere.
    """
    if issubclass(type(module), torch.jit.ScriptModule):
        return bool(getattr(module, "training", True))
    return bool(object.__getattribute__(module, "__dict__").get("training", True))


class ModuleMark:
    """One module object: its class and, once its root is known, its path."""

    __slots__ = (
        "awaits_all",
        "modes",
        "path",
        "ref",
        "repeats",
        "requires_grad",
        "root",
        "switched",
        "training",
        "type",
    )

    def __init__(self, module: torch.nn.Module) -> None:
        self.ref: Callable[[], torch.nn.Module | None] = weakref.ref(module)
        self.type = type(module).__name__
        self.path = ""
        self.training = in_training(module)
        self.requires_grad: bool | None = None
        self.awaits_all = False
        self.repeats = 0
        self.root: ModuleMark | None = None
        self.modes: ModeCount[tuple[Site | None, ModuleMark]] | None = None
        self.switched: tuple[Site | None, ModuleMark] | None = None  # to evaluation mode: where, as a part of which


# value: (serial, subject, history); operation: see `Recorder`
ValueRecord: TypeAlias = tuple[int, Subject, bool]


class OperationRecord(msgspec.Struct, eq=False, gc=False):
    """One call. `nodes` are sequence numbers of the thread that made it.

    `number` is the last plain float that it took, or the one that it gave.
    """

    serial: int
    function: Any
    site: Site | None
    inputs: tuple[ValueRecord, ...]
    outputs: tuple[ValueRecord, ...]
    grad_enabled: bool
    nodes: tuple[int, int]
    module: ModuleMark | None
    thread: int
    within: int | None = None
    failed: bool = False
    number: float | None = None

    @property
    def tells_of_gradients(self) -> bool:
        """Whether it gives nothing, and tells where gradients end: at a switch of grad mode, or out of torch."""
        if self.outputs:
            return False
        return self.failed or not self.inputs or any(history for _, _, history in self.inputs)


@dataclass(slots=True)
class BackwardRecord:
    """One pass of the engine; `began` is the number of the latest operation when it began."""

    kind: str
    roots: tuple[ValueRecord, ...]
    site: Site | None
    thread: int
    walk: Walk | None = None
    arrivals: tuple[Subject, ...] = ()
    failed: bool = False
    began: int = 0
    retained: bool = False
    refusal: RefusalRecord | None = None


@dataclass(slots=True)
class CallRecord:
    """A call of a root module: how the user's line names what goes in and what comes out.

    An input or output that is a tuple, list or dict is told by its tensors, each with the index that leads to it.
    `given` are all tensors that came out.
    """

    site: Site
    inputs: tuple[Subject | dict[str, Subject] | None, ...]
    outputs: tuple[Subject | dict[str, Subject] | None, ...]
    given: tuple[Subject, ...]


@dataclass(slots=True)
class Jottings:
    """The plain operations of one step, jotted down (see `jottings`), and what it takes to write them out.

    `items` holds so many entries for each operation, `taken` references to what they took, one operation after the
    other. `met` are the tensors that were met meanwhile. `renewed` are by tensor the values that were replaced, in
    place or by the step of an optimizer: the number after which that was, the value, and its history; `changed` are
    the tensors that were changed in place and have history since, and `callers` the calls of root modules in which
    other operations ran. At the end of the step `survivors` are results that are alive, `uses` how often each was
    referred to, and `leads_on` says that one of them was used in a later step. `begun` is the number after which it was
    jotted: what came before in the step is linked.
    """

    items: list[Any] = field(default_factory=list)
    taken: list[Reference] = field(default_factory=list)
    met: list[Subject] = field(default_factory=list)
    renewed: dict[int, list[tuple[int, int, bool]]] = field(default_factory=dict)
    changed: dict[int, Subject] = field(default_factory=dict)
    callers: dict[int, Site] = field(default_factory=dict)
    survivors: list[Reference] = field(default_factory=list)
    uses: list[int] = field(default_factory=list)
    leads_on: bool = False
    begun: int = 0


@dataclass(slots=True)
class StepRecord:
    """What happened until an optimizer had stepped.

    `writes` are changes in place: operation and storage. `first_call` is how often root modules had been called before.
    """

    index: int
    operations: list[OperationRecord] = field(default_factory=list)
    backwards: list[BackwardRecord] = field(default_factory=list)
    calls: list[CallRecord] = field(default_factory=list)
    optimizer: int | None = None
    site: Site | None = None
    writes: list[tuple[int, int]] = field(default_factory=list)
    jottings: Jottings | None = None
    first_call: int = 0
    events: list[AnyEvent[Site | None]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """About how many operations and nodes of graphs are in it; what is jotted down takes a tensor or two each."""
        walks = (backward.walk for backward in self.backwards)
        jotted = len(self.jottings.taken) if self.jottings is not None else 0
        return len(self.operations) + jotted + sum(len(walk) for walk in walks if walk is not None)

    @property
    def empty(self) -> bool:
        """Whether nothing has happened in it yet."""
        return not (self.operations or self.backwards or (self.jottings is not None and self.jottings.items))
