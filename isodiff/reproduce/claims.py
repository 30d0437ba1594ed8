"""What is claimed, by whom, and what decides it: written before the runs.

A claim names its endpoint, a function of the records, and its rule (`isodiff.reproduce.decide`). Endpoints of two arms
are log ratios, paired by seed, so that −0.06 reads as −6 %. ``θ``, the smallest effect that counts, is half of the
smallest change that the paper reports for the quantity; of quantities the paper does not report it is 5 %. Primary
claims share one false discovery rate; the others are shown with their plain intervals, as context.

A claim without an endpoint says why it cannot be decided here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from scipy.stats import spearmanr

from isodiff.reproduce.decide import Effect, Estimate, Rule, Within
from isodiff.reproduce.observations import load_run, observe, seeds_of

Endpoint = Callable[[Path], Estimate]

HAHM, TANGENTIAL, DIGEST = "Hahm et al. 2024", "Saito and Matsubara 2025", "digest of Hahm et al."


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
        unit: How the endpoint reads: "%" for a log ratio, "" for a plain number.
        experiments: Whose records it needs.
        primary: Whether it shares the false discovery rate.
        reason: Why there is no endpoint.
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
    experiments: tuple[str, ...] = ()
    primary: bool = True
    reason: str = ""
    protocol: str = ""

    def __post_init__(self) -> None:
        """Refuse a claim that nothing decides and that does not say why."""
        if (self.endpoint is None) != (self.rule is None) or (self.endpoint is None) != bool(self.reason):
            raise ValueError(f"{self.name} needs an endpoint with a rule, or a reason why there is none")


def level(experiment: str, quantity: str, arm: str = "run") -> Endpoint:
    """Return the endpoint that is one quantity of one arm."""

    def read(folder: Path) -> Estimate:
        seeds = seeds_of(folder, experiment, arm)
        return Estimate.of([_value(folder, experiment, arm, seed, quantity) for seed in seeds])

    return read


def contrast(experiment: str, quantity: str, first: str, second: str, *, ratio: bool = True) -> Endpoint:
    """Return the endpoint that sets two arms of the same seed side by side: log first/second, or first − second."""

    def read(folder: Path) -> Estimate:
        seeds = [s for s in seeds_of(folder, experiment, first) if s in seeds_of(folder, experiment, second)]
        pairs = [[_value(folder, experiment, arm, seed, quantity) for arm in (first, second)] for seed in seeds]
        return Estimate.of([math.log(a / b) if ratio else a - b for a, b in pairs])

    return read


def two_quantities(experiment: str, first: str, second: str, arm: str = "run", *, ratio: bool = True) -> Endpoint:
    """Return the endpoint that sets two quantities of one arm side by side."""

    def read(folder: Path) -> Estimate:
        seeds = seeds_of(folder, experiment, arm)
        pairs = [[_value(folder, experiment, arm, seed, quantity) for quantity in (first, second)] for seed in seeds]
        return Estimate.of([math.log(a / b) if ratio else a - b for a, b in pairs])

    return read


def across(experiment: str, first: tuple[str, str], second: tuple[str, str]) -> Endpoint:
    """Return log of one arm's quantity over another arm's other quantity: (arm, quantity) each."""

    def read(folder: Path) -> Estimate:
        seeds = [s for s in seeds_of(folder, experiment, first[0]) if s in seeds_of(folder, experiment, second[0])]
        return Estimate.of(
            [
                math.log(_value(folder, experiment, *first[:1], seed, first[1]))
                - math.log(_value(folder, experiment, *second[:1], seed, second[1]))
                for seed in seeds
            ]
        )

    return read


def rank_correlation(experiment: str, one: str, other: str) -> Endpoint:
    """Return Spearman's correlation of two quantities over the fine-tuned arms that have both, one a seed."""

    def read(folder: Path) -> Estimate:
        arms = sorted({file.stem.split("-seed")[0] for file in (folder / experiment).glob("*-seed*.json")} - {"base"})
        arms = [arm for arm in arms if one in load_run(folder / experiment / f"{arm}-seed0.json")["measurements"]]
        seeds = sorted(set.intersection(*(set(seeds_of(folder, experiment, arm)) for arm in arms)))
        found = []
        for seed in seeds:
            pairs = [[_value(folder, experiment, arm, seed, quantity) for quantity in (one, other)] for arm in arms]
            found.append(float(spearmanr(*zip(*pairs, strict=True)).statistic))
        return Estimate.of(found)

    return read


def drop_late_over_early(experiment: str, first: str, second: str) -> Endpoint:
    """Return how much more log RTL falls where the term acts (t ≥ 500) than elsewhere."""
    late, early = (contrast(experiment, f"rtl_{part}", first, second) for part in ("late", "early"))
    return lambda folder: Estimate.of([a - b for a, b in zip(late(folder).values, early(folder).values, strict=True)])


def isotropy_spread(arms: dict[str, str]) -> Endpoint:
    """Return the spread of log isotropy over experiments, largest minus smallest, one a seed: {experiment: arm}."""

    def read(folder: Path) -> Estimate:
        common = set.intersection(*(set(seeds_of(folder, name, arm)) for name, arm in arms.items()))
        logs = [
            [math.log(_value(folder, name, arm, seed, "isotropy")) for name, arm in arms.items()]
            for seed in sorted(common)
        ]
        return Estimate.of([max(row) - min(row) for row in logs])

    return read


def _value(folder: Path, experiment: str, arm: str, seed: int, quantity: str) -> float:
    return observe(load_run(folder / experiment / f"{arm}-seed{seed}.json"), quantity)


def _pair(experiment: str, quantity: str, rule: Rule, first: str = "isometric", second: str = "control") -> dict:
    return {"endpoint": contrast(experiment, quantity, first, second), "rule": rule, "experiments": (experiment,)}


_RATIO = {"PPL": "ppl_alex_full", "mRTL": "mrtl", "MCN": "mcn", "VoR": "vor", "FID": "fid"}

# θ: half of the smallest change in the table; of FID, the largest rise
_TABLE_1 = {
    "PPL": ("has a shorter perceptual path", "648 → 570; −12 to −28 % on four data sets", Effect(-1, 0.06)),
    "mRTL": ("has straighter paths in H", "2.67 → 2.50; −5 to −13 %", Effect(-1, 0.025)),
    "MCN": ("has a better conditioned encoder", "497 → 180; −31 to −64 %", Effect(-1, 0.18)),
    "VoR": ("has an encoder whose metric varies less", "1.42 → 0.85; −28 to −40 %, CIFAR-10 +14 %", Effect(-1, 0.16)),
    "FID": ("pays in FID, by at most the paper's largest rise", "15.89 → 16.18; +2 to +26 %", Within(-1.0, 0.23)),
}
_TABLE_I = {
    "PPL": ("439 → 397; −10 %", Effect(-1, 0.05)),
    "mRTL": ("2.89 → 2.73; −6 %", Effect(-1, 0.028)),
    "MCN": ("322 → 198; −39 %", Effect(-1, 0.24)),
    "VoR": ("1.04 → 0.54; −48 %", Effect(-1, 0.33)),
    "FID": ("10.79 → 11.46; +6 %", Within(-1.0, 0.06)),
}

_SETTING = {
    "faces32": "32², one base, 3 fine-tunings of 200 steps of 8",
    "faces16": "16², 3 bases, a fine-tuning of 200 steps of 16 each",
    "latent64": "latents of 64², one base, 3 fine-tunings of 120 steps of 8",
}


def _tables() -> list[Claim]:
    claims = []
    for experiment in ("faces32", "faces16"):
        for metric, (text, paper, rule) in _TABLE_1.items():
            claims.append(
                Claim(
                    name=f"table1-{metric.lower()}-{experiment}",
                    group="Tab. 1, faces",
                    statement=f"The isometric model {text} than the control"
                    if metric != "FID"
                    else f"The model {text}",
                    source=f"Tab. 1, {HAHM}",
                    paper=f"{metric} {paper}",
                    protocol=f"{metric}, isometric over control; {_SETTING[experiment]}",
                    **_pair(experiment, _RATIO[metric], rule),
                )
            )
    for dataset in ("CIFAR-10", "CelebA-HQ", "LSUN-Church", "LSUN-Bedrooms"):
        claims.append(
            Claim(
                name=f"table1-{dataset.lower()}",
                group="Tab. 1, faces",
                statement=f"Tab. 1 on {dataset}",
                source=f"Tab. 1, {HAHM}",
                reason="needs the published weights, the data set and a GPU; `isodiff run 10 --profile gpu` is the run",
            )
        )
    claims += [
        Claim(
            name="table1-photographs",
            group="Tab. 1, faces",
            statement="Tab. 1 on 16,000 photographs at 64²",
            source=f"Tab. 1, {HAHM}",
            reason="needs a GPU: `isodiff reproduce --profile gpu --photographs PATH`; notebook 10 has a start",
        ),
        Claim(
            name="control-ppl",
            group="Tab. 1, faces",
            statement="What changes from the base is due to the term: training alone moves nothing",
            source=f"Tab. 1, {HAHM}, which compares with the base",
            paper="no control",
            protocol=f"PPL, control over base; {_SETTING['faces16']}",
            **_pair("faces16", "ppl_alex_full", Within(-0.06, 0.06), "control", "base"),
        ),
        Claim(
            name="dsm",
            group="Tab. 1, faces",
            statement="The term does not significantly alter where the denoising loss converges",
            source=f"App. G, {HAHM}",
            paper="by FID",
            protocol=f"L_dsm on the same images and noise, isometric over control; {_SETTING['faces16']}",
            **_pair("faces16", "dsm", Within(-0.03, 0.03)),
        ),
    ]
    for kernel in ("linear", "rbf"):
        claims.append(
            Claim(
                name=f"table2-{kernel}",
                group="Tab. 2, separability",
                statement=f"Latents of the isometric model are better separable, by {kernel} SVMs",
                source=f"Tab. 2, {HAHM}",
                paper="4.39 → 2.65" if kernel == "linear" else "12.3 → 6.8",
                endpoint=contrast("faces32", f"told_{kernel}", "isometric", "control", ratio=False),
                rule=Effect(1, 0.25),
                unit="nats",
                experiments=("faces32",),
                protocol="nats that held-out SVMs tell beyond shuffled labels, isometric − control; "
                + _SETTING["faces32"],
            )
        )
    claims.append(
        Claim(
            name="table2-protocol",
            group="Tab. 2, separability",
            statement="LS by the published protocol, trained and scored on the same images, measures the latents",
            source=f"Tab. 2, {HAHM}, and Karras et al. 2019",
            paper="2.65 to 12.3",
            endpoint=level("faces32", "ls_linear_training", "control"),
            rule=Effect(1, 1.1),
            unit="",
            experiments=("faces32",),
            protocol="LS of the control; 1 is what any 100 points in 3,072 dimensions score, whatever their labels",
        )
    )
    for metric, (paper, rule) in _TABLE_I.items():
        claims.append(
            Claim(
                name=f"tableI-{metric.lower()}",
                group="Tab. I, latent diffusion",
                statement=f"In latent diffusion {metric} "
                + ("rises by no more than the paper's" if metric == "FID" else "falls"),
                source=f"Tab. I, {HAHM}",
                paper=f"{metric} {paper}",
                protocol=f"{metric}, isometric over control; {_SETTING['latent64']}",
                **_pair("latent64", _RATIO[metric], rule),
            )
        )
    return claims


def _ablations() -> list[Claim]:
    def row(
        name: str,
        statement: str,
        source: str,
        paper: str,
        quantity: str,
        rule: Rule,
        arms: tuple[str, str],
        group: str = "Tab. 3, ablations",
    ) -> Claim:
        return Claim(
            name=name,
            group=group,
            statement=statement,
            source=source,
            paper=paper,
            protocol=f"{quantity}, {arms[0]} over {arms[1]}; {_SETTING['faces16']}",
            **_pair("faces16", {"PPL": "ppl_alex_full", "FID": "fid"}.get(quantity, quantity), rule, *arms),
        )

    tab3, isometric = f"Tab. 3, {HAHM}", "isometric"
    no_difference = f"Tab. 3, {HAHM}; theory predicts none"
    return [
        row(
            "p0-fid",
            "FID is worse without p, regularising every t",
            tab3,
            "15.89 → 24.07 at G = I",
            "FID",
            Effect(1, 0.05),
            ("p_0", isometric),
        ),
        row(
            "p0-ppl", "PPL is better without p", tab3, "619 → 447 at G = I", "PPL", Effect(-1, 0.06), ("p_0", isometric)
        ),
        row(
            "p75-ppl",
            "PPL gains less above p = 1/2",
            f"Sec. 4.4, {HAHM}",
            "“marginal”",
            "PPL",
            Effect(1, 0.05),
            ("p_0.75", isometric),
        ),
        row(
            "lambda-fid",
            "A tenfold weight costs FID",
            tab3,
            "16.60 → 30.28 at G = I",
            "FID",
            Effect(1, 0.05),
            ("lambda_1e-2", isometric),
        ),
        row(
            "lambda-ppl",
            "A tenfold weight shortens the perceptual path",
            tab3,
            "619 → 441 at G = I",
            "PPL",
            Effect(-1, 0.06),
            ("lambda_1e-2", isometric),
        ),
        row(
            "lambda-paper",
            "The paper's own weight, 10⁻⁴ on L_iso, makes the encoder more isotropic",
            f"Sec. 4.1, {HAHM}",
            "MCN 497 → 180",
            "isotropy",
            Effect(-1, 0.05),
            ("lambda_paper", "control"),
        ),
        row(
            "chart-ppl",
            "The sphere's metric beats G = I in PPL",
            tab3,
            "619 → 570, −8 %",
            "PPL",
            Effect(1, 0.04),
            ("chart_identity", isometric),
        ),
        row(
            "chart-fid",
            "The sphere's metric beats G = I in FID",
            tab3,
            "16.60 → 16.18, −3 %",
            "FID",
            Effect(1, 0.013),
            ("chart_identity", isometric),
        ),
        row(
            "chart-isotropy",
            "At image size, G = I in the chart and the sphere's metric are the same loss",
            no_difference,
            "“turns out to be important”",
            "isotropy",
            Within(-0.02, 0.02),
            ("chart_identity", isometric),
        ),
        row(
            "ambient-isotropy",
            "The ambient G = I differs by one direction in n, so not at all",
            no_difference,
            "“significantly worse”",
            "isotropy",
            Within(-0.02, 0.02),
            ("euclidean", isometric),
        ),
        row(
            "early",
            "Regularising early steps only, where noise is no sphere, costs more FID than late steps only",
            f"Sec. 3.2, {HAHM}",
            "assumed",
            "FID",
            Effect(1, 0.05),
            ("early", isometric),
            group="Where in t",
        ),
        row(
            "early-isotropy",
            "… and does not make the late encoder isotropic",
            f"Sec. 3.2, {HAHM}",
            "assumed",
            "isotropy",
            Effect(1, 0.05),
            ("early", isometric),
            group="Where in t",
        ),
        row(
            "variance",
            "Weighting the term by the variance of the noise, instead of a threshold, is no worse in PPL",
            f"open question 3 of the {DIGEST}",
            "–",
            "PPL",
            Within(-1.0, 0.06),
            ("variance", isometric),
            group="Where in t",
        ),
        row(
            "variance-fid",
            "… nor in FID",
            f"open question 3 of the {DIGEST}",
            "–",
            "FID",
            Within(-1.0, 0.05),
            ("variance", isometric),
            group="Where in t",
        ),
        row(
            "probes",
            "One probe a row is enough: four give the same isotropy",
            f"Sec. 3.3, {HAHM}",
            "one",
            "isotropy",
            Within(-0.1, 0.1),
            ("probes_4", isometric),
            group="The estimate",
        ),
        row(
            "unbiased",
            "The bias of the ratio does no harm: an unbiased denominator gives the same isotropy",
            "Eq. 6 read as an estimator",
            "–",
            "isotropy",
            Within(-0.1, 0.1),
            ("unbiased_4", "probes_4"),
            group="The estimate",
        ),
        row(
            "per-row",
            "A scale of its own for every row, as one sample a device gives, loses the global scale c",
            f"Eq. 4, {HAHM}, and its released code",
            "c “global”",
            "vor",
            Effect(1, 0.05),
            ("per_row", isometric),
            group="The estimate",
        ),
    ]


def _geometry() -> list[Claim]:
    round_embedding = math.pi / 2 / math.sqrt(2)
    both = {"faces16": "isometric", "faces32": "isometric", "latent64": "isometric"}
    return [
        Claim(
            name="fig5-lambda",
            group="Fig. 5 and geometry",
            statement="RTL falls as the weight of the term grows",
            source=f"Fig. 5, {HAHM}",
            paper="by eye",
            protocol=f"RTL at t ≥ 500, weight 10⁻² over 10⁻⁴; {_SETTING['faces16']}",
            **_pair("faces16", "rtl_late", Effect(-1, 0.025), "lambda_1e-2", "lambda_1e-4"),
        ),
        Claim(
            name="fig5-where",
            group="Fig. 5 and geometry",
            statement="It falls most where the term is applied",
            source=f"Fig. 5, {HAHM}",
            paper="t ≤ 10 of 20",
            endpoint=drop_late_over_early("faces16", "isometric", "control"),
            rule=Effect(-1, 0.025),
            experiments=("faces16",),
            protocol=f"log RTL, t ≥ 500 against t < 500; {_SETTING['faces16']}",
        ),
        Claim(
            name="fig5-one",
            group="Fig. 5 and geometry",
            statement="A strong term brings RTL to 1: great circles become straight lines",
            source=f"Fig. 5, {HAHM}",
            paper="1",
            endpoint=level("faces16", "rtl_late", "lambda_1e-2"),
            rule=Within(0.97, 1.03),
            unit="",
            experiments=("faces16",),
            protocol=f"RTL at t ≥ 500, weight 10⁻²; {_SETTING['faces16']}",
        ),
        Claim(
            name="rtl-round",
            group="Fig. 5 and geometry",
            statement="It brings RTL to π/(2√2) = 1.1107, that of the round embedding",
            source="Gauss: no isometry flattens a sphere",
            paper="–",
            endpoint=level("faces16", "rtl_late", "lambda_1e-2"),
            rule=Within(round_embedding - 0.03, round_embedding + 0.03),
            unit="",
            experiments=("faces16",),
            protocol=f"RTL at t ≥ 500, weight 10⁻²; {_SETTING['faces16']}",
        ),
        Claim(
            name="encoder",
            group="Fig. 5 and geometry",
            statement="The term makes the encoder more isotropic than training alone",
            source=f"Sec. 3.2, {HAHM}",
            paper="MCN 497 → 180",
            protocol=f"isotropy, isometric over control; {_SETTING['faces32']}",
            **_pair("faces32", "isotropy", Effect(-1, 0.18)),
        ),
        Claim(
            name="whole-map",
            group="Fig. 5 and geometry",
            statement="As X → H becomes isometric, so does the whole map from noise to image",
            source=f"Sec. 2.2, {HAHM}",
            paper="“therefore, we claim”",
            protocol=f"isotropy of x_T → x_0, isometric over control; {_SETTING['faces16']}",
            **_pair("faces16", "map_isotropy", Effect(-1, 0.05)),
        ),
        Claim(
            name="size-normalised",
            group="Fig. 5 and geometry",
            statement="With the term on isotropy, one weight means the same at every size",
            source="isotropy = L_iso · rank",
            paper="–",
            endpoint=isotropy_spread(both),
            rule=Within(-0.01, math.log(2)),
            unit="log",
            experiments=("faces16", "faces32", "latent64"),
            protocol="log of the largest over the smallest isotropy of the isometric arms of three sizes; ≤ 2 times",
        ),
        Claim(
            name="size-raw",
            group="Fig. 5 and geometry",
            statement="With the term on L_iso, as in the paper, one weight means the same at every size",
            source=f"Sec. 4.1, {HAHM}: one λ for all data sets",
            paper="10⁻⁴",
            endpoint=isotropy_spread({"faces16": "isometric", "faces32": "raw", "latent64": "raw"}),
            rule=Within(-0.01, math.log(2)),
            unit="log",
            experiments=("faces16", "faces32", "latent64"),
            protocol="the same for a weight of 0.512 on L_iso, 10⁻³ on isotropy at rank 512",
        ),
        Claim(
            name="sphere",
            group="Fig. 5 and geometry",
            statement="Where the paper regularises, noisy images have the radius of noise, to 1 %",
            source=f"Sec. 3.1, {HAHM}",
            paper="assumed",
            endpoint=level("shell", "radius_excess"),
            rule=Within(-0.01, 0.01),
            unit="part",
            experiments=("shell",),
            protocol="mean norm at t = 500 over that of noise, minus 1; faces at 32²",
        ),
        Claim(
            name="sphere-thickness",
            group="Fig. 5 and geometry",
            statement="… and keep as close to it, to 10 %",
            source=f"Sec. 3.1, {HAHM}",
            paper="assumed",
            endpoint=level("shell", "thickness_excess"),
            rule=Within(-0.1, 0.1),
            unit="part",
            experiments=("shell",),
            protocol="coefficient of variation of the norm at t = 500 over that of noise, minus 1; faces at 32²",
        ),
        Claim(
            name="sphere-other",
            group="Fig. 5 and geometry",
            statement="… on ImageNet and FFHQ too",
            source=f"next check 2 of the {DIGEST}",
            reason="neither data set is to be had here; photographs, in notebook 10, miss it narrowly",
        ),
        Claim(
            name="fig2-sphere",
            group="Fig. 2, III and App. A",
            statement="On the two-sphere, the term with the sphere's metric keeps distances better than without it",
            source=f"Fig. 2 (b, d), {HAHM}",
            paper="by eye",
            endpoint=two_quantities("sphere", "stress_stereographic", "stress_reconstruction"),
            rule=Effect(-1, 0.05),
            experiments=("sphere",),
            protocol="stress of distances; one network each a seed",
        ),
        Claim(
            name="fig2-chart",
            group="Fig. 2, III and App. A",
            statement="… and better than with G = I",
            source=f"Fig. 2 (c, d), {HAHM}",
            paper="by eye",
            endpoint=two_quantities("sphere", "stress_stereographic", "stress_chart_identity"),
            rule=Effect(-1, 0.05),
            experiments=("sphere",),
            protocol="stress of distances; one network each a seed",
        ),
        Claim(
            name="fig2-identity",
            group="Fig. 2, III and App. A",
            statement="G = I distorts less than no term at all",
            source=f"Fig. 2 (b, c), {HAHM}",
            paper="by eye",
            endpoint=two_quantities("sphere", "stress_chart_identity", "stress_reconstruction"),
            rule=Effect(-1, 0.05),
            experiments=("sphere",),
            protocol="stress of distances; one network each a seed",
        ),
        Claim(
            name="fig3-exact",
            group="Fig. 2, III and App. A",
            statement="Training with estimated traces ends where training with exact ones does",
            source=f"Fig. II, III, {HAHM}",
            paper="by eye, 5 repeats",
            endpoint=two_quantities("sphere", "isotropy_estimated", "isotropy_exact"),
            rule=Within(-0.05, 0.05),
            experiments=("sphere",),
            protocol="isotropy after training on the two-sphere",
        ),
        Claim(
            name="trace-error",
            group="Fig. 2, III and App. A",
            statement="The error of the trace estimator increases with the number of samples",
            source=f"App. A.1, {HAHM}, its text",
            paper="“increases”; Fig. I shows a fall",
            endpoint=level("trace", "slope"),
            rule=Effect(1, 0.1),
            unit="",
            experiments=("trace",),
            protocol="slope of log error over log N, 1 to 256 probes; −1/2 by theory",
        ),
        Claim(
            name="cost",
            group="Fig. 2, III and App. A",
            statement="The term comes at minimal additional cost",
            source=f"App. F, {HAHM}",
            paper="“minimal”",
            endpoint=level("cost", "step_ratio"),
            rule=Within(0.0, 1.25),
            unit="times",
            experiments=("cost",),
            protocol="processor time of a step with the term at p = 1/2 over a plain step, 32², batch 8; ≤ 1.25",
        ),
        Claim(
            name="cost-quarter",
            group="Fig. 2, III and App. A",
            statement="On a quarter of the rows it does",
            source="ours: `regularize_fraction`",
            paper="–",
            endpoint=level("cost", "row_ratio"),
            rule=Within(0.0, 1.25),
            unit="times",
            experiments=("cost",),
            protocol="the same with the term on a quarter of the batch",
        ),
        Claim(
            name="cost-a100",
            group="Fig. 2, III and App. A",
            statement="A full Jacobian takes 203 s and 24 GB on an A100, a product 0.6 s",
            source=f"App. A.2, {HAHM}",
            paper="202.77 s, 0.6 s",
            reason="needs that GPU; the arithmetic of 24 GB is right, that of 0.875 MB is not (notebook 12)",
        ),
        Claim(
            name="scale",
            group="Fig. 2, III and App. A",
            statement="Wall-clock time with and without the term, 64² against 256²",
            source=f"next check 3 of the {DIGEST}",
            reason="measured once, on a CPU, in data/results/cost (notebooks 10 and 11); not on a GPU, not over seeds",
        ),
    ]


def _paths() -> list[Claim]:
    slerp_truth = ("factor_excess", "path_excess_slerp")
    return [
        Claim(
            name="smooth-excess",
            group="Paths, edits, inversion",
            statement="Great circles take fewer detours through the true factors",
            source=f"Sec. 4.3, Fig. 1 and 6, {HAHM}",
            paper="by eye",
            protocol=f"excess variation of the factors, isometric over control; {_SETTING['faces16']}",
            **_pair("faces16", slerp_truth[0], Effect(-1, 0.05)),
        ),
        Claim(
            name="smooth-excess-32",
            group="Paths, edits, inversion",
            statement="… at 32² too",
            source=f"Sec. 4.3, Fig. 1 and 6, {HAHM}",
            paper="by eye",
            protocol=f"excess variation of the factors, isometric over control; {_SETTING['faces32']}",
            **_pair("faces32", slerp_truth[0], Effect(-1, 0.05)),
        ),
        Claim(
            name="manifold",
            group="Paths, edits, inversion",
            statement="The quality of images on the way is not significantly damaged",
            source=f"Sec. 4.2, {HAHM}",
            paper="by eye",
            protocol=f"distance to the manifold of faces, isometric over control; {_SETTING['faces16']}",
            **_pair("faces16", "manifold_distance", Within(-1.0, 0.1)),
        ),
        Claim(
            name="spill-over",
            group="Paths, edits, inversion",
            statement="Its leading directions are better disentangled: less changes besides the target",
            source=f"Sec. 4.3, Fig. 7 and V, {HAHM}",
            paper="by eye",
            protocol=f"spill-over of moves along the local basis, isometric over control; {_SETTING['faces16']}",
            **_pair("faces16", "spill_over", Effect(-1, 0.05)),
        ),
        Claim(
            name="linear-edits",
            group="Paths, edits, inversion",
            statement="Factors follow γ more monotonically",
            source=f"Sec. 4.3, Fig. 7, {HAHM}",
            paper="by eye",
            protocol=f"rank correlation of γ and target, isometric over control; {_SETTING['faces16']}",
            **_pair("faces16", "rank_correlation", Effect(1, 0.01)),
        ),
        Claim(
            name="inversion",
            group="Paths, edits, inversion",
            statement="It can be inverted better",
            source=f"App. E, {HAHM}",
            paper="“we believe”",
            protocol=f"squared error of DDIM inversion, 20 steps, unclipped, isometric over control; {_SETTING['faces16']}",
            **_pair("faces16", "inversion_mse_s20_r0", Effect(-1, 0.05)),
        ),
        Claim(
            name="ppl-excess",
            group="Paths, edits, inversion",
            statement="Lower PPL means fewer detours through the true factors",
            source=f"open question 1 of the {DIGEST}",
            protocol=f"Spearman's correlation over 11 models a seed; {_SETTING['faces16']}",
            endpoint=rank_correlation("faces16", "ppl_alex_full", "factor_excess"),
            rule=Effect(1, 0.3),
            unit="",
            experiments=("faces16",),
        ),
        Claim(
            name="ppl-edits",
            group="Paths, edits, inversion",
            statement="Lower PPL means better edits",
            source=f"open question 1 of the {DIGEST}",
            protocol=f"Spearman's correlation of PPL and spill-over, 11 models a seed; {_SETTING['faces16']}",
            endpoint=rank_correlation("faces16", "ppl_alex_full", "spill_over"),
            rule=Effect(1, 0.3),
            unit="",
            experiments=("faces16",),
        ),
        Claim(
            name="stable-diffusion",
            group="Paths, edits, inversion",
            statement="The method scales to Stable Diffusion",
            source=f"App. F, {HAHM}; open question 2 of the {DIGEST}",
            reason="needs its weights; the code runs on random ones (notebook 10)",
        ),
        Claim(
            name="tangential-slerp",
            group="Tangential geodesics",
            statement="Geodesics of the score keep nearer to the manifold than slerp",
            source=f"abstract, {TANGENTIAL}",
            paper="FID, PPL of images",
            endpoint=two_quantities("faces32", "path_distance_tangential", "path_distance_slerp", "base"),
            rule=Effect(-1, 0.05),
            experiments=("faces32",),
            protocol="distance to the manifold along paths between given faces, base, τ = 0.6 T",
        ),
        Claim(
            name="tangential-lerp",
            group="Tangential geodesics",
            statement="… and than lerp",
            source=f"abstract, {TANGENTIAL}",
            paper="FID, PPL of images",
            endpoint=two_quantities("faces32", "path_distance_tangential", "path_distance_lerp", "base"),
            rule=Effect(-1, 0.05),
            experiments=("faces32",),
            protocol="distance to the manifold along paths between given faces, base, τ = 0.6 T",
        ),
        Claim(
            name="tangential-excess",
            group="Tangential geodesics",
            statement="They make more natural transitions than slerp",
            source=f"abstract, {TANGENTIAL}",
            paper="by eye",
            endpoint=two_quantities("faces32", "path_excess_tangential", "path_excess_slerp", "base"),
            rule=Effect(-1, 0.05),
            experiments=("faces32",),
            protocol="excess variation of the true factors, base, τ = 0.6 T",
        ),
        Claim(
            name="isometric-tangential",
            group="Tangential geodesics",
            statement="Slerp in an isometric model beats the geodesic in the base, on the same pairs",
            source=f"asked by the reviewers of {TANGENTIAL}",
            paper="–",
            endpoint=across("faces32", ("isometric", "path_excess_slerp"), ("base", "path_excess_tangential")),
            rule=Effect(-1, 0.05),
            experiments=("faces32",),
            protocol="excess variation of the true factors, τ = 0.6 T",
        ),
        Claim(
            name="tangential-benchmarks",
            group="Tangential geodesics",
            statement="… on MorphBench, AFHQ, CelebA-HQ and video frames with Stable Diffusion",
            source=TANGENTIAL,
            reason="needs those weights and data sets",
        ),
        Claim(
            name="digest-31",
            group="Arithmetic of the digest",
            statement="PPL improves by 31 % at a similar FID",
            source=DIGEST,
            paper="Tab. 1 says 648 → 570, 12 %",
            reason="decided by the paper's own tables: 31 % is 653 → 447, a row of Tab. 3 with FID 24.07 against 15.89",
        ),
        Claim(
            name="digest-lsun",
            group="Arithmetic of the digest",
            statement="The gains diminish on LSUN",
            source=DIGEST,
            paper="PPL −28, −12, −22, −16 %",
            reason="decided by the paper's own table: the smallest gain is on CelebA-HQ",
        ),
    ]


CLAIMS: dict[str, Claim] = {claim.name: claim for claim in [*_tables(), *_ablations(), *_geometry(), *_paths()]}
"""Every claim by name, in the order of the verdict table."""
