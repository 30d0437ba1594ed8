"""What the notebook on real models can be told, every size explained; the values are in `isodiff.profiles`."""

from __future__ import annotations

import dataclasses

from isodiff.sizes import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealModelSettings(Settings):
    """Sizes of ``10_real_models``.

    Attributes:
        use_hub: Whether to load a published model from the hub; otherwise the small model that comes with the course.
        published: Its name.
        dataset: The images; of the small model, "faces".
        num_shell_images: Images whose noise is compared with a sphere.
        num_shown: Images in the figures, at least 2.
        num_live_steps: Steps of each live fine-tuning run, at least 4.
        batch_size: Images a step.
        lambda_iso: Weight of the isometry term.
        normalize: Whether it multiplies the isotropy L_iso · rank, instead of L_iso.
        p: Share of the diffusion steps that is not regularised.
        isometry_route: How the term's gradient is taken, "double_backward" or "differences".
        gradient_checkpointing: Whether to compute activations again instead of keeping them.
        gradient_accumulation_steps: Passes a batch is cut into.
        metrics: What is measured live of each model, names of ``isodiff evaluate``.
        measured: Its sizes in place of the profile's, as a JSON object.
        num_ddim_steps: Steps of the sampler.
        num_processes: Processes that ``notebook_launcher`` starts.
    """

    use_hub: bool
    published: str = "google/ddpm-celebahq-256"
    dataset: str
    num_shell_images: int
    num_shown: int = 8
    num_live_steps: int
    batch_size: int
    lambda_iso: float
    normalize: bool
    p: float = 0.5
    isometry_route: str = "double_backward"
    gradient_checkpointing: bool = False
    gradient_accumulation_steps: int = 1
    metrics: tuple[str, ...]
    measured: str = "{}"
    num_ddim_steps: int = 20
    num_processes: int
