"""What is claimed, by whom, and what decides it: written before the runs.

A claim names its endpoint, a function of the records, and its rule (`isodiff.reproduce.decide`). Endpoints of two arms
are log ratios, paired by seed, so that −0.06 reads as −6 %. ``θ``, the smallest effect that counts, is half of the
smallest change that the paper reports for the quantity; of others 5 % or what its claim says.
All claims with an endpoint are primary and share one false discovery rate.

A claim without an endpoint says why it cannot be decided here.
"""

from __future__ import annotations

from isodiff.reproduce.claim import Claim
from isodiff.reproduce.claims_ablations import ablations
from isodiff.reproduce.claims_geometry import geometry
from isodiff.reproduce.claims_paths import paths
from isodiff.reproduce.claims_tables import tables

__all__ = ["CLAIMS", "Claim"]

CLAIMS: dict[str, Claim] = {claim.name: claim for claim in [*tables(), *ablations(), *geometry(), *paths()]}
"""Every claim by name, in the order of the verdict table."""
