"""Claims of Tab. 1, 2 and I, and what they rest on."""

from __future__ import annotations

from isodiff.reproduce.claim import HAHM, SETTING, Claim, paired
from isodiff.reproduce.decide import Effect, Within
from isodiff.reproduce.endpoints import contrast, level

_RATIO = {"PPL": "ppl_alex_full", "mRTL": "mrtl", "MCN": "mcn", "VoR": "vor", "FID": "fid"}

# θ: half of the smallest change in the table; of FID, the largest rise
_TABLE_1 = {
    "PPL": ("has a shorter perceptual path", "648 → 570; −12 to −28 % on four data sets", Effect(-1, 0.06)),
    "mRTL": ("has straighter paths in H", "2.67 → 2.50; −5 to −13 %", Effect(-1, 0.025)),
    "MCN": ("has a better conditioned encoder", "497 → 180; −31 to −64 %", Effect(-1, 0.18)),
    "VoR": ("has an encoder whose metric varies less", "1.42 → 0.85; −28 to −40 %, CIFAR-10 +14 %", Effect(-1, 0.16)),
    "FID": (
        "FID rises by no more than the paper's largest rise",
        "15.89 → 16.18; +2 to +26 %",
        Within(-1.0, 0.23),
    ),
}
_TABLE_I = {
    "PPL": ("439 → 397; −10 %", Effect(-1, 0.05)),
    "mRTL": ("2.89 → 2.73; −6 %", Effect(-1, 0.028)),
    "MCN": ("322 → 198; −39 %", Effect(-1, 0.24)),
    "VoR": ("1.04 → 0.54; −48 %", Effect(-1, 0.33)),
    "FID": ("10.79 → 11.46; +6 %", Within(-1.0, 0.06)),
}


def tables() -> list[Claim]:
    """Return them, in order."""
    claims = []
    for experiment in ("faces32", "faces16"):
        for metric, (text, paper, rule) in _TABLE_1.items():
            claims.append(
                Claim(
                    name=f"table1-{metric.lower()}-{experiment}",
                    group="Tab. 1, faces",
                    statement=f"The isometric model {text} than the control" if metric != "FID" else text,
                    source=f"Tab. 1, {HAHM}",
                    paper=f"{metric} {paper}",
                    protocol=f"{metric}, isometric over control; {SETTING[experiment]}",
                    **paired(experiment, _RATIO[metric], rule),
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
            protocol=f"PPL, control over base; {SETTING['faces16']}",
            **paired("faces16", "ppl_alex_full", Within(-0.06, 0.06), "control", "base"),
        ),
        Claim(
            name="dsm",
            group="Tab. 1, faces",
            statement="The term does not significantly alter where the denoising loss converges",
            source=f"App. G, {HAHM}",
            paper="by FID",
            protocol=f"L_dsm on the same images and noise, isometric over control; {SETTING['faces16']}",
            **paired("faces16", "dsm", Within(-0.03, 0.03)),
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
                protocol="nats that held-out SVMs tell beyond shuffled labels, isometric − control; "
                + SETTING["faces32"],
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
            protocol="LS of the control; 1 is what any 64 points in 3,072 dimensions score, whatever their labels",
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
                protocol=f"{metric}, isometric over control; {SETTING['latent64']}",
                **paired("latent64", _RATIO[metric], rule),
            )
        )
    return claims
