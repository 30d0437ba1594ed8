"""What `isodiff reproduce` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from isodiff.files import claim_folder, data_directory, repository_root, resolve_device
from isodiff.reproduce.claims import CLAIMS, experiments
from isodiff.reproduce.report import check_names, decide, tally, write_report


def reproduce_claims(
    claims: Sequence[str] = (),
    *,
    list_only: bool = False,
    profile: str = "cpu",
    output: str | Path | None = None,
    work: str | Path | None = None,
    jobs: int = 2,
    device: str = "cpu",
    photographs: str | None = None,
    report: bool = False,
    progress: bool = True,
) -> int:
    """Decide the papers' claims, by running what has no record yet; return 1 if a run has failed, and otherwise 0."""
    names = check_names(claims) if claims else list(CLAIMS)
    known = experiments(profile)
    unasked = {name for name, e in known.items() if getattr(e, "dataset", "") == "photographs"}
    if photographs and not any(unasked & set(CLAIMS[name].experiments) for name in names):
        raise ValueError("none of these claims is about photographs; leave out --photographs, or the claims")
    if list_only:
        for claim in (CLAIMS[name] for name in names):
            print(f"{claim.name:24} {claim.statement}\n{'':24} {claim.protocol or claim.reason}")
        return 0
    own = repository_root() / "runs" / "reproduce" / profile
    records = data_directory() / "results" / "reproduce" if profile == "cpu" else own / "records"
    output, work = Path(output or records), Path(work or own / "work")
    for folder, ours in ((output, (*known, "verdicts.json")), (work, ("models", "cache"))):
        claim_folder(folder, ours, overwrite=None)
    if not report:
        from isodiff.reproduce.run import Place, reproduce

        needed = {name for claim in names for name in CLAIMS[claim].experiments}
        needed |= set() if claims else known.keys()  # what notebooks ask beside the claims
        needed -= set() if photographs else unasked
        chosen = {name: e for name, e in known.items() if name in needed}
        place = Place(profile, output, work, str(resolve_device(device)), photographs)
        if failures := reproduce(chosen, place, jobs=jobs, progress=progress):
            print("\n".join(f"FAILED {failure}" for failure in failures), file=sys.stderr)
            return 1
    decisions = decide(output, names)
    for decision in decisions:
        claim = decision.claim
        print(f"{decision.verdict:18} {claim.name:24} {claim.statement}\n{'':43} {decision.ours}")
    print(f"\n{len(decisions)} claims: {tally(decisions)}")
    if not claims:
        print(f"written: {write_report(output)}")
    return 0
