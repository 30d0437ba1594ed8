"""Several processes share an evaluation: each piece is made once, the record is that of one process, to the byte.

`accelerate launch` and `torchrun` run this very file on two processes; what they did is compared here with one process.
"""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState

from isodiff.cli import main
from isodiff.diffusion import save_pipeline
from isodiff.metrics import measure
from isodiff.metrics.measure import Arrays, cached, over_units

METRICS = "mrtl,mcn,anisotropy,map"  # of both kinds: in chunks of numbered pairs, and in batches of points
SIZES = (
    "num_rtl_pairs=5 rtl_points=3 rtl_steps=2 spectrum_times=[300,600] num_spectra=3 spectrum_k=3 num_anisotropy=40 "
    "num_maps=3 map_k=2 map_steps=1 batch_size=3"
)


def _evaluate(folder: Path, name: str) -> list[str]:
    sizes = [text for size in SIZES.split() for text in ("-p", size)]
    places = ["--output", str(folder / name / "records"), "--cache", str(folder / name / "cache")]
    return ["evaluate", str(folder / "model"), "--metrics", METRICS, "--device", "cpu", *sizes, *places]


def _rows(start: int, stop: int) -> Arrays:
    return {"rows": np.sqrt(np.arange(start, stop))}


def _two_processes(folder: Path) -> None:
    """Do on each process what the tests look at, and write down what it saw."""
    processes, written, write = PartialState(cpu=True), [], measure.write_whole
    rank, seen = processes.process_index, {"num_processes": processes.num_processes}

    def logging(path: Path, content: bytes | str, **options: str) -> None:
        write(path, content, **options)
        if path.suffix == ".npz":  # and not the record
            written.append(str(path))

    measure.write_whole = logging
    with cached(folder / "pieces", processes=processes):
        seen["rows"] = over_units(_rows, 10, size=3, what="rows")["rows"].tolist()
    seen["pieces"] = len(written)
    for place in (None, folder / f"apart-{rank}"):
        with pytest.raises((ValueError, OSError)) as refused, cached(place, processes=processes):
            over_units(_rows, 4, size=2, what="rows")
        seen["no folder" if place is None else "apart"] = f"{refused.typename}: {refused.value}"
    for attempt in ("evaluation", "again"):
        written.clear()
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as bars:
            seen["status"] = main(_evaluate(folder, "two"))
        seen |= {attempt: list(written), "printed": out.getvalue(), "bars": bars.getvalue()}
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))


def _record(folder: Path, name: str) -> bytes:
    (record,) = (folder / name / "records").iterdir()
    return record.read_bytes()


def _full_disk_on_the_second(folder: Path) -> int:
    if os.environ["RANK"] == "1":

        def full(*_arguments: object) -> None:
            raise OSError(28, "No space left on device")

        Path.replace = full
    return main([*_evaluate(folder, "full"), "--no-progress"])


# On a machine without GPU, --multi_gpu means several processes; --cpu would start one.
ACCELERATE = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port"
TORCHRUN = "torch.distributed.run --nproc-per-node 2 --master-port"


def _launch(launcher: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command = [sys.executable, "-m", *launcher.split(), str(free.getsockname()[1]), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory in which two processes have done `_two_processes`."""
    from ..diffusion.tiny import tiny_ddpm  # which the processes, for whom this file is the program, cannot

    folder = tmp_path_factory.mktemp("sharding")
    save_pipeline(tiny_ddpm(), folder / "model")
    finished = _launch(ACCELERATE, __file__, str(folder))
    assert finished.returncode == 0, finished.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict]:
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


def test_the_record_is_that_of_one_process(folder: Path, seen: list[dict]) -> None:
    assert [(process["num_processes"], process["status"]) for process in seen] == [(2, 0), (2, 0)]
    assert main([*_evaluate(folder, "one"), "--no-progress"]) == 0
    assert _record(folder, "two") == _record(folder, "one")
    one, two = ({p.name: p.read_bytes() for p in (folder / n / "cache").rglob("*.npz")} for n in ("one", "two"))
    assert one == two


def test_each_piece_is_made_once_and_the_work_is_shared(folder: Path, seen: list[dict]) -> None:
    made = [process["evaluation"] for process in seen]
    files = sorted(map(str, (folder / "two" / "cache").rglob("*.npz")))
    assert sorted(made[0] + made[1]) == files
    assert min(map(len, made)) > len(files) / 4
    assert [process["again"] for process in seen] == [[], []]


def test_all_processes_get_the_arrays_of_one(seen: list[dict]) -> None:
    assert [process["rows"] for process in seen] == [np.sqrt(np.arange(10)).tolist()] * 2
    assert [process["pieces"] for process in seen] == [2, 2]


def test_only_the_main_process_speaks(seen: list[dict]) -> None:
    assert "record: " in seen[0]["printed"]
    assert "anisotropy" in seen[0]["bars"]
    assert [seen[1]["printed"], seen[1]["bars"]] == ["", ""]


def test_without_a_folder_that_all_see_nothing_is_shared(seen: list[dict]) -> None:
    for rank, process in enumerate(seen):
        assert process["no folder"].startswith("ValueError: 2 processes share their work through a folder and got none")
        assert process["apart"].startswith(f"OSError: process {rank} cannot read ")


def _complaint(*arguments: str) -> str:
    """Return the one line that two processes say when they fail."""
    finished = _launch(TORCHRUN, *arguments)
    assert finished.returncode != 0
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("isodiff: ") and "warning" not in line]
    return line


def test_a_process_that_fails_ends_all_and_says_why_once(folder: Path) -> None:
    assert "No space left" in _complaint(__file__, str(folder), "full")
    assert not list((folder / "full").rglob("*.json"))
    assert main([*_evaluate(folder, "full"), "--no-progress"]) == 0  # goes on from what the other process made
    assert _record(folder, "full") == _record(folder, "two")


def test_what_every_process_fails_of_is_said_once(folder: Path) -> None:
    places = ["--base", str(folder / "model"), "--dataset", "faces", "--device", "cpu", "--output", str(folder / "nan")]
    sizes = ["--num-steps", "3", "--batch-size", "2", "--learning-rate", "1e30"]
    assert "Lower learning_rate" in _complaint("-m", "isodiff", "finetune", *places, *sizes)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    sys.exit(_full_disk_on_the_second(place) if sys.argv[2:] == ["full"] else _two_processes(place))
