"""Claims about paths, edits and inversion, tangential geodesics, and the digest's arithmetic."""

from __future__ import annotations

from isodiff.reproduce.claim import DIGEST, HAHM, SETTING, TANGENTIAL, Claim, paired
from isodiff.reproduce.decide import Effect, Within
from isodiff.reproduce.endpoints import across, contrast, rank_correlation, two_quantities
from isodiff.reproduce.experiments import experiments

_MEASURED = tuple(
    name
    for name, arm in experiments("cpu")["faces16"].arms.items()
    if arm.changes is not None and {"ppl", "truth", "directions"} <= set(arm.families)
)
"""The fine-tuned arms on which paths and edits are measured."""


def paths() -> list[Claim]:
    """Return them, in order."""
    slerp_truth = ("factor_excess", "path_excess_slerp")
    return [
        Claim(
            name="smooth-excess",
            group="Paths, edits, inversion",
            statement="Great circles take fewer detours through the true factors",
            source=f"Sec. 4.3, Fig. 1 and 6, {HAHM}",
            paper="by eye",
            protocol=f"excess variation of the factors, isometric over control; {SETTING['faces16']}",
            **paired("faces16", slerp_truth[0], Effect(-1, 0.05)),
        ),
        Claim(
            name="smooth-excess-32",
            group="Paths, edits, inversion",
            statement="… at 32² too",
            source=f"Sec. 4.3, Fig. 1 and 6, {HAHM}",
            paper="by eye",
            protocol=f"excess variation of the factors, isometric over control; {SETTING['faces32']}",
            **paired("faces32", slerp_truth[0], Effect(-1, 0.05)),
        ),
        Claim(
            name="manifold",
            group="Paths, edits, inversion",
            statement="The quality of images on the way is not significantly damaged",
            source=f"Sec. 4.2, {HAHM}",
            paper="by eye",
            protocol=f"distance to the manifold of faces, isometric over control; {SETTING['faces16']}",
            **paired("faces16", "manifold_distance", Within(-1.0, 0.1)),
        ),
        Claim(
            name="spill-over",
            group="Paths, edits, inversion",
            statement="Its leading directions are better disentangled: less changes besides the target",
            source=f"Sec. 4.3, Fig. 7 and V, {HAHM}",
            paper="by eye",
            protocol=f"spill-over of moves along the local basis, isometric over control; {SETTING['faces16']}",
            **paired("faces16", "spill_over", Effect(-1, 0.05)),
        ),
        Claim(
            name="linear-edits",
            group="Paths, edits, inversion",
            statement="Factors follow γ more monotonically",
            source=f"Sec. 4.3, Fig. 7, {HAHM}",
            paper="by eye",
            protocol=f"rank correlation of γ and target, isometric − control; {SETTING['faces16']}",
            endpoint=contrast("faces16", "rank_correlation", "isometric", "control", ratio=False),
            rule=Effect(1, 0.01),
            unit="in ρ",
        ),
        Claim(
            name="inversion",
            group="Paths, edits, inversion",
            statement="It can be inverted better",
            source=f"App. E, {HAHM}",
            paper="“we believe”",
            protocol="squared error of DDIM inversion, 20 steps, unclipped, isometric over control; "
            + SETTING["faces16"],
            **paired("faces16", "inversion_mse_s20_r0", Effect(-1, 0.05)),
        ),
        Claim(
            name="ppl-excess",
            group="Paths, edits, inversion",
            statement="Lower PPL means fewer detours through the true factors",
            source=f"open question 1 of the {DIGEST}",
            protocol=f"Spearman's correlation over {len(_MEASURED)} fine-tuned models a seed; {SETTING['faces16']}",
            endpoint=rank_correlation("faces16", _MEASURED, "ppl_alex_full", "factor_excess"),
            rule=Effect(1, 0.3),
            unit="",
        ),
        Claim(
            name="ppl-edits",
            group="Paths, edits, inversion",
            statement="Lower PPL means better edits",
            source=f"open question 1 of the {DIGEST}",
            protocol=f"Spearman's correlation, PPL, spill-over, {len(_MEASURED)} models a seed; {SETTING['faces16']}",
            endpoint=rank_correlation("faces16", _MEASURED, "ppl_alex_full", "spill_over"),
            rule=Effect(1, 0.3),
            unit="",
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
            reason="decided by the paper's own tables: 31 % is a row of Tab. 3 whose FID is 24.07 against 15.89",
            settled="not reproduced",
        ),
        Claim(
            name="digest-lsun",
            group="Arithmetic of the digest",
            statement="The gains diminish on LSUN",
            source=DIGEST,
            paper="PPL −28, −12, −22, −16 %",
            reason="decided by the paper's own table: the smallest gain is on CelebA-HQ",
            settled="not reproduced",
        ),
    ]
