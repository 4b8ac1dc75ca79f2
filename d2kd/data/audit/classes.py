"""Compare how sets of data number their classes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

__all__ = ["check_numbers", "compare_classes"]


def compare_classes(
    lists: Mapping[str, Sequence[str]], chosen: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Find names that two lists of classes number differently.

    Names are compared exactly, and between lists only. One list may have `a` and `A`, or a name
    twice, as exports with a parent category do.

    Args:
        lists: place in the config -> names, in the order of their numbers.
        chosen: the places of subsets and pseudo labels, whose order a config chooses.

    Returns:
        messages that refuse, and warnings: about names that differ in their case only and have
        other numbers, and about numbers that have two names.
    """
    refused: list[str] = []
    warnings: list[str] = []
    for (a, first), (b, second) in combinations(lists.items(), 2):
        if list(first) == list(second):
            continue
        one, two = _numbers(first), _numbers(second)
        shared = [n for n in one if n in two]
        if wrong := [n for n in shared if one[n] != two[n]]:
            name = wrong[0]
            more = f" ({len(wrong)} names differ: {', '.join(wrong[:10])})" if wrong[1:] else ""
            fix = (
                "Register one of them with the classes of the other, or label with them "
                "(labels.classes)"
                if a in chosen or b in chosen
                else "Give both files the same `categories`, in the same order"
            )
            refused.append(
                f"classes: expected one order for all data, found {name!r} as number "
                f"{_list(one[name])} of {a} and as number {_list(two[name])} of {b}{more}. "
                f"{fix}."
            )
            continue
        warnings += _renamed(a, first, b, second)
        lower = {n.casefold(): (n, numbers) for n, numbers in one.items() if n not in two}
        for name, numbers in two.items():
            near = lower.get(name.casefold())
            if name not in one and near and near[1] != numbers:
                warnings.append(
                    f"classes: {near[0]!r} is number {_list(near[1])} of {a}, and {name!r} is "
                    f"number {_list(numbers)} of {b}. They differ in their case only: are they the "
                    f"same class?"
                )
    return refused, warnings


def _renamed(a: str, first: Sequence[str], b: str, second: Sequence[str]) -> list[str]:
    """A warning about numbers whose name in each list is not in the other list."""
    pairs = [
        (i, one, two)
        for i, (one, two) in enumerate(zip(map(str, first), map(str, second), strict=False))
        if one.casefold() != two.casefold() and one not in second and two not in first
    ]
    if not pairs:
        return []
    number, one, two = pairs[0]
    more = f", and {len(pairs) - 1} more numbers have two names" if pairs[1:] else ""
    return [
        f"classes: number {number} is {one!r} in {a} and {two!r} in {b}{more}. They count as one "
        f"class. If they are not, give both files the same `categories`."
    ]


def check_numbers(
    classes: Mapping[str, Sequence[str] | int], limit: int | None, field: str
) -> list[str]:
    """Refuse sets with more classes than a model has.

    On a GPU, a class number that is too large stops the first step with an assertion that names
    neither the field nor the data. Some detectors take the number K for the background.

    Args:
        classes: set -> the names of its classes or, where it has no names, how many there are.
        limit: K, the model's number of classes; None if it is not known.
        field: of the config.
    """
    refused = []
    for where, listed in classes.items():
        number, names = (listed, []) if isinstance(listed, int) else (len(listed), list(listed))
        if limit is None or number <= limit:
            continue
        more = f" There is no place for {_quoted(names[limit:])}." if names else ""
        refused.append(
            f"{field}: expected at least the {number} classes of {where}, found {limit}.{more}"
        )
    return refused


def _quoted(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:most])
    return f"{shown}, ... ({len(names)} classes)" if len(names) > most else shown


def _numbers(names: Iterable[str]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        numbers.setdefault(str(name), []).append(i)
    return numbers


def _list(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
