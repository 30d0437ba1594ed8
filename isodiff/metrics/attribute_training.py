"""Train a network to tell the attributes of images, and test it on images held out: AdamW on binary cross-entropy."""

from __future__ import annotations

import json
import math
import pickle
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

from isodiff.metrics.attribute_config import AttributeConfig
from isodiff.metrics.attributes import RECORD, NetworkAttributes, build_network, fit_images
from isodiff.metrics.store import content_digest
from isodiff.paths import require_folder

CHECKPOINT = "checkpoint.pt"
_WARMUP = 0.1  # share of the steps


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
    """Train a classifier into a directory.

    Interrupted and called again, it goes on after the last finished epoch, with the same result on a CPU as without the
    interruption; called once more when done, it loads the result.

    Args:
        images: (C, R, R) in [−1, 1] each, with `resolution` and `horizontal_flip`, as `open_dataset` gives them.
        labels: (N, A) true or false, of the first N images.
        names: Of the A attributes.
        output: The directory, see `NetworkAttributes.save`.
        config: The settings.
        provenance: Facts to record, such as the dataset; plain JSON values. A training with others, ``command``
            excepted, is another training.
        device: Where to train.
        num_workers: Processes that load images.
        progress: Whether to show a progress bar.

    Returns:
        The classifier; ``record["held_out"]`` has for each attribute what `held_out_accuracy` returns.

    Raises:
        ValueError: If labels do not fit images and names, the images to train on show one class only, or the directory
            belongs to another training.
        ArithmeticError: If the loss leaves the finite numbers.

    Note:
        Nothing is chosen on the held-out images, neither the epoch nor a setting. The split is by image: where a person
        has several, both sides may show them.
    """
    config, output, device = config or AttributeConfig(), Path(output), torch.device(device)
    labels, names = _check_labels(labels, names, len(images))
    train, test = split(len(labels), config.held_out, config.seed)
    _require_both_classes(labels[train], names)
    resolution = images.resolution
    facts = {
        "config": asdict(config),
        "num_images": len(labels),
        "resolution": resolution,
        "names": list(names),
        "labels_sha256": content_digest(labels, *names),
        **(provenance or {}),
    }
    require_folder(output)
    if (output / RECORD).exists():
        trained = NetworkAttributes.load(output, device=device)
        found = trained.record | {"resolution": trained.resolution, "names": list(trained.names)}
        _require_same(found, facts, output / RECORD)
        (output / CHECKPOINT).unlink(missing_ok=True)  # a kill may have come just before this
        return trained

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(config.architecture, len(names), resolution).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    checkpoint = output / CHECKPOINT
    done = _restore(checkpoint, network, optimizer, facts, device)
    targets = torch.from_numpy(labels).float()
    epochs = range(done, config.num_epochs)
    total = config.num_epochs
    bar = tqdm(epochs, config.architecture, total, unit="epoch", initial=done, disable=not progress)
    for epoch in bar:
        loss = _train_epoch(network, optimizer, images, targets, train, epoch, config, device, num_workers)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        partial = checkpoint.with_name(f".{CHECKPOINT}.partial")
        try:
            output.mkdir(parents=True, exist_ok=True)
            torch.save({**state, "facts": json.dumps(facts)}, partial)
            partial.replace(checkpoint)
        except (OSError, RuntimeError) as error:  # torch writes in C++ and raises what that raises
            partial.unlink(missing_ok=True)
            raise OSError(
                f"{checkpoint} could not be written ({error}); make room and run the same command again to go on"
            ) from error

    trained = NetworkAttributes(network, names, architecture=config.architecture, resolution=resolution)
    rest = Subset(images, test.tolist())
    held_out = DataLoader(rest, batch_size=256, num_workers=num_workers, generator=torch.Generator())
    told = np.concatenate([trained.probabilities(batch) for batch in held_out])
    record = {name: fact for name, fact in facts.items() if name not in ("resolution", "names")}
    table = held_out_accuracy(told > 0.5, labels[test], names)
    trained.record = record | {"num_train": len(train), "num_held_out": len(test), "held_out": table}
    trained.save(output)
    checkpoint.unlink()
    return trained


def held_out_accuracy(told: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the accuracy of each attribute on images not trained on, next to chance.

    Args:
        told: (n, A) true or false, the classifier's answers.
        labels: (n, A) true or false.
        names: Of the A attributes.

    Returns:
        By name: ``accuracy`` with its 95 % Clopper–Pearson ``interval``; ``chance``, the share of the more frequent
        class among these very images; ``beats_chance``, whether the interval lies above it; and ``n``.
    """
    table = {}
    for column, name in enumerate(names):
        right, n = int((told[:, column] == labels[:, column]).sum()), len(labels)
        interval = binomtest(right, n).proportion_ci(0.95, method="exact")
        share = float(labels[:, column].mean())
        chance = max(share, 1 - share)
        table[name] = {
            "accuracy": right / n,
            "interval": [float(interval.low), float(interval.high)],
            "chance": chance,
            "beats_chance": bool(interval.low > chance),
            "n": n,
        }
    return table


def split(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the images to train on and of those held out, both ascending.

    Raises:
        ValueError: If fewer than two images would remain to train on, or none be held out.
    """
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
    device: torch.device,
    num_workers: int,
) -> float:
    """Pass over the training images once and return the mean loss; all randomness is a function of seed and epoch."""
    seed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    devices = [device] if device.type == "cuda" else []
    size = min(config.batch_size, len(train))
    num_batches = len(train) // size  # a last batch of one image would break batch normalisation
    total_steps = config.num_epochs * num_batches
    losses = []
    network.train()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # dropout, in architectures that have it
        order = torch.from_numpy(train)[torch.randperm(len(train))]
        batches = order[: num_batches * size].view(num_batches, size).tolist()
        loader = DataLoader(images, batch_sampler=batches, num_workers=num_workers)
        for index, (batch, x) in enumerate(zip(batches, loader, strict=True)):
            optimizer.param_groups[0]["lr"] = config.learning_rate * _schedule(epoch * num_batches + index, total_steps)
            if images.horizontal_flip:
                x = torch.where(torch.rand(size, 1, 1, 1) < 0.5, x.flip(3), x)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
                logits = network(fit_images(x.to(device), images.resolution))
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    loss = float(torch.stack(losses).mean())
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss became {loss} in epoch {epoch + 1}; lower learning_rate")
    return loss


def _schedule(step: int, total: int) -> float:
    warmup = max(1, round(_WARMUP * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _restore(
    checkpoint: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    device: torch.device,
) -> int:
    """Load the state after the last finished epoch, if there is one; return how many are done."""
    if not checkpoint.exists():
        return 0
    try:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        found = json.loads(state["facts"])
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"the checkpoint {checkpoint} is damaged ({type(error).__name__}); delete it to start again"
        ) from error
    _require_same(found, facts, checkpoint)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"]


def _require_same(found: Mapping[str, Any], wanted: Mapping[str, Any], file: Path) -> None:
    differ = [
        f"{name} = {found.get(name)!r} there, {value!r} now"
        for name, value in wanted.items()
        if name != "command" and found.get(name) != value
    ]
    if differ:
        raise ValueError(f"{file} belongs to another training: {'; '.join(differ)}. Choose another output or delete it")


def _check_labels(labels: np.ndarray, names: Sequence[str], num_images: int) -> tuple[np.ndarray, tuple[str, ...]]:
    labels, names = np.asarray(labels), tuple(names)
    if labels.ndim != 2 or labels.dtype != bool or labels.shape[1] != len(names) or not names:
        raise ValueError(
            f"labels must be boolean (N, {len(names)}), a column for each of at least one name; "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"names must differ; got {', '.join(names)}")
    if len(labels) > num_images:
        raise ValueError(f"there are labels for {len(labels)} images and {num_images} images")
    return labels, names


def _require_both_classes(labels: np.ndarray, names: Sequence[str]) -> None:
    for name, share in zip(names, labels.mean(axis=0), strict=True):
        if share in (0, 1):
            raise ValueError(
                f"{name} is {'true' if share else 'false'} for all {len(labels)} images to train on; "
                "leave it out, or give images of both kinds"
            )
