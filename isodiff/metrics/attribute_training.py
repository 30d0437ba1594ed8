"""Train a network to tell the attributes of images, and test it on images held out: AdamW on binary cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from isodiff.diffusion import (
    AttributeConfig,
    Checkpoint,
    TrainingInterrupted,
    accelerator_for,
    derived_seed,
    require_same_run,
    seeded,
    stop_signals,
)
from isodiff.files import require_folder
from isodiff.metrics.attributes import RECORD, NetworkAttributes, build_network, fit_images
from isodiff.metrics.measure import content_digest


def train_attributes(
    images: Dataset[Tensor],
    labels: np.ndarray,
    names: Sequence[str],
    output: str | Path,
    config: AttributeConfig | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
    progress: bool = False,
) -> NetworkAttributes:
    """Train a classifier of the attributes (N, A), true or false, of the first N images, into a directory.

    Images (C, R, R) in [−1, 1], with `resolution` and `horizontal_flip`, as `open_dataset` gives them. Interrupted and
    called again, it goes on after the last finished epoch, with the same result on a CPU; called once more when done,
    it loads the result. `provenance` holds further facts to record, plain JSON values; with others, ``command``
    excepted, it is another training. ``record["held_out"]`` is `held_out_accuracy`: nothing is chosen on those images,
    neither the epoch nor a setting. The split is by image: where a person has several, both sides may show them.
    """
    config, output, device = config or AttributeConfig(), Path(output), torch.device(device)
    labels, names = np.asarray(labels), tuple(names)
    _check_labels(labels, names, len(images))
    train, test = split(len(labels), config.held_out, config.seed)
    for name, share in zip(names, labels[train].mean(axis=0), strict=True):
        if share in (0, 1):
            raise ValueError(
                f"{name} is {'true' if share else 'false'} for all {len(train)} images to train on; "
                "leave it out, or give images of both kinds"
            )
    known = {"num_images": len(labels), "labels_sha256": content_digest(labels, *names), **(provenance or {})}
    facts = asdict(config) | known | {"resolution": images.resolution, "names": list(names)}
    require_folder(output)
    accelerator = accelerator_for(str(device))
    with seeded(config.seed, device):
        network = build_network(config.architecture, len(names), images.resolution).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    checkpoint = Checkpoint(output / "checkpoint.pt", {"network": network, "optimizer": optimizer}, facts, accelerator)
    if (output / RECORD).exists():
        trained = NetworkAttributes.load(output, device=device)
        there = trained.record | trained.record["config"]
        there |= {"resolution": trained.resolution, "names": list(trained.names)}
        require_same_run({name: there.get(name) for name in facts}, facts, str(output / RECORD))
        checkpoint.discard()  # a kill may have come just before this
        return trained

    targets, done = torch.from_numpy(labels).float(), checkpoint.restore()
    epochs = range(done, config.num_epochs)
    with stop_signals() as stop:
        for epoch in tqdm(epochs, config.architecture, config.num_epochs, initial=done, disable=not progress):
            with seeded(derived_seed(config.seed, epoch), device):
                _train_epoch(network, optimizer, images, targets, train, epoch, config, num_workers)
            checkpoint.save(epoch + 1)
            if stop():
                place = f"stopped after epoch {epoch + 1} of {config.num_epochs}; {checkpoint.path} is written"
                raise TrainingInterrupted(f"{place}, run the same again to go on", stop())

    trained = NetworkAttributes(network, names, architecture=config.architecture, resolution=images.resolution)
    rest = Subset(images, test.tolist())
    held_out = DataLoader(rest, batch_size=256, num_workers=num_workers, generator=torch.Generator())
    told = np.concatenate([trained.probabilities(batch) for batch in held_out])
    trained.record = {"config": asdict(config), **known, "num_train": len(train), "num_held_out": len(test)}
    trained.record["held_out"] = held_out_accuracy(told > 0.5, labels[test], names)
    trained.save(output)
    checkpoint.discard()
    return trained


def held_out_accuracy(told: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return how often answers (n, A) are right on images not trained on, by attribute.

    ``accuracy`` with its 95 % Clopper–Pearson ``interval``; ``chance``, the share of the more frequent class among
    these very images; ``beats_chance``, whether the interval lies above it; and ``n``.
    """
    table, n = {}, len(labels)
    for name, right, share in zip(names, (told == labels).sum(axis=0).tolist(), labels.mean(axis=0), strict=True):
        low, high = map(float, binomtest(right, n).proportion_ci(0.95, method="exact"))
        chance = float(max(share, 1 - share))
        table[name] = {"accuracy": right / n, "interval": [low, high], "chance": chance}
        table[name] |= {"beats_chance": low > chance, "n": n}
    return table


def held_out_table(trained: NetworkAttributes) -> str:
    """Return the accuracies on held-out images as text, an attribute a line."""
    width = max(len(name) for name in (*trained.names, "attribute"))
    lines = [f"{'attribute':{width}}  accuracy  95 % interval  chance  beats chance"]
    for name, row in trained.record["held_out"].items():
        interval, beats = "{:.3f} to {:.3f}".format(*row["interval"]), "yes" if row["beats_chance"] else "no"
        lines.append(f"{name:{width}}  {row['accuracy']:8.3f}  {interval}  {row['chance']:.3f}   {beats}")
    record = trained.record
    return "\n".join([*lines, f"n = {record['num_held_out']:,} held out, {record['num_train']:,} trained on"])


def split(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the images to train on and of those held out, both ascending."""
    num_test = round(held_out * count)
    if num_test < 1 or count - num_test < 2:
        raise ValueError(
            f"held_out = {held_out} of {count} images leaves {count - num_test} to train on and {num_test} to test on; "
            "at least 2 and 1 are needed"
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[num_test:]), np.sort(order[:num_test])


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Dataset[Tensor],
    targets: Tensor,
    train: np.ndarray,
    epoch: int,
    config: AttributeConfig,
    num_workers: int,
) -> None:
    """Pass over the training images once, by torch's global random numbers."""
    device, size = next(network.parameters()).device, min(config.batch_size, len(train))
    num_batches = len(train) // size  # a last batch of one image would break batch normalisation
    total, summed = config.num_epochs * num_batches, torch.zeros((), device=device)
    warmup = max(1, round(0.1 * total))
    network.train()
    order = torch.from_numpy(train)[torch.randperm(len(train))]
    batches = order[: num_batches * size].view(num_batches, size).tolist()
    loader = DataLoader(images, batch_sampler=batches, num_workers=num_workers)
    for step, (batch, x) in enumerate(zip(batches, loader, strict=True), start=epoch * num_batches):
        decay = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        optimizer.param_groups[0]["lr"] = config.learning_rate * ((step + 1) / warmup if step < warmup else decay)
        if images.horizontal_flip:
            x = torch.where(torch.rand(size, 1, 1, 1) < 0.5, x.flip(3), x)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            logits = network(fit_images(x.to(device), images.resolution))
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        summed += loss.detach()
    if not math.isfinite(summed):
        raise FloatingPointError(f"the loss became {float(summed)} in epoch {epoch + 1}; lower learning_rate")


def _check_labels(labels: np.ndarray, names: tuple[str, ...], num_images: int) -> None:
    if labels.ndim != 2 or labels.dtype != bool or labels.shape[1] != len(names) or not names:
        raise ValueError(
            f"labels must be boolean (N, {len(names)}), a column for each of at least one name; "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"names must differ; got {', '.join(names)}")
    if len(labels) > num_images:
        raise ValueError(f"there are labels for {len(labels)} images and {num_images} images")
