"""The reproduction: claims, the experiments that decide them, and verdicts from records alone.

`run` leaves a record a run, `endpoints` makes of these one number a seed, `rules` a verdict and `report` tables.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "claims": ["CLAIMS", "INSTRUMENTS"],
        "command": ["reproduce_claims"],
        "endpoints": ["contrast", "load_run", "observe", "record", "seeds_of"],
        "report": ["arm_estimates", "arms_of", "decide", "effect", "over_trainings", "tally"],
        "rules": ["Effect", "Estimate", "Within", "holm"],
    },
)
