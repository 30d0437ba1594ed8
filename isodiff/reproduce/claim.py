"""What a claim consists of, and what several of them share."""

from __future__ import annotations

import dataclasses
from typing import Any

from isodiff.reproduce.decide import Rule
from isodiff.reproduce.endpoints import Endpoint, contrast

HAHM, TANGENTIAL, DIGEST = "Hahm et al. 2024", "Saito and Matsubara 2025", "digest of Hahm et al."
"""The three sources; the digest is a third party's summary of the first, with questions of its own."""

SETTING = {
    "faces32": "32², one base, fine-tuned once a seed",
    "faces16": "16², a base and its fine-tuning a seed",
    "latent64": "latents of 64², one base, fine-tuned once a seed",
}
"""What a seed is, for the texts of protocols; the sizes are in the records."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    Attributes:
        name: To ask for it on the command line.
        group: The table or section it is listed under.
        statement: In one sentence.
        source: Where it is made.
        paper: The paper's value, as text; "–" where there is none.
        endpoint: Reads the records of a folder; None if the claim cannot be decided here.
        rule: What decides.
        unit: How the endpoint reads: "%" and "log" for log ratios, shown as a change and as a factor; else a plain
            number's unit.
        reason: Why there is no endpoint.
        settled: The verdict, where the source's own numbers decide and nothing is to be measured.
        protocol: What is measured, in a few words.
    """

    name: str
    group: str
    statement: str
    source: str
    paper: str = "–"
    endpoint: Endpoint | None = None
    rule: Rule | None = None
    unit: str = "%"
    reason: str = ""
    settled: str = ""
    protocol: str = ""

    def __post_init__(self) -> None:
        """Refuse a claim that nothing decides and that does not say why."""
        if (self.endpoint is None) != (self.rule is None) or (self.endpoint is None) != bool(self.reason):
            raise ValueError(f"{self.name} needs an endpoint with a rule, or a reason why there is none")

    @property
    def experiments(self) -> tuple[str, ...]:
        """Whose records it needs."""
        return self.endpoint.experiments if self.endpoint else ()


def paired(
    experiment: str, quantity: str, rule: Rule, first: str = "isometric", second: str = "control"
) -> dict[str, Any]:
    """Return the fields of a claim about the log ratio of two arms of one experiment."""
    return {"endpoint": contrast(experiment, quantity, first, second), "rule": rule}
