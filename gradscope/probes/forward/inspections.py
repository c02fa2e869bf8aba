"""A look at the arguments of a few operations whose meaning depends on them: softmax in losses, dropout, batch norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from gradscope.folds.lookups import Lookups
from gradscope.folds.modes import ModeCount
from gradscope.probes.forward.lookups import look_up
from gradscope.probes.tensors.quiet import capturing, detached, unobserved
from gradscope.probes.tensors.shards import has_values, local
from gradscope.probes.training.overwriting import WRITERS, about_to_write

if TYPE_CHECKING:
    from gradscope.probes.forward.callsites import Site
    from gradscope.probes.records import ModuleMark, ValueRecord
    from gradscope.probes.tape import Tape

_LOOKS = 4  # at the values that one line squashes: reading them waits for the device
_LARGEST = 4_000_000


class Call(NamedTuple):
    """One call that is about to be made. `inputs` are the values of the tensors in its arguments."""

    func: Any
    site: Site
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: list[ValueRecord]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument that may be given by its place or by its name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


Look: TypeAlias = Callable[["Tape", Call], None]


def settle_modes(tape: Tape, optimizer: int) -> None:
    """An optimizer has stepped: count the modes in which modules ran for it."""
    for mark in tape.moded:
        if mark.modes is not None:
            mark.modes.step(optimizer)
    tape.moded.clear()


def _mode(place: int, name: str, default: bool, rate: int | None) -> Look:
    """Note the mode of an operation whose argument at `place` says whether it is training.

    `rate` is the place of a dropout rate: at 0 the mode makes no difference.
    """

    def look(tape: Tape, call: Call) -> None:
        modules: list[ModuleMark] | None = tape.local.__dict__.get("modules")
        if not modules or (rate is not None and not call.argument(rate, "p", 1)):
            return
        mark = modules[-1]
        if not torch.is_grad_enabled() or not any(history for _, _, history in call.inputs):
            if call.inputs and call.argument(place, name, default):
                tape.training_calls.append((call.inputs[0], mark))
            if not torch.is_grad_enabled():
                return
        if mark.modes is None:
            mark.modes = ModeCount(call.func.__name__)
        if mark.modes.run(bool(call.argument(place, name, default)), mark.switched):
            tape.moded.append(mark)

    return look


_UNPACKED, _PACKED = _mode(6, "train", False, 5), _mode(7, "train", False, 6)


def _recurrent(tape: Tape, call: Call) -> None:
    """The dropout between the layers of `nn.LSTM`; packed sequences come with one argument before the others."""
    (_UNPACKED if isinstance(call.args[2], list) else _PACKED)(tape, call)


def _squash(dim: int | None = None, place: int | None = None) -> Look:
    """Note where what is about to be squashed is made of probabilities already.

    Softmax works along `dim`, or along the argument at `place`; where both are None, on each element.
    """

    def look(tape: Tape, call: Call) -> None:
        where = call.func, call.site
        looks = tape.looks.get(where, 0)
        if looks >= _LOOKS or capturing():
            return
        tape.looks[where] = looks + 1
        value = call.argument(0, "input")
        record = next((record for record in call.inputs if record[1].ref() is value), None)
        if record is not None and place is not None:
            tape.softmaxes.append((record, _axis(value.dim(), call.argument(place, "dim"))))
        told = record is not None and value.is_floating_point() and has_values(local(value))
        if record is None or not told or not 1 < value.numel() <= _LARGEST:
            return
        along = dim if place is None else call.argument(place, "dim")
        along = -1 if along is not None and value.dim() == 1 else along
        with unobserved():
            low, high = torch.aminmax(detached(local(value)))
            if float(low) < 0 or float(high) > 1.0001:
                return
            summed = False
            if isinstance(along, int) and value.shape[along] > 1:
                summed = float((detached(local(value)).float().sum(along) - 1).abs().max()) < 0.01
            tape.probabilities.append((record, summed))

    return look


def _axis(dims: int, dim: Any) -> int:
    """The axis of a softmax. Where none is given, torch takes the first of 0, 1 or 3 dimensions, else the second."""
    if isinstance(dim, int):
        return dim % max(dims, 1)
    return 0 if dims in (0, 1, 3) else 1


def _masked(place: int) -> Look:
    """Where everything is masked for some row of attention, its softmax is NaN, and so is the gradient."""

    def look(tape: Tape, call: Call) -> None:
        if call.argument(place, "attn_mask") is not None or call.kwargs.get("key_padding_mask") is not None:
            tape.singular = True

    return look


def _looked_up(tape: Tape, call: Call) -> None:
    """Note how an embedding is asked for the row that it keeps for padding."""
    index, table, row = (call.argument(*at) for at in ((0, "input"), (1, "weight"), (2, "padding_idx")))
    if row is None or not torch.is_grad_enabled() or capturing():
        return
    record = next((record for record in call.inputs if record[1].ref() is table), None)
    if record is None or not 1 < index.numel() <= _LARGEST or not has_values(local(index)):
        return
    subject = record[1]
    row %= table.shape[0]
    counts = tape.lookups.setdefault(subject.serial, (subject, row, Lookups()))[2]
    if not counts.is_done:
        with unobserved():
            look_up(counts, local(index), row)


def _written(tape: Tape, call: Call) -> None:
    """Note that a tensor, the first argument, is about to be written over."""
    written = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
    about_to_write(tape, written, call.site)


_SQUASHING: dict[Any, Look] = {
    F.cross_entropy: _squash(dim=1),
    **dict.fromkeys((F.softmax, torch.softmax, torch.Tensor.softmax), _squash(place=1)),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, torch.Tensor.log_softmax), _squash(place=1)),
    **dict.fromkeys((F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss), _squash()),
    **dict.fromkeys((torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid, F.logsigmoid), _squash()),
}
SQUASHING = frozenset(_SQUASHING)

LOOKS: dict[Any, Look] = {
    **dict.fromkeys(WRITERS, _written),
    F.embedding: _looked_up,
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), _mode(2, "training", True, 1)),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), _mode(2, "training", False, 1)),
    torch.dropout: _mode(2, "train", False, 1),
    F.batch_norm: _mode(5, "training", False, None),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
    F.scaled_dot_product_attention: _masked(3),
    F.multi_head_attention_forward: _masked(17),
    **_SQUASHING,
}


def has_been_squashed(tape: Tape, func: Any, site: Site) -> bool:
    """Whether what a line squashes has been looked at often enough."""
    return tape.looks.get((func, site), 0) >= _LOOKS
