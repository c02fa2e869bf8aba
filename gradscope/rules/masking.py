"""Masks that come too late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label
from gradscope.graph.masking import Masked, masked_probabilities
from gradscope.graph.naming import short_name, spelled_first
from gradscope.rules.claim import Claim, Story, rule
from gradscope.rules.mends.losses import normalised_again


@rule("warning")
def mask_after_softmax(ask: Ask) -> Iterator[Claim[Masked]]:
    """Probabilities are masked after the softmax, and nothing normalises them again.

    What is masked has taken its share of the softmax already. The weights that are left sum to less than 1, to the less
    the more is masked: the result depends on how much padding there is. Scores are masked before the softmax, with
    minus infinity.

    Bad:

        import torch
        from torch import nn

        score, out = nn.Linear(4, 1), nn.Linear(4, 1)
        optimizer = torch.optim.SGD([*score.parameters(), *out.parameters()], lr=0.1)
        for _ in range(3):
            words, length = torch.rand(8, 6, 4), torch.randint(1, 6, (8, 1))
            weights = score(words).squeeze(2).softmax(dim=1)
            weights = weights.masked_fill(torch.arange(6) >= length, 0.0)
            loss = out(torch.bmm(weights.unsqueeze(1), words)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import torch
        from torch import nn

        score, out = nn.Linear(4, 1), nn.Linear(4, 1)
        optimizer = torch.optim.SGD([*score.parameters(), *out.parameters()], lr=0.1)
        for _ in range(3):
            words, length = torch.rand(8, 6, 4), torch.randint(1, 6, (8, 1))
            scores = score(words).squeeze(2)
            weights = scores.masked_fill(torch.arange(6) >= length, float("-inf")).softmax(dim=1)
            loss = out(torch.bmm(weights.unsqueeze(1), words)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    for masked in ask(masked_probabilities):
        yield Claim(masked.mask.span, masked)


@mask_after_softmax.words
def _(told: Sequence[Claim[Masked]], ask: Ask) -> Story:
    masked = told[0].evidence
    made = [masked.flow.tensor(value) for value in (masked.probabilities, *masked.mask.outputs[:1])]
    names = [tensor.name for tensor in made if tensor is not None and tensor.name]
    name = f"`{names[0]}`" if names else "these probabilities"
    labels: tuple[Label, ...] = ()
    if masked.softmax.span is not None and masked.softmax.span != masked.mask.span:
        labels = (Label(masked.softmax.span, f"`{short_name(masked.softmax.name)}` makes them sum to 1 here"),)
    axis = next((reading.axis for reading in ask.run.softmaxes if reading.value in masked.softmax.inputs), None)
    edits = normalised_again(ask, masked.mask, axis) if axis is not None else ()
    return Story(
        "probabilities are masked after the softmax and never normalised again",
        masked.mask.span,
        f"of {name} some are set to 0 here, and the others sum to less than 1",
        tuple(dict.fromkeys((*names, *spelled_first(masked.mask.span, ask.run.sources)))),
        labels,
        ("note: what is masked has had its share: the result depends on how much there is of it",),
        (
            Help(
                'mask the scores before the softmax, with `masked_fill(mask, float("-inf"))`, or divide what is left '
                "by its sum",
                edits,
            ),
        ),
    )
