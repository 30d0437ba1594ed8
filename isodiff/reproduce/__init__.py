"""The reproduction: claims, the experiments that decide them, and verdicts from records alone.

`run` leaves a record a run, `endpoints` makes of these one number a seed, `rules` a verdict and `report` tables.
"""

import lazy_loader

_NAMES = {
    "claims": "CLAIMS INSTRUMENTS experiments",
    "endpoints": "contrast load_run observe record seeds_of",
    "report": "arm_estimates arms_of check_names decide effect over_trainings tally write_report",
    "rules": "Effect Estimate Within holm",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
