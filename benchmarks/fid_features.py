"""Time the extraction of FID features against calling torch-fidelity directly.

    python benchmarks/fid_features.py --images 64 --repeats 3

Both run the same Inception-2015 weights on the same 8-bit images, from arrays in memory to features in memory, in
batches of the same size; their runs are interleaved, and medians are compared.

- ours: ``extract_features`` with nothing kept on disk, then again with a folder in which the features are kept.
- torch-fidelity: its loop over a data set (in this process, as with ``save_cpu_ram``) and its network as it builds it.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import extract_featuresdict_from_input_id

from isodiff.datasets.faces import render, sample_factors
from isodiff.metrics.fidelity import extract_features
from isodiff.metrics.generator import to_uint8
from isodiff.metrics.networks import inception_features
from isodiff.metrics.store import Store
from isodiff.metrics.weight_formats import fidelity_names, inception_state
from isodiff.metrics.weights import find_weights


class PlainInception(FeatureExtractorInceptionV3):
    """torch-fidelity's network as the library builds it, given the weights that ours has."""

    def __init__(self) -> None:
        file = io.BytesIO()
        torch.save(inception_state(find_weights("inception")), file)
        file.seek(0)
        super().__init__("plain", ["2048"], feature_extractor_weights_path=file)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], **options: Any) -> Any:  # noqa: ANN401 - torch's
        """Load the weights under the library's names."""
        return super().load_state_dict(fidelity_names(state_dict, self.state_dict()), **options)


class Images(Dataset):
    """8-bit images, as torch-fidelity takes them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def main() -> None:
    """Parse the options, run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="number of images")
    parser.add_argument("--resolution", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=16, help="batch size of both")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs of each, after one for warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    factors = sample_factors(options.images, generator=torch.Generator().manual_seed(0))
    images = to_uint8(render(factors, options.resolution)).numpy()
    ours, plain = inception_features(device=options.device), PlainInception().to(options.device)
    arguments = {"cuda": options.device == "cuda", "save_cpu_ram": True, "verbose": False}

    with tempfile.TemporaryDirectory() as folder:
        kept = Store(folder)
        ways: dict[str, Callable[[], np.ndarray]] = {
            "torch-fidelity": lambda: extract_featuresdict_from_input_id(
                1, plain, input1=Images(images), batch_size=options.batch, **arguments
            )["2048"].numpy(),
            "ours": lambda: extract_features(images, ours, batch_size=options.batch),
            "ours, kept": lambda: extract_features(images, ours, batch_size=options.batch, store=kept),
        }
        features = {name: way() for name, way in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)

    print(
        f"{options.images} images of {options.resolution} pixels, {options.device}, {torch.get_num_threads()} threads"
    )
    print("                 images/s   of torch-fidelity   largest difference")
    reference = statistics.median(seconds["torch-fidelity"])
    for name, times in seconds.items():
        median = statistics.median(times)
        error = np.abs(features[name] - features["torch-fidelity"]).max()
        print(f"{name:<16} {options.images / median:>8.1f} {reference / median:>15.2f} × {error:>19.1e}")


if __name__ == "__main__":
    main()
