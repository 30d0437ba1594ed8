"""The command `isodiff reproduce`: claims, by running what decides them or from records alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from isodiff.paths import data_directory, repository_root, require_folder


def add_reproduce(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff reproduce``."""
    parser = subparsers.add_parser(
        "reproduce",
        help="decide the papers' claims, by running what decides them",
        description="Run the experiments behind claims, one record a run, and decide the claims from the records. "
        "What has a record is not run again; interrupted, it goes on when it is given again.",
    )
    parser.add_argument(
        "claims",
        nargs="*",
        metavar="CLAIM",
        help="such as table1-ppl-faces16, or table1 for all that begin so; default: all. See --list",
    )
    parser.add_argument("--list", action="store_true", help="list the claims with what decides them, and run nothing")
    parser.add_argument("--profile", default="cpu", help="smoke (minutes), cpu (hours, default) or gpu (paper scale)")
    parser.add_argument(
        "--output", metavar="DIR", help="records (default: data/results/reproduce at cpu, else runs/reproduce/PROFILE)"
    )
    parser.add_argument("--work", metavar="DIR", help="models and cache (default: runs/reproduce/PROFILE/work)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--photographs", metavar="PATH", help="folder or tar of photographs, for profile gpu")
    parser.add_argument("--report", action="store_true", help="only decide from the records there are")
    parser.add_argument("--readme", action="store_true", help="also put verdicts and figures into README.md")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=_reproduce)


def _reproduce(options: argparse.Namespace) -> int:
    from isodiff.files import write_whole
    from isodiff.parameters import resolve_device
    from isodiff.reproduce.claims import CLAIMS
    from isodiff.reproduce.experiments import experiments
    from isodiff.reproduce.report import check_names, decide, tally, write_report
    from isodiff.reproduce.runner import Place, reproduce

    names = check_names(options.claims) if options.claims else list(CLAIMS)
    experiments(options.profile)  # refuses an unknown one before a folder is made
    if options.photographs and (options.profile != "gpu" or options.claims):
        raise ValueError("photographs are for profile gpu and all claims; leave out --photographs, or the claims")
    if options.readme and (options.profile != "cpu" or options.claims or options.output):
        raise ValueError("README.md tells of all claims at profile cpu; leave out what chooses others, or --readme")
    if options.list:
        for claim in (CLAIMS[name] for name in names):
            print(f"{claim.name:24} {claim.statement}\n{'':24} {claim.protocol or claim.reason}")
        return 0
    own = repository_root() / "runs" / "reproduce" / options.profile
    shipped = data_directory() / "results" / "reproduce"
    output = Path(options.output) if options.output else shipped if options.profile == "cpu" else own / "records"
    work = Path(options.work) if options.work else own / "work"
    for folder in (output, work):
        require_folder(folder)
    failures: list[str] = []
    if not options.report:
        place = Place(options.profile, output, work, str(resolve_device(options.device)), options.photographs)
        needed = dict.fromkeys(e for name in names for e in CLAIMS[name].experiments)
        if options.photographs and not options.claims and "photos64" in experiments(options.profile, photographs=""):
            needed["photos64"] = None
        failures = reproduce(place, needed, jobs=options.jobs, progress=not options.no_progress)
        for failure in failures:
            print(f"FAILED {failure}", file=sys.stderr)
    if failures:
        return 1
    decisions = decide(output, names)
    for decision in decisions:
        claim = decision.claim
        print(f"{decision.verdict:18} {claim.name:24} {claim.statement}\n{'':43} {decision.ours}")
    print(f"\n{len(decisions)} claims: {tally(decisions)}")
    if not options.claims:
        for path in write_report(output):
            print(f"written: {path}")
    if options.readme:
        from isodiff.reproduce.figures import write_figures
        from isodiff.reproduce.readme import fill_readme, readme_blocks

        readme, notebooks = repository_root() / "README.md", repository_root() / "notebooks"
        text = fill_readme(readme.read_text(encoding="utf-8"), readme_blocks(output, notebooks))
        figures = write_figures(output, notebooks, data_directory() / "figures")
        write_whole(readme, text)
        for path in (*figures, readme):
            print(f"written: {path}")
    return 0
