"""What steps do to a tensor, counted from lists of them."""

from __future__ import annotations

from gradscope.folds.movement import Move, Moves, is_due


def fold(*moves: Move) -> Moves:
    """The counts of some steps."""
    counted = Moves()
    for move in moves:
        counted.take(move)
    return counted


def test_the_first_steps_are_looked_at_and_then_few() -> None:
    """A look costs as much as a copy of all tensors."""
    assert [steps for steps in range(30) if is_due(steps)] == [*range(8), 8, 16, 24]


def test_a_step_with_a_gradient_moves_or_does_not() -> None:
    """Without a gradient, with an old one or with zeros nothing is expected of it."""
    moves = fold(Move(0.5, 2.0, 1.0), Move(0.0, 2.0, 1.0), Move(0.0, 2.0, None), Move(0.0, 2.0, 0.0))
    assert (moves.stirred, moves.still) == (1, 1)
    assert fold(Move(0.5, 2.0, 1.0, fresh=False)).stirred == 0
    assert moves.updates.points == [0.25, 0.0, 0.0, 0.0]
    assert fold(Move(0.5, 0.0, 1.0)).updates.points == []  # nothing to divide by


def test_what_is_frozen_and_moves_is_told_apart() -> None:
    """By an old gradient, or in elements whose gradient was set to zero."""
    moves = fold(*[Move(0.5, 2.0, 1.0, fresh=False, frozen=True)] * 3, Move(0.0, 2.0, 1.0, fresh=False, frozen=True))
    assert (moves.moved_frozen, moves.stirred) == (3, 0)


def test_the_latest_rate_and_how_often_it_was_zero() -> None:
    """As a schedule leaves it."""
    moves = fold(*(Move(0.1, 1.0, 1.0, rate=rate) for rate in (0.0, 0.1, None, 0.0)))
    assert (moves.rate, moves.rate_zero) == (0.0, 2)
