"""Noise processes, models and their training; loaded, with the library behind each, when first asked for."""

import lazy_loader

_NAMES = {
    "autoencoder": "load_autoencoder train_autoencoder",
    "config": "AttributeConfig AutoencoderConfig FinetuneConfig",
    "finetune": "TrainingState train",
    "hspace": "bottleneck_hook bottleneck_shape check_encoder check_latents encode",
    "injection": "blend inject",
    "inversion": "NoiseLevel invert",
    "latent": "autoencoder_of image_shape images_to_latents latent_shape latents_to_images",
    "models": "ARCHITECTURES AUTOENCODERS PUBLISHED build_pipeline build_unet load_pipeline local_model model_name "
    "save_pipeline",
    "process": "NoiseSchedule ddim_invert ddim_sample ddim_trajectory dsm_loss",
    "prompt": "open_model with_prompt",
    "run_folder": "CHECKPOINTS RECORD Checkpoint TrainingInterrupted read_record require_same_run stop_signals",
    "terms": "checkpointing",
    "training": "accelerator_for derived_seed seeded",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
