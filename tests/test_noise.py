"""The table of how far two runs lie apart."""

import pytest

from genprior.files import InputError
from pipeline.files import write_metrics
from pipeline.tables import read_table
from tools.noise import noise_table


def test_noise_is_measured_in_the_units_of_the_registry(tmp_path):
    for name, psnr, mse, epoch in (
        ("one", [20.0, 30.0], [0.01, 0.02], 0.5),
        ("other", [20.03, 29.5], [0.01, 0.025], 0.5),
    ):
        restored = {f"p_{i}": {"psnr_db": psnr[i], "mse": mse[i]} for i in (0, 1)}
        write_metrics(tmp_path / name / "ae.json", {"ae": {"mean": restored}})
        write_metrics(tmp_path / name / "chapter.json", {"chapter": {"ae": {"epoch_001": epoch, name: 1.0}}})
    lines = noise_table(*(read_table(tmp_path / name) for name in ("one", "other"))).splitlines()[2:]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["`mse`", "2", "1 %", "10 %", "20 %", "ae.mean.p_1", "1"],
        ["`psnr_db`", "2", "0.05", "0.27", "0.5", "ae.mean.p_1", "1"],
        ["`epoch_*`", "1", "1 %", "0 %", "0 %", "", "0"],
    ]


def test_folders_without_a_common_number_are_refused(tmp_path):
    with pytest.raises(InputError, match="no number in common"):
        noise_table(read_table(tmp_path), read_table(tmp_path))
