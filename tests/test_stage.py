import contextlib
import json

import numpy as np
import pytest
import torch
import yaml

from genprior.files import InputError, whole_file
from genprior.streams import stream
from pipeline.files import read_array, write_array, write_metrics
from pipeline.run import run, set_up


def test_metrics_are_rounded_sorted_and_nested(tmp_path):
    write_metrics(tmp_path / "m.json", {"b": 1.23456789, "a": {"n": 3, "x": np.float32(1e-9)}})
    assert (tmp_path / "m.json").read_text() == json.dumps({"a": {"n": 3, "x": 1e-9}, "b": 1.23457}, indent=2) + "\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_refused_by_name(tmp_path, value):
    with pytest.raises(InputError, match=r"m\.a\.b"):
        write_metrics(tmp_path / "m.json", {"a": {"b": value}})
    assert not list(tmp_path.iterdir())


def test_streams_are_the_same_for_one_purpose_and_independent_for_two():
    draws = {key: torch.randn(10_000, generator=stream(*key)) for key in [(0, "a"), (0, "b"), (1, "a"), (1, "b")]}
    assert torch.equal(draws[0, "a"], torch.randn(10_000, generator=stream(0, "a")))
    correlation = torch.corrcoef(torch.stack(list(draws.values()))) - torch.eye(4)
    assert correlation.abs().max() < 0.04  # four of its standard errors


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write_array(tmp_path / "a.npy", np.ones(3))

    def fail_half_way():
        with whole_file(tmp_path / "a.npy") as part:
            part.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_a_thread_limit_below_threads_is_refused(params, monkeypatch):
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    with pytest.raises(InputError, match="OMP_THREAD_LIMIT = 1: below threads = 2"):
        set_up(params.model_copy(update={"threads": 2}))
    assert set_up(params.model_copy(update={"threads": 1})).type == "cpu"


@pytest.mark.parametrize("found", [False, True])
def test_device_that_is_not_there_is_refused_by_name(params, monkeypatch, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    on_gpu, either = (params.model_copy(update={"device": name}) for name in ("cuda", "auto"))
    assert set_up(either).type == ("cuda" if found else "cpu")
    if found:
        assert set_up(on_gpu).type == "cuda"
    else:
        with pytest.raises(InputError, match="device = 'cuda'"):
            set_up(on_gpu)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("params.yaml: seed = -1"), "error: params.yaml: seed = -1"),  # Python prints it and exits with 1
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device", "data/x.npy"), "error: data/x.npy: No space left on device"),
    ],
)
def test_errors_end_a_stage_with_one_line_and_the_right_code(error, code):
    def fail():
        raise error

    with pytest.raises(SystemExit) as caught:
        run(fail)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("params.yaml train_vae", "params.yaml: train_vae"),
        ("params.yaml report", None),
        ("code.py", "code.py"),
        ("data/patches/a.npy", "data/patches/a.npy"),
        ("data/vae", "data/vae"),
        ("data/patches/.DS_Store", None),
    ],
)
def test_what_is_edited_while_the_stage_runs_is_not_recorded(tmp_path, values, monkeypatch, edit, said):
    """DVC records parameters and dependencies as it finds them when the stage has ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "../dvc.yaml:train_vae@vae")
    stage = {"params": ["seed", "train_vae.lr"], "deps": ["code.py", "data/patches", "data/${key}"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train_vae": {"do": stage}}}))
    (tmp_path / "data/patches").mkdir(parents=True)
    for name in ("code.py", "data/vae", "data/patches/a.npy", "data/patches/.DS_Store"):
        (tmp_path / name).touch()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))

    def main():
        file, _, block = edit.partition(" ")
        values[block or "report"] |= {"train_vae": {"lr": 0.1}, "report": {"pictures": 1}}[block or "report"]
        (tmp_path / file).write_text(yaml.safe_dump(values))

    monkeypatch.setattr("pipeline.run._end_with_dvc", lambda: None)  # this process shall not
    with pytest.raises(SystemExit, match=f"^error: {said}: edited while") if said else contextlib.nullcontext():
        run(main)


def on_a_gpu(size):
    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} GiB.")


@pytest.mark.parametrize("allocate", [np.empty, torch.empty, bytearray, on_a_gpu])
def test_want_of_memory_ends_a_stage_with_one_line(allocate):
    with pytest.raises(SystemExit) as caught:
        run(lambda: allocate(2**50))
    assert caught.value.code.startswith("error: out of memory.")
    assert "\n" not in caught.value.code


def test_a_defect_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        run(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
