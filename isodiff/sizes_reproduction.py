"""What the last two notebooks can be told, every size explained; the values are in `isodiff.profiles`."""

from __future__ import annotations

import dataclasses

from isodiff.sizes import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationSettings(Settings):
    """Sizes of ``11_ablations_and_cost``: of what runs live, beside the records of the reproduction.

    Attributes:
        records: Folder of the records; ``""`` is ``data/results/reproduce``.
        num_live_steps: Steps of each live fine-tuning run, at least 2.
        batch_size: Images a step.
        lambda_iso: Weight of the isotropy in it.
    """

    records: str = ""
    num_live_steps: int
    batch_size: int
    lambda_iso: float = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerdictSettings(Settings):
    """Sizes of ``12_verdict``.

    Attributes:
        records: Folder of the records; ``""`` is ``data/results/reproduce``.
    """

    records: str = ""
