"""Read the curves of `anisotropy_race.py`: steps to a target, the best λ, and how the methods compare."""

import itertools
import math
import statistics


def steps_to(curve: dict, target: float) -> float:
    """Return the step at which a curve first meets the target, interpolated log-linearly; infinity if never."""
    points = list(zip(curve["step"], curve["anisotropy"], strict=True))
    for (before, high), (after, low) in itertools.pairwise(points):
        if low <= target:
            return before + (after - before) * (math.log(high / target) / math.log(high / low) if high > target else 0)
    return math.inf


def best_lambda(curves: list[dict], method: str, lambdas: tuple[float, ...], targets: dict[int, float]) -> float:
    """Return the λ that reaches the targets, by seed, in the fewest steps; among equals the most isotropic."""

    def merit(weight: float) -> tuple[float, float]:
        runs = [curve for curve in curves if (curve["method"], curve["lambda"]) == (method, weight)]
        needed = statistics.mean(steps_to(run, targets[run["seed"]]) for run in runs)
        return needed, statistics.mean(run["anisotropy"][-1] for run in runs)

    return min(lambdas, key=merit)


def summarise(curves: list[dict], targets: dict[int, float], step: dict[str, float]) -> dict[str, dict]:
    """Return for each method and λ what of the full term's anisotropy it ended with, and how fast it was.

    The released formula takes the full term's steps, at its own cost a step: that is what it is compared with.
    """
    found: dict[str, dict] = {}
    full = {(curve["lambda"], curve["seed"]): curve for curve in curves if curve["method"] == "full"}
    for run in curves:
        if (rival := full.get((run["lambda"], run["seed"]))) is None:  # of the control
            continue
        row = found.setdefault(f"{run['method']} {run['lambda']:g}", {"of_full": [], "released_over_this_by_seed": []})
        row["of_full"].append(run["anisotropy"][-1] / rival["anisotropy"][-1])
        own, other = (steps_to(curve, targets[run["seed"]]) for curve in (run, rival))
        ratio = other * step["released"] / (own * step[run["method"]])
        row["released_over_this_by_seed"].append(ratio if math.isfinite(own + other) else None)
    return {name: row | {"of_full": statistics.mean(row["of_full"])} for name, row in found.items()}
