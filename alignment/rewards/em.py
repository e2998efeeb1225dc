"""Groups of annotators by hard expectation-maximisation, each group with a reward of its own.

MaxMin-RLHF (arXiv 2402.08925), Algorithm 2. Every annotator h belongs to one group. E step: h joins the group u that
explains all of its comparisons best,

    u(h) = argmax_u sum_{(y+, y-) of h} log sigmoid(r_u(y+) - r_u(y-)).

M step: r_u is fitted by maximum likelihood to the comparisons of its annotators, from where it stood.

Differs from the paper:
- The text speaks of soft assignment; its algorithm and its code assign hard, and so do we.
- An M step that lowers the likelihood of its group is taken back, so the likelihood of the whole never falls, whatever
  optimiser fits the rewards. A group without annotators keeps its reward, as in the released code.
- It stops when the assignment stays as it was, not after a fixed number of iterations.
- Several starts, of which the likeliest end is kept. The first is the round robin of the released code; it mixes the
  groups evenly, which is the saddle that hard assignment leaves worst. The others deal shuffled annotators.

Shape letters: ``K`` groups, ``N`` pairs, ``H`` annotators.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from alignment.errors import UserError

Pair = TypeVar("Pair")
Pair_contra = TypeVar("Pair_contra", contravariant=True)
Array = np.ndarray[Any, np.dtype[Any]]


class Component(Protocol[Pair_contra]):
    """The reward of one group."""

    def fit(self, pairs: Sequence[Pair_contra]) -> None:
        """Raise the likelihood of the pairs, from the present parameters."""
        ...

    def margins(self, pairs: Sequence[Pair_contra]) -> Array:
        """Reward of the winner minus reward of the loser, [N]."""
        ...

    def parameters(self) -> Any:
        """A copy of what ``fit`` changes."""
        ...

    def restore(self, parameters: Any) -> None:
        """Go back to a copy."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture(Generic[Pair]):
    """Where the iterations of one start ended.

    Attributes:
        components: the reward of each group.
        assignment: annotator -> group.
        log_likelihoods: nats, all pairs under the rewards of their annotators' groups: before the first M step, and
            after each E step; never falls.
        sizes: annotators of each group.
        is_converged: whether the assignment stayed as it was, rather than the iterations being spent.
        num_rejected: M steps taken back because they lowered the likelihood of their group.
        empty: groups without annotators at the end of some iteration; their rewards were left untouched in the next.
        start_log_likelihoods: where each start ended.
    """

    components: tuple[Component[Pair], ...]
    assignment: Mapping[str, int]
    log_likelihoods: tuple[float, ...]
    sizes: tuple[int, ...]
    is_converged: bool
    num_rejected: int
    empty: tuple[int, ...]
    start_log_likelihoods: tuple[float, ...]

    @property
    def num_iterations(self) -> int:
        """M steps of each group, which is how often each pair was fitted."""
        return len(self.log_likelihoods) - 1

    def members(self, group: int) -> tuple[str, ...]:
        """The annotators of a group, in their first order."""
        return tuple(name for name, own in self.assignment.items() if own == group)

    def margins(self, pairs: Sequence[Pair], annotators: Sequence[str]) -> Array:
        """Margins [N] under the reward of each annotator's own group."""
        groups_N = np.array([self.assignment[name] for name in annotators], dtype=int)
        margins_N = np.zeros(len(pairs))
        for group, component in enumerate(self.components):
            index_N = np.flatnonzero(groups_N == group)
            if len(index_N):
                margins_N[index_N] = component.margins([pairs[i] for i in index_N.tolist()])
        return margins_N


def fit_mixture(
    pairs: Sequence[Pair],
    annotators: Sequence[str],
    make_component: Callable[[], Component[Pair]],
    *,
    num_groups: int,
    max_iterations: int,
    num_starts: int = 1,
    seed: int = 0,
    report: Callable[[int, int, float], None] | None = None,
) -> Mixture[Pair]:
    """Divide annotators into groups and fit a reward to each.

    Args:
        pairs: comparisons; what they are is the component's business.
        annotators: who compared each pair.
        make_component: a reward before it is fitted.
        num_groups: K, at least 2.
        max_iterations: of one start.
        num_starts: how many divisions to start from.
        seed: of the starts after the first.
        report: called with start, iteration and log-likelihood after each E step.

    Returns:
        The end with the highest likelihood.

    Raises:
        UserError: if there are fewer annotators than groups.

    Example:
        >>> from alignment.rewards import LinearBradleyTerry
        >>> pairs = [np.array([1.0]), np.array([2.0]), np.array([-1.0]), np.array([-2.0])] * 2
        >>> found = fit_mixture(pairs, ["Ann", "Ann", "Bob", "Bob", "Cai", "Cai", "Dee", "Dee"],
        ...     lambda: LinearBradleyTerry(1, ridge=1.0), num_groups=2, max_iterations=10)
        >>> found.members(0), found.members(1)
        (('Ann', 'Cai'), ('Bob', 'Dee'))
    """
    assert len(pairs) == len(annotators) and max_iterations > 0 and num_starts > 0
    names = tuple(dict.fromkeys(annotators))
    if not 2 <= num_groups <= len(names):
        raise UserError(
            f"expected a number of groups from 2 to the {len(names)} annotators of the training pairs, found "
            f"{num_groups}; change it, or add annotators"
        )
    generator = np.random.default_rng(seed)
    best: _End[Pair] | None = None
    start_log_likelihoods = []
    for start in range(num_starts):
        dealt_H = np.arange(len(names)) % num_groups
        if start:
            dealt_H = generator.permutation(dealt_H)
        tell = None if report is None else lambda step, value, start=start: report(start, step, value)
        components = tuple(make_component() for _ in range(num_groups))
        end = _run(pairs, annotators, names, components, dealt_H, max_iterations, tell)
        start_log_likelihoods.append(end.log_likelihoods[-1])
        # No more than two sets of rewards at a time: they may be language models.
        if best is None or end.log_likelihoods[-1] > best.log_likelihoods[-1]:
            best = end
    assert best is not None
    return Mixture(
        components=best.components,
        assignment={name: int(group) for name, group in zip(names, best.groups_H, strict=True)},
        log_likelihoods=tuple(best.log_likelihoods),
        sizes=tuple(int(size) for size in np.bincount(best.groups_H, minlength=num_groups)),
        is_converged=best.is_converged,
        num_rejected=best.num_rejected,
        empty=tuple(sorted(best.empty)),
        start_log_likelihoods=tuple(start_log_likelihoods),
    )


def fit_single(component: Component[Pair], pairs: Sequence[Pair], *, num_fits: int) -> None:
    """Fit one reward to all pairs, as often as a mixture fitted each pair, so that the two can be compared."""
    margins_N = component.margins(pairs)
    for _ in range(num_fits):
        margins_N, _ = _improve(component, pairs, margins_N)


def agreement(assignment: Mapping[str, int], groups: Mapping[str, str]) -> float:
    """Share of annotators whose found group is their known one, under the best naming of the found groups, in (0, 1].

    Args:
        assignment: annotator -> found group.
        groups: annotator -> known group; annotators without one are left out.

    Example:
        >>> agreement({"Ann": 0, "Bob": 1, "Cai": 1}, {"Ann": "short", "Bob": "long", "Cai": "long"})
        1.0
    """
    known = sorted(set(groups.values()))
    names = [name for name in assignment if name in groups]
    counts = np.zeros((max(assignment.values()) + 1, len(known)))
    for name in names:
        counts[assignment[name], known.index(groups[name])] += 1
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(names))


@dataclass(slots=True)
class _End(Generic[Pair]):
    components: tuple[Component[Pair], ...]
    groups_H: Array
    log_likelihoods: list[float]
    is_converged: bool
    num_rejected: int
    empty: set[int]


def _run(
    pairs: Sequence[Pair],
    annotators: Sequence[str],
    names: Sequence[str],
    components: tuple[Component[Pair], ...],
    groups_H: Array,
    max_iterations: int,
    report: Callable[[int, float], None] | None,
) -> _End[Pair]:
    place = {name: h for h, name in enumerate(names)}
    owner_N = np.array([place[name] for name in annotators])
    margins_KN = np.stack([component.margins(pairs) for component in components])
    end = _End(components, groups_H, [_total(margins_KN, groups_H[owner_N])], False, 0, set())
    for iteration in range(max_iterations):
        for group, component in enumerate(components):
            index_N = np.flatnonzero(end.groups_H[owner_N] == group)
            if not len(index_N):
                continue
            _, is_better = _improve(component, [pairs[i] for i in index_N.tolist()], margins_KN[group, index_N])
            end.num_rejected += not is_better
            if is_better:
                margins_KN[group] = component.margins(pairs)
        fits_KH = np.stack(
            [np.bincount(owner_N, weights=log_sigmoid(margins_N), minlength=len(names)) for margins_N in margins_KN]
        )
        best_H = fits_KH.argmax(axis=0)
        # Of equal groups the present one: rewards that still coincide would otherwise all fall to the first.
        stay_H = fits_KH[end.groups_H, np.arange(len(names))] >= fits_KH.max(axis=0)
        assigned_H = np.where(stay_H, end.groups_H, best_H)
        end.is_converged = bool((assigned_H == end.groups_H).all())
        end.groups_H = assigned_H
        end.empty |= set(range(len(components))) - set(assigned_H.tolist())
        end.log_likelihoods.append(_total(margins_KN, assigned_H[owner_N]))
        if report is not None:
            report(iteration, end.log_likelihoods[-1])
        if end.is_converged:
            break
    return end


def _improve(component: Component[Pair], pairs: Sequence[Pair], margins_N: Array) -> tuple[Array, bool]:
    """Fit; take it back unless the likelihood of the pairs rose. Returns their margins, and whether it stands."""
    saved = component.parameters()
    component.fit(pairs)
    fitted_N = component.margins(pairs)
    # Written so that nan is taken back as well.
    if log_sigmoid(fitted_N).sum() > log_sigmoid(margins_N).sum():
        return fitted_N, True
    component.restore(saved)
    return margins_N, False


def log_sigmoid(margins: Array) -> Array:
    """log(1 / (1 + exp(-m))), in float64 and without overflow: the quotient of exponentials overflows at 700."""
    # A reward that diverged is nan, which the caller takes back; numpy need not warn of it.
    with np.errstate(invalid="ignore"):
        return -np.logaddexp(0.0, -np.asarray(margins, dtype=float))


def _total(margins_KN: Array, groups_N: Array) -> float:
    return float(log_sigmoid(margins_KN[groups_N, np.arange(len(groups_N))]).sum())
