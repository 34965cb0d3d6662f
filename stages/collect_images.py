"""Photographs that scikit-image and scikit-learn carry in their wheels, as imgs/standard/*.png."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from genprior.files import InputError, whole_file
from pipeline.params import load_params
from pipeline.run import run

TARGET = Path("imgs/standard")
WHEELS = {"skimage": "data", "sklearn": "datasets/images"}  # packages, and where each has its pictures
# What is a photograph among their files; imgs/README.md gives the source and licence of each.
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "china", "clock_motion", "coffee", "coins", "flower", "grass"),
    *("gravel", "hubble_deep_field", "ihc", "microaneurysms", "moon", "motorcycle_left", "motorcycle_right", "page"),
    *("retina", "rocket", "text"),
)


def collect(names: list[str], target: Path) -> None:
    """Copy the named photographs to `target`/NAME.png, all or none; InputError names one that there is not."""
    for name in names:
        if name not in PHOTOGRAPHS:
            raise InputError(
                f"params.yaml: collect_images.names: no photograph '{name}'; there is {', '.join(PHOTOGRAPHS)}"
            )
    part = target.with_name(f".part-{target.name}")  # a killed stage leaves it: Git and DVC look past it
    shutil.rmtree(part, ignore_errors=True)
    try:
        for name in names:
            folders = (Path(find_spec(wheel).origin).parent / inside for wheel, inside in WHEELS.items())
            (source,) = (file for folder in folders for file in folder.glob(f"{name}.[jp][pn]g"))
            with Image.open(source) as image, whole_file(part / f"{name}.png") as file:
                image.save(file)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main() -> None:
    params = load_params("params.yaml")
    collect(params.collect_images.names, TARGET)


if __name__ == "__main__":
    run(main)
