"""The reproduction: claims, the experiments that decide them, and verdicts from records alone.

A claim is a table of `claims.toml`, which names its endpoint and its rule; what is run for it is in `experiments.toml`.
`run` leaves a record a run, `endpoints` makes of these one number a seed, `rules` a verdict and `report` tables.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "claims": ["CLAIMS"],
        "command": ["reproduce_claims"],
        "endpoints": ["contrast", "load_run", "observe", "record", "seeds_of"],
        "readme": ["verdict_overview"],
        "report": ["arm_estimates", "arms_of", "decide", "tally"],
        "rules": ["Effect", "Estimate", "Within"],
    },
)
