"""Predictions that cannot reach their targets, since their last operation cuts them off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradscope.graph import limits, ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Compared, Help, Label, Tensor
from gradscope.graph.flow import StepFlow, flows
from gradscope.graph.naming import short_name
from gradscope.graph.targets import is_a_loss, layer_before
from gradscope.rules.claim import Claim, Need, Story, Trouble, rule
from gradscope.rules.mends import losses
from gradscope.rules.words import listed


@rule("warning", needs=[Need.OPERATIONS, Need.VALUES])
def squashed_output(ask: Ask) -> Iterator[Claim[Compared]]:
    """The last operation before the loss cuts off what the targets ask for.

    A ReLU gives nothing below 0, so targets below 0 are never met, and logits that are rectified get no gradient where
    they are 0. Sigmoid and tanh have limits as well. Dropout at the end of a regression sets predictions to 0.

    Bad:

        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(6):
            x = torch.randn(32, 4)
            loss = nn.functional.mse_loss(net(x).squeeze(1), 3 * x.sum(dim=1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for _ in range(6):
            x = torch.randn(32, 4)
            loss = nn.functional.mse_loss(net(x).squeeze(1), 3 * x.sum(dim=1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    found = [(flow, compared) for compared in ask.run.compared if (flow := _flow(ask, compared)) is not None]
    for flow, compared in found:
        if compared.squash.span is None or not is_a_loss(flow, compared.operation):
            continue
        if compared.beyond < limits.BEYOND:
            continue
        layer = layer_before(flow, compared.squash)
        for tensor in layer or (None,):
            yield Claim(compared.squash.span, compared, tensor, explains=(), besides=((Trouble.ZERO_GRADIENT, None),))


def _flow(ask: Ask, compared: Compared) -> StepFlow | None:
    """The step in which the first look was taken, if it is kept."""
    return next((flow for flow in ask(flows) if compared.operation in flow.step.operations), None)


@squashed_output.words
def _(told: Sequence[Claim[Compared]], ask: Ask) -> Story:
    compared = told[0].evidence
    squash, loss = short_name(compared.squash.name), short_name(compared.operation.name)
    tensors = dict.fromkeys(claim.tensor for claim in told if claim.tensor is not None)
    names = tuple(tensor.name for tensor in tensors if isinstance(tensor, Tensor) and tensor.name is not None)
    share = f"{compared.beyond:.0%}"
    facts: list[str] = []
    if ops.is_a(compared.squash, ops.DROPOUTS):
        message = f"dropout is the last operation before the loss: {share} of the predictions are set to 0"
        caret = "what comes out here goes to the loss, with holes"
        help_ = "leave the dropout after the last layer out: it belongs behind hidden layers"
    elif ops.is_a(compared.operation, ops.TAKES_LOGITS):
        message = f"the logits go through `{squash}` before the loss: {share} of them are cut off at 0"
        caret = f"`{squash}` sends back no gradient where it is 0, and `{loss}` needs logits below 0 as well"
        help_ = f"give the loss what the last layer computes, without `{squash}`"
    else:
        low, high = ops.RANGES[ops.spelled(compared.squash.name)]
        message = f"the predictions end in `{squash}`, and {share} of the targets lie beyond what it can give"
        caret = (
            f"gives nothing {'above' if low == float('-inf') else 'below'} {low:g}"
            if high == float("inf")
            else (f"gives nothing outside of {low:g} to {high:g}")
        )
        facts.append(f"the targets lie between {compared.low:.3g} and {compared.high:.3g}")
        help_ = f"leave `{squash}` out after the last layer, or scale the targets to its range"
    if names:
        facts.append(f"the layer before it: {listed(names)}")
    edits = losses.left_out(ask, compared.squash)
    labels = (Label(compared.operation.span, "compared here"),) if compared.operation.span is not None else ()
    if compared.operation.span == compared.squash.span:
        labels = ()
    return Story(message, compared.squash.span, caret, names, labels, tuple(facts), (Help(help_, edits),))
