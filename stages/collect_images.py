"""Photographs that scikit-image carries in its wheel, as imgs/standard/*.png."""

import shutil
import tempfile
from pathlib import Path

import skimage
from PIL import Image

from genprior.params import InputError, load_params
from genprior.stage import run

TARGET = Path("imgs/standard")
# What is a photograph among scikit-image's data files; imgs/README.md gives the source and licence of each.
PHOTOGRAPHS = {
    "astronaut": "png",
    "brick": "png",
    "camera": "png",
    "cell": "png",
    "chelsea": "png",
    "clock_motion": "png",
    "coffee": "png",
    "coins": "png",
    "grass": "png",
    "gravel": "png",
    "hubble_deep_field": "jpg",
    "ihc": "png",
    "microaneurysms": "png",
    "moon": "png",
    "motorcycle_left": "png",
    "motorcycle_right": "png",
    "page": "png",
    "retina": "jpg",
    "rocket": "jpg",
    "text": "png",
}


def collect(names: list[str], target: Path) -> None:
    """Copy the named photographs to `target`/NAME.png, all or none; InputError names one that there is not."""
    for name in names:
        if name not in PHOTOGRAPHS:
            raise InputError(
                f"params.yaml: collect_images.names: no photograph '{name}'; there is {', '.join(PHOTOGRAPHS)}"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as part:
        for name in names:
            with Image.open(Path(skimage.data_dir) / f"{name}.{PHOTOGRAPHS[name]}") as image:
                image.save(Path(part) / f"{name}.png")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for file in sorted(Path(part).iterdir()):
            file.replace(target / file.name)


def main() -> None:
    params = load_params("params.yaml")
    collect(params.collect_images.names, TARGET)


if __name__ == "__main__":
    run(main)
