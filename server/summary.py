"""What a calibration came to, in words for the person who has to rely on it."""

from demur.calibration import Certificate, VerdictCertificates, labels_needed
from demur.server.calibrate import Calibration


def summary(calibration: Calibration, name: str) -> str:
    """A few lines: what may be trusted, what is deferred, how probabilities were mapped, and what it rests on."""
    if calibration.slices:
        said = [f"{name}: certified slice by slice; shares are of a slice's decisions with enough label mass"]
    else:
        said = _promises(calibration, calibration.certificates, f"{name}: ", "")
    for value, certificates in calibration.slices.items():
        said += _promises(calibration, certificates, f"  {value}: ", f"  {value}: ")
    lines = [*said, _fitted(calibration)]
    lines += [line for say in (_left_out, _repeated, _spent, _family, _route) if (line := say(calibration))]
    return "\n".join(lines)


def _promises(calibration: Calibration, certificates: VerdictCertificates | None, first: str, others: str) -> list[str]:
    lines = [f"{others}{line}" for line in _not_deferred(calibration, certificates)]
    return [f"{first}{_trusted(calibration, certificates)}", *lines]


def _trusted(calibration: Calibration, certificates: VerdictCertificates | None) -> str:
    plan = calibration.plan
    if calibration.refusal:
        return f"nothing is certified and the probabilities stay as they are: {calibration.refusal}"
    if certificates is None:
        return "nothing is certified: no labelled row is left to certify with"
    certificate = certificates.trusted
    if certificate.threshold is None:
        return (
            f"trusts nothing: no threshold keeps the error at or below {level(plan.alpha)} "
            f"({level(1 - plan.delta)} confidence, n = {certificate.n}; {percent(_error(certificate))} of all "
            f"decisions are wrong here); {_needed(calibration, certificate)}"
        )
    return (
        f"trusts {percent(_share(calibration, certificate))} of decisions with at most {level(plan.alpha)} error "
        f"({level(1 - plan.delta)} confidence in the procedure, n = {certificate.n}; on average for traffic like "
        "this file, against these labels; not per decision or group)"
    )


def _not_deferred(calibration: Calibration, certificates: VerdictCertificates | None) -> list[str]:
    if certificates is None:
        return []
    certificate, beta = certificates.not_deferred, level(calibration.plan.beta)
    if certificate.threshold is None:
        why = _needed(calibration, certificate)
        return [f"no threshold keeps the error of what is not deferred at {beta}; {why}"]
    rest = 1 - _share(calibration, certificate)
    return [f"defers {percent(rest)}; among the rest, trusted or for review, at most {beta} error"]


def _needed(calibration: Calibration, certificate: Certificate) -> str:
    why = labels_needed(certificate)
    halved = why.further and calibration.plan.route == "split"
    return f"{why.explanation}, and as many again to fit on" if halved else why.explanation


def _fitted(calibration: Calibration) -> str:
    if calibration.refusal:
        return "calibrator: identity, which was kept; p_correct is not given"
    model = calibration.correctness
    more = ", with label mass, margin and entropy in p_correct" if model is not None and len(model.weights) else ""
    return (
        f"calibrator: {calibration.selection.calibrator.kind}, fitted on {calibration.counts.fitted} labels and chosen "
        f"by cross-validated likelihood{more}"
    )


def _left_out(calibration: Calibration) -> str | None:
    counts = calibration.counts
    reasons = [
        f"{number} {why}"
        for number, why in (
            (counts.low_label_mass, "with too little label mass, which are deferred whatever their score"),
            (counts.same_group, "beside another of their group"),
            (counts.searched, "read while the configuration was chosen"),
        )
        if number
    ]
    return f"not certifying: {'; '.join(reasons)}" if reasons else None


def _repeated(calibration: Calibration) -> str | None:
    alike, grouped = calibration.repeats, calibration.counts.same_group
    if not (alike or grouped):
        return None
    what = " and ".join(name for name, number in (("inputs", alike), ("groups", grouped)) if number)
    rows = f"{alike} rows repeat another's content and were left out; " if alike else ""
    return (
        f"{rows}each input and each group counts once, so all shares are of different {what}: where a few of them make "
        "up much of the traffic, its error may be another"
    )


def _spent(calibration: Calibration) -> str | None:
    """What must not be done next where nothing is trusted."""
    found = [calibration.certificates, *calibration.slices.values()]
    missed = [one for one in found if one is not None and one.trusted.threshold is None]
    if not missed or calibration.plan.attempt is not None:
        return None
    return (
        "all of delta is spent: try again on new rows only, not on these with more added to them; who plans to come "
        "back as labels come in counts --attempt from 1"
    )


def _family(calibration: Calibration) -> str | None:
    plan = calibration.plan
    if plan.family == 1:
        return None
    if plan.searched_elsewhere:
        return f"{plan.family} configurations were tried, on rows that certify nothing"
    return f"{plan.family} configurations were tried, so delta is {plan.spent:g} for each of them"


def _route(calibration: Calibration) -> str | None:
    if calibration.plan.route == "split":
        return "decisions are ranked by p_correct, fitted on one half of the rows; the other half certifies"
    return None


def _share(calibration: Calibration, certificate: Certificate) -> float:
    """Of all decisions, those of too little label mass included, which never reach a threshold."""
    counts = calibration.counts
    if calibration.slices:
        return certificate.certified_coverage
    rows = certificate.n + counts.same_group
    heavy = rows / (rows + counts.low_label_mass)
    return certificate.certified_coverage * heavy


def _error(certificate: Certificate) -> float:
    return certificate.errors / certificate.n


def level(value: float) -> str:
    """A level for a sentence, as it was asked for: a rounded one would promise what was not certified."""
    return f"{100 * value:.10g}%"


def percent(share: float) -> str:
    """A share for a sentence, without digits that it does not have: 5%, 2.5%, 61%."""
    return f"{100 * share:.1f}".removesuffix(".0") + "%" if share < 0.1 else f"{100 * share:.0f}%"
