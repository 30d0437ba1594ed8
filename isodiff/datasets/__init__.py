"""Images behind one door: map-style collections of (C, R, R) tensors in [−1, 1]; faces with known factors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "catalogue": ["CATALOGUE", "open_dataset"],
        "face_factors": ["FactorEstimate", "estimate_factors"],
        "faces": ["FACTORS", "FacesDataset", "render", "sample_factors"],
        "images": ["ImageDataset", "check_images", "open_digits"],
        "morphs": ["Morph", "open_morphs"],
    },
)
