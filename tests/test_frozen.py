"""What no change of the house may move: checked outputs of notebooks, metrics of the shipped models, verdicts.

The values stand in `frozen.json`. `python tests/test_frozen.py` writes them anew; do that only for a change that is
meant to move a number, and say so in the commit.
"""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FROZEN = Path(__file__).with_name("frozen.json")
MODELS = [f"{kind}/{name}" for kind in ("digits16", "faces32") for name in ("base", "control", "isometric")]
METRICS = ("fid", "kid", "ppl", "mrtl", "mcn", "vor", "anisotropy")
SIZES = {"num_fid_images": 24, "fid_steps": 4, "num_rtl_pairs": 2, "rtl_points": 5, "rtl_steps": 4}
SIZES |= {"num_ppl_pairs": 40, "ppl_steps": 2, "ppl_epsilon": 1e-2, "ppl_networks": ["alex"], "ppl_modes": ["full"]}
SIZES |= {"spectrum_times": [600], "num_spectra": 3, "spectrum_k": 10, "num_anisotropy": 4}


def checked_outputs() -> dict[str, list[str]]:
    """Return the text of every cell that nbval compares, by notebook."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        checked = [cell for cell in cells if "nbval-check-output" in cell["metadata"].get("tags", [])]
        texts = [[o.get("text", o.get("data", {}).get("text/plain", "")) for o in cell["outputs"]] for cell in checked]
        found[path.stem] = ["".join(map("".join, outputs)) for outputs in texts]
    return found


def measured(model: str) -> dict[str, float]:
    """Measure one shipped model on a few images."""
    from isodiff.metrics import evaluate

    dataset = "digits" if model.startswith("digits") else "faces"
    record = evaluate(model, METRICS, dataset=dataset, attributes=None, sizes=SIZES)
    return {name: float(f"{m.value:.8g}") for name, m in record.measurements.items()}


def verdicts() -> list[list[str]]:
    """Return every claim with its verdict and our value, from the records."""
    from isodiff.reproduce.report import decide

    return [[d.claim.name, d.verdict, d.ours_in_full] for d in decide(ROOT / "data/results/reproduce")]


def frozen() -> dict:
    return json.loads(FROZEN.read_text(encoding="utf-8"))


def test_the_checked_outputs_of_every_notebook_are_the_frozen_ones() -> None:
    assert checked_outputs() == frozen()["notebooks"]


@pytest.mark.parametrize("model", MODELS)
def test_the_metrics_of_a_shipped_model_are_the_frozen_ones(model: str) -> None:
    # KID of 24 images is a difference of large sums; everything else agrees to more digits
    found, expected = measured(model), frozen()["models"][model]
    assert found == pytest.approx(expected, rel=2e-3, abs=2e-5)


def test_the_verdicts_are_the_frozen_ones() -> None:
    assert verdicts() == frozen()["verdicts"]


if __name__ == "__main__":
    models = {model: measured(model) for model in MODELS}
    everything = {"notebooks": checked_outputs(), "models": models, "verdicts": verdicts()}
    FROZEN.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
