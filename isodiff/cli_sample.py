"""The command `isodiff sample`: images of a model, as one picture."""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

from isodiff.files import write_whole
from isodiff.parameters import check_seed, resolve_device
from isodiff.paths import require_folder

FORMATS = {".png": "PNG", ".jpg": "JPEG"}


def add_sample(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff sample``."""
    parser = subparsers.add_parser(
        "sample",
        help="draw images from a model into one picture",
        description="Draw images by DDIM and write them side by side. One seed gives every model the same latents.",
    )
    parser.add_argument("model", metavar="CHECKPOINT", help="as for isodiff evaluate")
    parser.add_argument("--prompt", help="held fixed; of Stable Diffusion models only")
    parser.add_argument("--number", type=int, default=16, help="of images (default: 16)")
    parser.add_argument("--columns", type=int, help="images in a row (default: a square)")
    parser.add_argument("--num-steps", type=int, default=50, help="of DDIM (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the latents (default: 0)")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time (default: 16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .png or .jpg that is not there yet")
    parser.set_defaults(run=_sample)


def _sample(options: argparse.Namespace) -> int:
    for name in ("number", "batch_size", "columns", "num_steps"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(options, name)}")
    output = Path(options.output)
    if output.suffix.lower() not in FORMATS:
        raise ValueError(f"output must end in .png or .jpg; got {options.output!r}")
    if output.exists():
        raise ValueError(f"{options.output} is there already; choose another name or delete it")
    require_folder(output.parent)
    check_seed(options.seed)

    import torch
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid
    from tqdm import tqdm

    from isodiff.diffusion.latent import autoencoder_of
    from isodiff.diffusion.prompt import open_model
    from isodiff.metrics.generator import Generator, check_images, draw_latents, to_uint8

    pipeline, device = open_model(options.model, options.prompt), resolve_device(options.device)
    for part in (pipeline.unet, autoencoder_of(pipeline)):
        if part is not None:
            part.to(device).eval()
    generate, pieces = Generator(pipeline, options.num_steps), []
    for start in tqdm(range(0, options.number, options.batch_size), unit="batch"):
        stop = min(start + options.batch_size, options.number)
        latents = draw_latents(generate.shape, start, stop, seed=options.seed, stream="samples")
        with torch.no_grad():
            pieces.append(to_uint8(check_images(generate(latents), stop - start, name="the model")).cpu())
    columns = options.columns or round(options.number**0.5)
    picture = BytesIO()
    grid = make_grid(torch.cat(pieces), nrow=columns, padding=1, pad_value=255)
    to_pil_image(grid).save(picture, FORMATS[output.suffix.lower()])
    write_whole(output, picture.getvalue())
    print(f"{options.output}: {options.number} images, in the order of their latents")
    return 0
