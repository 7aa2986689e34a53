"""Which members of a policy go together: the rules that task files and live policies share."""

from collections.abc import Iterator

from demur.decision.task import PolicyKind, PolicySpec, Scale

#: Costs and prices are at most this, so that sums of them stay exact enough to compare.
MAX_PRICE = 1e9

#: What each kind takes besides `min_label_mass`; those in the second place it needs.
_MEMBERS: dict[PolicyKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    PolicyKind.FIXED: (("allow_uncalibrated", "trust_at", "defer_below", "scale"), ()),
    PolicyKind.CERTIFIED: ((), ()),
    PolicyKind.COST: (("cost", "review_price", "defer_price"), ("cost", "review_price", "defer_price")),
    PolicyKind.BUDGET: (("to_people",), ("to_people",)),
}


def policy_faults(policy: PolicySpec, options: int) -> Iterator[tuple[str, str]]:
    """What is wrong with a policy for a question of so many options, as (member, message); nothing if it is sound.

    Ranges of single numbers are the readers' to check, except those of `cost`.
    """
    taken, needed = _MEMBERS[policy.rule]
    default = PolicySpec()
    for names, _ in _MEMBERS.values():
        for name in names:
            if name not in taken and getattr(policy, name) != getattr(default, name):
                kinds = " or ".join(kind for kind, (theirs, _) in _MEMBERS.items() if name in theirs)
                yield name, f"`{name}` is for `kind: {kinds}`, and this policy is `{policy.rule}`; remove one of them"
    for name in needed:
        if getattr(policy, name) is None:
            yield name, f"`kind: {policy.rule}` needs `{name}`; add it"
    if policy.trust_at is not None and policy.defer_below is not None and policy.defer_below > policy.trust_at:
        yield (
            "defer_below",
            f"`defer_below` ({policy.defer_below:g}) is above `trust_at` ({policy.trust_at:g}); lower it",
        )
    if policy.allow_uncalibrated and policy.trust_at is None:
        yield "allow_uncalibrated", "`allow_uncalibrated` trusts raw probabilities, so it needs `trust_at`; add it"
    if policy.allow_uncalibrated and policy.scale is Scale.SCORE:
        yield "scale", "`scale: score` is a bundle's score, and `allow_uncalibrated` is trust without one; remove one"
    if policy.cost is not None:
        yield from _cost_faults(policy.cost, options)


def _cost_faults(cost: tuple[tuple[float, ...], ...], options: int) -> Iterator[tuple[str, str]]:
    if len(cost) != options or any(len(row) != options for row in cost):
        shape = f"{len(cost)} rows of {', '.join(map(str, sorted({len(row) for row in cost}))) or 0}"
        yield "cost", f"`cost` has {shape}; {options} options need {options} rows of {options} numbers"
    if not all(0 <= value <= MAX_PRICE for row in cost for value in row):
        yield "cost", f"`cost` must hold numbers from 0 to {MAX_PRICE:g}"
