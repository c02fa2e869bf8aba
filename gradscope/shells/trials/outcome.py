"""What came of a mend: two reports of a program, before it and with it."""

from __future__ import annotations

from gradscope.graph.facts import Finding, Trial
from gradscope.reports.document import Document, Raised, TensorRow
from gradscope.reports.report import Report
from gradscope.rules.words import listed

# A program that ends within fewer of its steps was not mended but cut short.
_ENOUGH_STEPS = 0.5


def outcome(finding: Finding, before: Report, after: Report | None, seconds: float | None = None) -> Trial:
    """What came of a mend for one finding of the report `before`; `after` is None where its time was up."""
    if after is None:
        return Trial("stopped", f"the program had not ended after {seconds:g} s: give it more with --timeout")
    raised = _new_exception(before.document, after.document)
    if raised is not None:
        where = f" at {raised.file}:{raised.line}" if raised.file is not None else ""
        message = raised.message.partition("\n")[0]
        return Trial("broke", f"then it raises {raised.type}{where}" + (f": {message}" if message else ""))
    numbers = _numbers(finding, before.document, after.document)
    still = next((other for other in after.at_least("warning") if is_same(finding, other)), None)
    if still is not None:
        return Trial("unchanged", f"it did not help: {still.message}")
    steps, as_before = after.document.run.steps, before.document.run.steps
    if steps < as_before * _ENOUGH_STEPS:
        return Trial("unchanged", f"it did not help: the program then ends after {steps} of its {as_before} steps")
    lacking = _lacking(finding, before.document, after.document)
    if lacking:
        return Trial("unchanged", f"it did not help: {listed(lacking)} still {_gets(lacking)} no gradient")
    known = before.at_least("warning")
    new = next((f for f in after.at_least("warning") if not any(is_same(other, f) for other in known)), None)
    if new is not None:
        return Trial("helped", f"{numbers}; then {new.severity}[{new.rule}] is found: {new.message}")
    return Trial("mended", numbers)


def is_same(one: Finding, other: Finding) -> bool:
    """Whether two reports tell the same: the rule is, and so is one who suffers, or the place where nobody is named."""
    if one.rule != other.rule:
        return False
    if one.tensors and other.tensors:
        return not set(one.tensors).isdisjoint(other.tensors)
    places = [(f.span.file, f.span.line) if f.span is not None else None for f in (one, other)]
    return places[0] == places[1]


def _new_exception(before: Document, after: Document) -> Raised | None:
    raised, known = after.run.exception, before.run.exception
    if raised is None or (known is not None and (raised.type, raised.message) == (known.type, known.message)):
        return None
    return raised


def _learning(row: TensorRow | None) -> int:
    """The steps in which a tensor got a gradient of use."""
    got = row.received if row is not None else None
    return got.steps - got.zero - got.nonfinite if got is not None else 0


def _rows(document: Document) -> dict[str, TensorRow]:
    return {row.name: row for row in document.tensors if row.requires_grad or row.received is not None}


def _lacking(finding: Finding, before: Document, after: Document) -> list[str]:
    """Who got no gradient before and gets none now, though others of the same finding may."""
    old, new = _rows(before), _rows(after)
    return [
        name
        for name in finding.tensors
        if name in old and old[name].leaf and name in new and not _learning(old[name]) and not _learning(new[name])
    ]


def _gets(names: list[str]) -> str:
    return "gets" if len(names) == 1 else "get"


def _numbers(finding: Finding, before: Document, after: Document) -> str:
    """What changed, in numbers: gradients that arrive, and the loss."""
    old, new = _rows(before), _rows(after)
    now = [name for name in finding.tensors if _learning(new.get(name)) > _learning(old.get(name))]
    parts = []
    if now:
        received = new[now[0]].received
        of = received.of if received is not None else 0
        parts.append(f"then {listed(now)} {_gets(now)} a gradient in {_learning(new[now[0]])} of {of} steps")
    else:
        parts.append("then nothing of it is found")
    known = {loss.name: loss for loss in before.losses}
    for loss in after.losses[:1]:
        was = known.get(loss.name)
        parts.append(f"loss {_value(loss.first)} -> {_value(loss.last)}")
        parts[-1] += f" (was {_value(was.last)})" if was is not None else ""
    return ", ".join(parts)


def _value(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.3g}"
