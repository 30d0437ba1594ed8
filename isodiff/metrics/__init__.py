"""Measurements: each a pure function on arrays, with a driver that samples and returns a `Measurement`.

| question | driver | arithmetic, and what it stands on |
|---|---|---|
| are the images good? | `fidelity` | `feature_distances`; `networks` ← `weights`, `weight_formats` |
| do they change at a steady pace? | `path_length` | `path_steps`; `path_noise` for the choice of ε |
| are paths straight in H? | `trajectory` | |
| is a map an isometry? | `spectrum` | `isotropy`, `points`; `maps` says which map |
| do attributes separate? | `separability` | `support_vectors`; `attributes` ← `attribute_{config,labels,training}` |
| what does the truth say? | `truth`, `tangent` | `factor_paths`, `subspaces` |
| does an edit do what it should? | `editing`, `inversion` | `effects`, `smoothness` |
| which way from one image to another? | `interpolation` | |
| all of them, of one model | `evaluation` | `suite` lists them; `record` is what is left behind |

Common to all: `generator` (latents by number, the sampler as a map), `measurement` (a number with its interval, and
differences in pairs), `intervals`, `store` (finished work on disk), `precision`.

The drivers can be imported from here; each is loaded, with the library behind it, when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_DRIVERS = {
    "fid": "fidelity",
    "kid": "fidelity",
    "perceptual_path_length": "path_length",
    "relative_trajectory_length": "trajectory",
    "mean_condition_number": "spectrum",
    "metric_variance": "spectrum",
    "linear_separability": "separability",
    "path_truth": "truth",
    "tangent_alignment": "truth",
    "path_smoothness": "smoothness",
    "direction_effects": "editing",
    "inversion_error": "inversion",
    "interpolation_quality": "interpolation",
    "compare": "measurement",
    "Measurement": "measurement",
    "evaluate": "evaluation",
}

__all__ = list(_DRIVERS)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module holds
    if name not in _DRIVERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_DRIVERS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DRIVERS])
