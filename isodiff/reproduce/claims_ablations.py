"""Claims of Tab. 3, where in t to regularise, and how to estimate."""

from __future__ import annotations

from isodiff.reproduce.claim import DIGEST, HAHM, SETTING, Claim, paired
from isodiff.reproduce.decide import Effect, Rule, Within


def ablations() -> list[Claim]:
    """Return them, in order."""

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
            protocol=f"{quantity}, {arms[0]} over {arms[1]}; {SETTING['faces16']}",
            **paired("faces16", {"PPL": "ppl_alex_full", "FID": "fid"}.get(quantity, quantity), rule, *arms),
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
