"""`isodiff sample`: the images of the generator, in one picture, and nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isodiff.cli import main
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.metrics.generator import Generator, draw_latents, to_uint8

SAMPLE = ["sample", "digits16/base", "--number", "3", "--columns", "2", "--num-steps", "2", "--device", "cpu"]


def test_the_picture_holds_the_images_of_the_first_latents(tmp_path: Path) -> None:
    assert main([*SAMPLE, "--seed", "5", "--batch-size", "2", "--output", str(tmp_path / "a.png")]) == 0
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    generate = Generator(load_pipeline("digits16/base"), 2)
    with torch.no_grad():
        images = to_uint8(generate(draw_latents(generate.shape, 0, 3, seed=5, stream="samples")))[:, 0].numpy()
    assert picture.shape == (2 * 17 + 1, 2 * 17 + 1, 3)
    for image, (row, column) in zip(images, ((0, 0), (0, 1), (1, 0)), strict=True):
        found = picture[1 + 17 * row : 17 + 17 * row, 1 + 17 * column : 17 + 17 * column, 0]
        assert np.abs(found.astype(int) - image).max() <= 1  # a batch of another size rounds otherwise
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--number", "0"], "number must be at least 1; got 0"),
        (["--output", "a.bmp"], "output must end in .png or .jpg; got 'a.bmp'"),
        (["--num-steps", "1001"], "num_steps must be 1 to 1000; got 1001"),
        (["--seed", "-1"], "seed"),
        (["--prompt", "a face"], "takes no prompt"),
    ],
)
def test_bad_input_is_one_line(
    change: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SAMPLE, "--output", "a.png", *change]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    assert main([*SAMPLE, "--output", str(tmp_path / "a.png")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == b"mine"
