"""What was seen in a run: plain immutable facts, without torch and without judgement.

Probes write them, rules and reports read them, and `gradscope.graph.storage` keeps them as JSON.
Facts refer to each other by `id`; the ids of one run are unique within their kind and in the order
in which things happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradscope.graph.events import AnyEvent

Severity = Literal["error", "warning", "info"]
Ending = Literal["end", "steps", "finding", "interrupt", "exception", "exit"]
Symptom = Literal[
    "no graph",
    "no tensor to differentiate",
    "gradient is None",
    "non-leaf in optimizer",
    "changed in place",
    "leaf changed in place",
    "freed graph",
    "no scalar",
    "gradient of another shape",
    "inference tensor",
    "integer requires grad",
    "custom backward",
    "unfinished reduction",
    "no scaled gradient",
    "shapes differ",
    "types differ",
    "devices differ",
    "index out of range",
    "argument without derivative",
    "copy of a result",
    "changed in place under vmap",
    "recomputed otherwise",
    "ready twice",
    "compiled for one pass",
]
Observed = Literal["operations", "values"]
Registration = Literal["parameter", "buffer", "attribute"]
# What cannot be negative is refused where a kept run says so.
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Norm: TypeAlias = Annotated[float, Meta(ge=0)]
UNKNOWN = -1  # in the place of a size that is not one number, as in a jagged tensor


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the user's source. Lines and columns count from 1; `end_column` is exclusive.

    Columns count characters, not bytes. They are None where the interpreter kept no position. `function` is the
    qualified name of the function that the line belongs to, `<module>` at the top level.
    """

    file: str
    line: Count
    column: Count | None = None
    end_line: Count | None = None
    end_column: Count | None = None
    function: str | None = None


class Received(msgspec.Struct, frozen=True):
    """Gradients that arrived at one tensor, counted in steps of the optimizer that holds it.

    A gradient that is exactly zero or not finite has arrived too; both are counted apart. `zeros` is how many of the
    latest in a row were exactly zero.
    """

    steps: Count
    of: Count
    zero: Count = 0
    nonfinite: Count = 0
    zeros: Count = 0


@dataclass(frozen=True, slots=True)
class Clips:
    """The clips of one line, by the uses of one leaf's gradient whose latest clip they were.

    Those `in_time` lay between a backward and the use, `early` ones before the backward, `late` ones after the step
    that had used what they clipped, and `scaled` ones before a GradScaler divided by its `scale`.
    """

    span: Span
    limit: float
    in_time: Count = 0
    early: Count = 0
    late: Count = 0
    scaled: Count = 0
    scale: float | None = None


class Ledger(msgspec.Struct, frozen=True):
    """What became of the gradients of one leaf.

    `passes` counts the backwards that reached it; `first` and `last` are the numbers of the steps in which the first
    and the latest did. A *use* is a step of an optimizer that holds it (each call of a step's closure counts), or an
    update by hand: `applied` uses found a gradient that was new, of these `piled` found it on top of one that had been
    used before; `starved` found none, of these `cleared_first` since one had arrived and been cleared; `reapplied`
    found the same one as the use before; `robbed` lacked that of a backward which the same step used at other
    tensors; `leftover` took those of another line along, `leftover_at`, whose own optimizer had stepped before.
    `by_hand` counts operations that computed with the gradient itself.

    Single steps are looked at now and then: `stirred` of those with a new gradient other than zero moved the value,
    `still` left it as it was to the last bit; `moved_frozen` moved it though it was frozen and nothing had arrived,
    `masked` moved elements whose gradient had been set to zero before, of `masks` on gradients on which the line worked
    that does so. `rate` is the latest learning rate and
    `rate_zero` counts the looks at which it was 0. `updates` are |update| / |value|, in time order.

    `backward` is the line of the latest backward that reached it, `cleared` the line that last threw its gradient away
    (`swept` with those of a whole optimizer or module), `masked_at` the one that last set parts of it to zero, and
    `frozen` the one that last switched `requires_grad` off.

    `overwrites` are those times, of the first few, that the program had written over the value as a whole between two
    steps; in `overwritten` of these next to nothing was left of what the steps since the time before had changed, which
    were at least and at most `overwritten_after`. `overwritten_at` is the line.
    """

    passes: Count = 0
    first: Count = 0
    last: Count = 0
    applied: Count = 0
    piled: Count = 0
    starved: Count = 0
    cleared_first: Count = 0
    reapplied: Count = 0
    robbed: Count = 0
    leftover: Count = 0
    by_hand: Count = 0
    stirred: Count = 0
    still: Count = 0
    moved_frozen: Count = 0
    masked: Count = 0
    masks: Count = 0
    rate: float | None = None
    rate_zero: Count = 0
    updates: tuple[Norm | None, ...] = ()
    backward: Span | None = None
    cleared: Span | None = None
    leftover_at: Span | None = None
    swept: bool = False
    masked_at: Span | None = None
    frozen: Span | None = None
    overwrites: Count = 0
    overwritten: Count = 0
    overwritten_after: tuple[Count, Count] | None = None
    overwritten_at: Span | None = None
    clips: tuple[Clips, ...] = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor object of the program.

    `leaf` and `requires_grad` are `torch.Tensor.is_leaf` and `.requires_grad` as last seen. A size in `shape` may be
    `UNKNOWN`.
    `registered` says how a module holds it, if one does; `optimizer` is the id of the optimizer that
    holds it. `supplied` says that its `.grad` was filled by hand, `used` that some operation computed with it,
    `consumed` that one did whose result is differentiable, `differentiated` that a backward started from it.
    `predicted` says whether the gradient flow reaches it, None where nothing was walked.
    `gradient_norms` are 2-norms of the gradients that arrived, a bounded selection in time order, None for one
    that was not finite.
    `start` and `change` are 2-norms of the first value and of (last - first) value; for tensors of more
    than 4,096 elements both are measured on a fixed selection of elements. `inference` says that it was made in
    inference mode, which autograd cannot save for backward.
    `made` is the line that made it, `built` the one whose call made the module that it belongs to, and `callers` are
    the lines that called the function of `built`, the innermost first.
    """

    id: int
    name: str | None
    shape: tuple[int, ...]
    dtype: str
    device: str
    leaf: bool
    requires_grad: bool
    grad_fn: str | None = None
    nn_parameter: bool = False
    registered: Registration | None = None
    module: str | None = None
    optimizer: int | None = None
    supplied: bool = False
    used: bool = False
    consumed: bool = False
    differentiated: bool = False
    predicted: bool | None = None
    received: Received | None = None
    gradient_norms: tuple[Norm | None, ...] = ()
    start: Norm | None = None
    change: Norm | None = None
    made: Span | None = None
    built: Span | None = None
    callers: tuple[Span, ...] = ()
    ledger: Ledger | None = None
    inference: bool = False

    @property
    def is_scalar(self) -> bool:
        """Whether it holds one number, in whatever number of dimensions."""
        return all(size == 1 for size in self.shape)


class Value(msgspec.Struct, frozen=True):
    """What a tensor object held between two changes: the edges of the data flow.

    An in-place operation gives its tensor a new value. `history` says whether autograd would send a
    gradient to this value: a leaf that requires grad, or the result of a differentiable operation.
    """

    id: int
    tensor: int
    history: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a torch function, as the user's line made it.

    `name` is the function's public name without the leading `torch.` (`Tensor.matmul`, `nn.functional.linear`).
    `inputs` and `outputs` are ids of values. `nodes` is the half-open range of sequence numbers of the
    autograd nodes that the call made. `within` is the custom autograd Function in whose forward it ran.
    `number` is the last plain float that it took, or the one that it gave out of torch.
    """

    id: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    grad_enabled: bool
    nodes: tuple[int, int]
    module: str | None = None
    span: Span | None = None
    within: int | None = None
    failed: bool = False
    number: float | None = None


class Node(msgspec.Struct, frozen=True):
    """One node of the autograd graph. Its id is its place in the walk; the roots come first.

    `edges` are (node id, index of that node's output), towards the leaves. `tensor` names the leaf of an
    AccumulateGrad node. `saved` is in bytes; None where it was not asked for or could not be read.
    """

    id: int
    name: str
    edges: tuple[tuple[int, int], ...]
    sequence: int | None = None
    operation: int | None = None
    tensor: int | None = None
    saved: Count | None = None
    custom: bool = False
    view: bool = False
    outputs: int = 1


@dataclass(frozen=True, slots=True)
class Again:
    """A call that a function under `checkpoint` made when it ran again; `shape` is that of its first result."""

    name: str
    span: Span
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A function under `checkpoint`, called at `span`, that ran otherwise when backward ran it again.

    The ids of the operations of its first run lie between `began` and `ended`. `switched` is the call that last put
    modules into another mode, where that was after the first run.
    """

    span: Span | None
    began: int
    ended: int | None
    again: tuple[Again, ...]
    switched: Span | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Where a failed backward met a saved tensor that it could not use.

    A tensor that was changed since it was saved: `node` is the autograd node that saved it, `operation` the operation
    that made the node, `tensor` what was saved, and `result` says whether the node saved what it gave rather than what
    it took. `version` counts the changes now, `expected` those when it was saved; `writers` are the operations that
    made them, in order, as far as they were seen.
    A graph that was freed: `freed` are the operations behind the roots whose saved tensors are gone.
    What checkpointing had to compute again and did not find as it was: `recomputed`.
    """

    node: str | None = None
    operation: int | None = None
    tensor: int | None = None
    result: bool = False
    version: int | None = None
    expected: int | None = None
    writers: tuple[int, ...] = ()
    freed: tuple[int, ...] = ()
    recomputed: Recomputed | None = None


@dataclass(frozen=True, slots=True)
class Backward:
    """One pass of the autograd engine: `backward()`, `torch.autograd.grad` or our own confirmation.

    `roots` are the ids of the values it started from, `arrivals` the ids of the tensors that a gradient
    reached. `nodes` is the graph that was walked, empty where it was not. `complete` is false when the
    walk stopped at its limit, `failed` true when torch raised; `refused` then says what it met, if that is known.
    `began` is the id of the last operation before it. `retained` is true where it was asked to keep the graph.
    """

    kind: Literal["backward", "grad", "confirmation"]
    roots: tuple[int, ...]
    arrivals: tuple[int, ...]
    span: Span | None = None
    nodes: tuple[Node, ...] = ()
    complete: bool = True
    failed: bool = False
    began: int = 0
    retained: bool = False
    refused: Refused | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a module by the user's line, outside of all others; `outputs` are the ids of the tensors it gave."""

    span: Span
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What lies between two `optimizer.step()` calls (between two backwards where no optimizer is used).

    `span` is the line that called the optimizer's step, which ended it.
    """

    index: int
    operations: tuple[Operation, ...]
    backwards: tuple[Backward, ...]
    optimizer: int | None = None
    span: Span | None = None
    calls: tuple[Call, ...] = ()
    events: tuple[AnyEvent[Span | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer, the ids of the tensors that it holds, and how often it stepped.

    `refused` is true where torch raised while it was made; then `tensors` are those that it was offered. `uses` counts
    its steps, or the calls of their closures, and `fed` those that found a new gradient at any of its tensors;
    `stepped` and `cleared` are the lines that last called its `step` and its `zero_grad`. `withheld` counts steps that
    a GradScaler kept back, which are none of its `steps`, and `in_a_row` those since the last one that was taken;
    `withheld_at` is the line of the latest, and `scale` what the scale was there.
    `stateful` says that its first step left something for the next ones, as averages.
    """

    id: int
    name: str
    tensors: tuple[int, ...]
    steps: int
    made: Span | None = None
    refused: bool = False
    uses: int = 0
    fed: int = 0
    stepped: Span | None = None
    cleared: Span | None = None
    withheld: Count = 0
    in_a_row: Count = 0
    withheld_at: Span | None = None
    scale: float | None = None
    stateful: bool = False


@dataclass(frozen=True, slots=True)
class Discard:
    """Backwards from one line: how many there were, and how many of them were cleared away with nothing ever used.

    `tensors` are the ids of those that they reached, `cleared` is the line that last cleared one away.
    """

    backward: Span | None
    cleared: Span | None
    passes: int
    vain: int
    tensors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Growth:
    """A line at which the graph behind a kept tensor grows.

    `kind` tells how: `steps`, a value is computed from its own of the step before; `calls`, the same from one call of
    a module to the next; `kept`, results of ever more steps are alive; `cycle`, leaves are kept alive by the graph
    of their own gradient. `count` is how many steps, calls or results hang together, `since` and `until` the steps in
    which that was seen, `trained` the most steps or calls that a backward ever led through. `keeper` is the line that
    puts `kept` results where they stay, if it is known; `ended` says that a backward had started from the latest.
    """

    kind: Literal["steps", "calls", "kept", "cycle"]
    span: Span
    tensor: int
    count: int
    since: int
    until: int
    trained: int = 0
    keeper: Span | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the program as it was last seen.

    `path` is its name as operations give it, with the root's variable in front. `requires_grad_attribute` is set
    where somebody gave the module a plain attribute `requires_grad`, which freezes and unfreezes nothing. `awaits_all`
    is true of a DistributedDataParallel that refuses the next forward after a backward which missed a parameter.
    `repeats` is how often a container holds one and the same module with parameters, where it holds nothing else.
    """

    path: str
    type: str
    training: bool
    requires_grad_attribute: bool | None = None
    awaits_all: bool = False
    repeats: Count = 0


@dataclass(frozen=True, slots=True)
class WrongValue:
    """At one element of the argument at a place: the gradient that backward gave, and the slope of forward there."""

    place: int
    given: float
    slope: float


@dataclass(frozen=True, slots=True)
class CustomBackward:
    """The backward of one custom autograd Function over all the passes that were looked at.

    `arguments` has one entry a tensor argument of its `apply`, in the order in which an operation lists its
    inputs: its place among the arguments. `needed` counts by place in how many passes a gradient was needed, and
    `given` in how many of these the backward gave one. `returned` is how many values the latest pass returned, None
    where that was nothing at all. `reads_upstream` is false where its code makes no use of the values of the upstream
    gradient; `upstream_is_one` is true while every upstream gradient was exactly one, and `zero` while everything that
    was returned was exactly zero. `returns` are its return statements. `raised` says that it raised the exception that
    ended the script. `wrong` is what a check of its values found, where one was asked for.
    """

    name: str
    span: Span | None
    returns: tuple[Span, ...]
    arguments: tuple[int, ...] = ()
    needed: tuple[int, ...] = ()
    given: tuple[int, ...] = ()
    returned: int | None = None
    reads_upstream: bool = True
    upstream_is_one: bool = True
    zero: bool = True
    complained: bool = False
    raised: bool = False
    wrong: tuple[WrongValue, ...] = ()


@dataclass(frozen=True, slots=True)
class Modes:
    """How dropout or batch norm ran, while gradients were kept, for the steps of one optimizer.

    `operation` ran in the module `module`. `training` counts the steps in which it ran in training mode, `evaluation`
    those in which it ran in evaluation mode only. Where it is in evaluation mode, `switched` is the call that put the
    module `by` there, of which `module` is a part.
    """

    module: str
    operation: str
    optimizer: int
    training: int
    evaluation: int
    switched: Span | None = None
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """The first value or gradient that was not finite and did harm: a tensor that is trained became NaN or infinite.

    `kind` tells whether the loss was not finite already or only gradients were, or whether a step made a parameter so
    in places that no loss has met since. `operation`, of the step `step`, made
    it so, or its backward did; `given` says that what it took was not finite before, or, of gradients, that they met
    what it gave, which the loss leaves out. `node` is the autograd node
    without `Backward`; of an `autograd.Function`, `custom` is where its backward divides, or else returns. `operand`
    tells which operand the operation is singular in (`self` or `other`), and `low` and `high` its range, each None
    where unknown or not finite. `withheld` says that a GradScaler kept all steps back from then on, so that the values
    themselves are sound. `tensors` are those whose gradients were not finite, `root` is the value from which
    the backward at `span` started. `taken` are leaves that the operation took and that were not finite by themselves.
    """

    kind: Literal["forward", "gradient", "step"]
    step: int
    operation: Operation | None
    node: str = ""
    given: bool = False
    custom: Span | None = None
    operand: str = ""
    low: float | None = None
    high: float | None = None
    tensors: tuple[int, ...] = ()
    root: int | None = None
    span: Span | None = None
    taken: tuple[int, ...] = ()
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class ProfileNode:
    """One node of a profile. `edges` are places of nodes, towards the leaves, None where no gradient is needed.

    `arrived` is the largest 2-norm of the gradients that came in, `sent` those of what went out on each edge; None
    where there was none. `operation` is the id of the operation that made the node, `tensor` that of a leaf. `half`
    says that what it sent was in float16.
    """

    name: str
    sequence: int
    edges: tuple[int | None, ...]
    arrived: Norm | None
    sent: tuple[Norm | None, ...]
    operation: int | None = None
    tensor: int | None = None
    half: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """One pass of the engine in which the gradient was measured at every node; the roots come first.

    `operations` are those of its step that made a node: the step itself may not be kept.
    """

    step: int
    nodes: tuple[ProfileNode, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class BatchCheck:
    """Whether the output of one sample depends on others, asked of a copy of a module.

    `module` is its path, `size` the number of samples. `operation` mixes them, if one does. `normed` are the paths of
    batch norms that were in training mode, where they mix samples by design; they were set aside for the check.
    """

    module: str
    size: int
    operation: Operation | None = None
    normed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Probabilities:
    """A value that an operation was about to squash with softmax or sigmoid, while it lay in [0, 1] already.

    `summed` says that it sums to 1 along the dimension of the softmax.
    """

    value: int
    summed: bool


@dataclass(frozen=True, slots=True)
class Softmax:
    """The axis along which an operation was about to take the softmax of a value."""

    value: int
    axis: int


@dataclass(frozen=True, slots=True)
class Lookups:
    """What an embedding, `tensor`, with a `row` for padding, was asked for in the first batches: `looks` of them.

    In `padded` of them the row was among what was looked up, and in `real` of these not as padding is: between others,
    rather than at the start or the end of them. `share` is how often, beside the mean of the other rows.
    """

    tensor: int
    row: Count
    looks: Count
    padded: Count
    real: Count
    share: Norm


@dataclass(frozen=True, slots=True)
class TrainingCall:
    """A value that dropout or batch norm of a module took in training mode, where no gradient was kept."""

    value: int
    module: str


@dataclass(frozen=True, slots=True)
class Twins:
    """A tensor of which `alike` of all `rows` had an equal twin before the first step, and have it still at the end.

    In `looks` passes that were looked at, their gradients were equal too, and not zero. `others` are the ids of tensors
    with an element or a column for each row, that are the same for equal rows.
    """

    tensor: int
    alike: Count
    rows: Count
    looks: Count
    others: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Compared:
    """An operation of a loss that compares what an activation or a dropout gave, `squash`, in the first pass looked at.

    Over `looks` passes, `beyond` is the share of the targets that lie outside of what the activation can give, between
    `low` and `high` in all. Of logits it is the share of those that were cut off at 0, of a dropout its rate.
    """

    operation: Operation
    squash: Operation
    looks: Count
    beyond: Norm
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Loss:
    """The value of a scalar root of the backwards of one line, None where it is not finite.

    `first` and `last` are those of the first and the latest pass. `series` has one value a step (the mean, where a step
    had several passes), or one every `stride` steps of a run of many; `steps` counts them all. What follows is told of
    every pass of the run: `constant` says that the value was one number to the last bit; `lowest`, `highest`, `mean`
    and `deviation` are those of the finite values, and `slope` by how much they rise from pass to pass, by least
    squares. `span` is the line of the backward.
    """

    name: str
    first: float | None
    last: float | None
    series: tuple[float | None, ...] = ()
    stride: Count = 1
    steps: Count = 0
    constant: bool = False
    lowest: float | None = None
    highest: float | None = None
    mean: float | None = None
    deviation: float | None = None
    slope: float | None = None
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Wrapper:
    """An exception that the script raised for one that it had caught, at the user's innermost line."""

    type: str
    message: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class FailedCall:
    """The call of torch's that raised what ended the script.

    `operation` is its id. `numbers` are the whole numbers among its arguments, such as the sizes of a view. `ranges`
    holds of operands that choose places the value's id, the least and the largest place. `entered` is the user's line
    that called the outermost module which was running.
    """

    operation: int
    numbers: tuple[int, ...] = ()
    ranges: tuple[tuple[int, int, int], ...] = ()
    entered: Span | None = None


@dataclass(frozen=True, slots=True)
class Crash:
    """The exception that ended the script, at the user's innermost line.

    `symptom` says of which trouble with gradients the exception is the usual sign, if of any. Where the script caught
    such an exception and raised another for it, this is the one that it caught, and `raised` the one that ended it.
    `call` is the call of torch's that raised it, where that was one and is on record.
    """

    type: str
    message: str
    span: Span | None = None
    symptom: Symptom | None = None
    raised: Wrapper | None = None
    call: FailedCall | None = None


@dataclass(frozen=True, slots=True)
class StandIn:
    """What was taken for something else in a dry run, how often, and at which line of the user's."""

    what: str
    instead: str
    count: Count = 1
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Dry:
    """A run with fake tensors: nothing was computed. `ended` says why it was ended before the program's own end."""

    stand_ins: tuple[StandIn, ...] = ()
    ended: str | None = None


@dataclass(frozen=True)
class Run:
    """Everything that was seen. `steps` keeps the first and the latest ones; `step_count` counts all.

    `sources` holds the text of the lines that the facts refer to, by file and line number, and `comments` the comments
    in these files that speak to gradscope; None where nobody looked for them. Of the files in `whole` all lines were
    kept: their author may change them. `failures` are one-line accounts of our
    own parts that failed. `observed` says what was looked at besides counts, and `dry` that tensors were fake.
    """

    gradscope: str
    torch: str
    script: str | None = None
    argv: tuple[str, ...] = ()
    ended: Ending = "end"
    seconds: float = 0.0
    step_count: Count = 0
    backward_count: Count = 0
    crash: Crash | None = None
    tensors: tuple[Tensor, ...] = ()
    values: tuple[Value, ...] = ()
    steps: tuple[Step, ...] = ()
    optimizers: tuple[Optimizer, ...] = ()
    modules: tuple[Module, ...] = ()
    losses: tuple[Loss, ...] = ()
    discards: tuple[Discard, ...] = ()
    growths: tuple[Growth, ...] = ()
    functions: tuple[CustomBackward, ...] = ()
    modes: tuple[Modes, ...] = ()
    nonfinite: Nonfinite | None = None
    profiles: tuple[Profile, ...] = ()
    batches: tuple[BatchCheck, ...] = ()
    probabilities: tuple[Probabilities, ...] = ()
    softmaxes: tuple[Softmax, ...] = ()
    training_calls: tuple[TrainingCall, ...] = ()
    lookups: tuple[Lookups, ...] = ()
    compared: tuple[Compared, ...] = ()
    twins: tuple[Twins, ...] = ()
    sources: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    comments: Mapping[str, Mapping[int, str]] | None = None
    failures: tuple[str, ...] = ()
    observed: tuple[Observed, ...] = ("operations", "values")
    dry: Dry | None = None
    schema: Literal["gradscope.run/1"] = "gradscope.run/1"

    @cached_property
    def tensor_by_id(self) -> Mapping[int, Tensor]:
        """The tensors by their ids."""
        return {tensor.id: tensor for tensor in self.tensors}

    @cached_property
    def holder(self) -> Mapping[int, int]:
        """The id of the tensor that held each value, by the value's id."""
        return {value.id: value.tensor for value in self.values}

    @cached_property
    def grad_mode_switches(self) -> tuple[Operation, ...]:
        """The operations that turned grad mode or inference mode on or off, in their order."""
        names = tuple(f"{mode}({on})" for mode in ("set_grad_enabled", "inference_mode") for on in (True, False))
        return tuple(
            operation for step in self.steps for operation in step.operations if operation.name.startswith(names)
        )

    @cached_property
    def history(self) -> Mapping[int, bool]:
        """Whether each value has history, by the value's id."""
        return {value.id: value.history for value in self.values}


class Label(msgspec.Struct, frozen=True, rename={"span": "location"}):
    """A further place of a finding's story."""

    span: Span
    message: str


class Edit(msgspec.Struct, frozen=True, rename={"span": "location"}):
    """The text that should stand at a span."""

    span: Span
    text: str


TrialOutcome = Literal["mended", "helped", "unchanged", "broke", "stopped"]


class Trial(msgspec.Struct, frozen=True):
    """What came of a mend when the program was run again with it.

    `mended`: the finding is gone and nothing else is found; `helped`: it is gone, and what is told now is another one;
    `unchanged`: it is still told, or who suffered still gets no gradient; `broke`: the program raises where it did not;
    `stopped`: the time was up. `message` says it in words.
    """

    outcome: TrialOutcome
    message: str


class Help(msgspec.Struct, frozen=True):
    """A mend in words, with the edits that make it where the source says what they are; `tried` once it was."""

    message: str
    edits: tuple[Edit, ...] = ()
    tried: Trial | None = None


class Finding(msgspec.Struct, frozen=True, rename={"span": "location"}):
    """What a rule has to say: data only, reports turn it into text.

    `message` stands alone. `span` is the place of the cause, `caret` what is said under it. `tensors` are the
    names of those that suffer, `operations` the ids of the operations at which the gradient is cut off. Of a run in
    several processes, `ranks` are those that found it; empty for a single process. `raised` says that torch raised for
    it: a comment that allows it would not let the program run.
    """

    rule: str
    severity: Severity
    message: str
    span: Span | None
    caret: str = ""
    tensors: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    facts: tuple[str, ...] = ()
    help: tuple[Help, ...] = ()
    operations: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    raised: bool = False

    @property
    def allowed_at(self) -> int | None:
        """The line at whose end a comment may silence it, where that helps."""
        return None if self.raised or self.span is None else self.span.line
