"""Read the curves of `anisotropy_race.py`: steps to a target, the best λ, and how the methods compare."""

from __future__ import annotations

import itertools
import math
import statistics


def steps_to(curve: dict, target: float) -> float | None:
    """Return the step at which a curve first meets the target, interpolated log-linearly; None where it does not."""
    points = list(zip(curve["step"], curve["anisotropy"], strict=True))
    for (before, high), (after, low) in itertools.pairwise(points):
        if low <= target:
            return before + (after - before) * (math.log(high / target) / math.log(high / low) if high > target else 0)
    return None


def _of(curves: list[dict], method: str, weight: float) -> list[dict]:
    return [curve for curve in curves if curve["method"] == method and curve["lambda"] == weight]


def best_lambda(curves: list[dict], method: str, lambdas: tuple[float, ...], targets: dict[int, float]) -> float:
    """Return the λ that reaches the targets, by seed, in the fewest steps; among equals the most isotropic."""

    def merit(weight: float) -> tuple[float, float]:
        runs = _of(curves, method, weight)
        needed = [steps_to(run, targets[run["seed"]]) for run in runs]
        mean = math.inf if None in needed else statistics.mean(needed)
        return mean, statistics.mean(run["anisotropy"][-1] for run in runs)

    return min(lambdas, key=merit)


def summarise(
    curves: list[dict], best: dict[str, float], targets: dict[int, float], step: dict[str, float]
) -> dict[str, dict]:
    """Return for each method and λ where it ended, what of it is the full term's, and when it reached the target.

    The released formula takes the full term's steps, at its own cost a step: that is what it is compared with.
    """
    found = {}
    for method in ("control", "full", "fraction", "lazy", "released"):
        for weight in sorted({curve["lambda"] for curve in curves if curve["method"] == method}):
            runs = _of(curves, method, weight)
            needed = [steps_to(run, targets[run["seed"]]) for run in runs]
            reached = None if None in needed else statistics.mean(needed)
            full = _of(curves, "full", weight)
            found[f"{method} {weight:g}"] = {
                "final_anisotropy": [run["anisotropy"][-1] for run in runs],
                "of_full": statistics.mean(a["anisotropy"][-1] / b["anisotropy"][-1]
                                           for a, b in zip(runs, full, strict=False)) if full else None,
                "held_out_dsm": [run["held_out_dsm"] for run in runs],
                "steps_to_target": needed,
                "cpu_seconds_to_target": None if reached is None else reached * step[method],
                "cpu_seconds_to_target_by_seed": [None if n is None else n * step[method] for n in needed],
                "released_over_this_by_seed": [
                    None if own is None or other is None else other * step["released"] / (own * step[method])
                    for own, other in zip(needed, (steps_to(run, targets[run["seed"]]) for run in full), strict=False)
                ],
                "best": weight == best.get(method),
            }  # fmt: skip
            if method == "released":
                pairs = zip(runs, full, strict=False)  # the released formula has the first seed only
                found[f"{method} {weight:g}"]["largest_difference_from_full"] = max(
                    abs(a / b - 1) for r, f in pairs for a, b in zip(r["anisotropy"], f["anisotropy"], strict=True)
                )
    return found
