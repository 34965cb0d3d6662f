"""params.yaml as a typed schema: what every knob is, and one clear line when it is wrong."""

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what would be right."""


def _number(value: object) -> object:
    # PyYAML follows YAML 1.1, where 1e-05 is a string, and DVC writes exactly that for `-S lr=0.00001`.
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value


Float = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Float, Field(gt=0, le=1e6)]
NonNegative = Annotated[Float, Field(ge=0, le=1e6)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0, le=10_000_000)]
Size = Annotated[int, Field(gt=0, le=16_384)]
Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]
Hidden = Annotated[list[Size], Field(min_length=1, max_length=16)]
File = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$")]
Activation = Literal["relu", "leaky_relu", "elu", "silu", "gelu", "tanh"]


class Settings(BaseModel):
    """A block of params.yaml: no unknown key, no silent conversion, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class CollectImages(Settings):
    names: Annotated[list[Annotated[str, Field(pattern=r"^\w+$")]], Field(min_length=1)]


class ExtractPatches(Settings):
    train: Annotated[list[File], Field(min_length=1)]
    validation: Annotated[list[File], Field(min_length=1)]
    test: Annotated[list[File], Field(min_length=1)]
    scenes: list[Annotated[list[File], Field(min_length=2)]]
    image_size: Size | Pair | None
    crop: Annotated[list[Annotated[int, Field(ge=0, le=16_384)]], Field(min_length=4, max_length=4)] | None
    patch_size: Pair
    stride: Size
    symmetries: bool
    max_patches: Count

    @model_validator(mode="after")
    def _split_by_scene(self) -> Self:
        split_of = {}
        for split in ("train", "validation", "test"):
            for file in map(_normal, getattr(self, split)):
                if file in split_of:
                    raise ValueError(
                        f"extract_patches.{split} names {file}, which extract_patches.{split_of[file]} has already; "
                        "name every photograph once"
                    )
                split_of[file] = split
        for scene in self.scenes:
            splits = {file: split_of[file] for file in map(_normal, scene) if file in split_of}
            if len(set(splits.values())) > 1:
                where = ", ".join(f"{file} in {split}" for file, split in splits.items())
                raise ValueError(f"extract_patches.scenes: one scene in two splits ({where}); keep it in one")
        return self

    @model_validator(mode="after")
    def _patch_fits(self) -> Self:
        sides = self.image_size or self.crop
        if isinstance(sides, int):
            smallest = [sides, sides]  # the shorter side
        elif sides:
            smallest = sides[-2:]
        else:
            return self
        if self.crop and self.image_size:
            top, left, height, width = self.crop
            if isinstance(self.image_size, list) and (top + height > smallest[0] or left + width > smallest[1]):
                raise ValueError(
                    f"extract_patches.crop = {self.crop} (top, left, height, width) reaches beyond "
                    f"extract_patches.image_size = {self.image_size}"
                )
            smallest = [height, width]
        if any(patch > side for patch, side in zip(self.patch_size, smallest, strict=True)):
            raise ValueError(
                f"extract_patches.patch_size = {self.patch_size} is larger than the image, {smallest} (height, width)"
            )
        return self


def _normal(file: str) -> str:
    return str(PurePosixPath(file))


class Network(Settings):
    latent_size: Size
    hidden: Hidden
    activation: Activation


class _Training(Settings):
    steps: Count
    batch_size: Count | None
    lr: Positive


class Residual(_Training):
    pass


class TrainAE(_Training):
    pass


class TrainVAE(_Training):
    noise: Literal["fixed", "learned", "pixel", "dct"]
    sigma: Positive
    objective: Literal["elbo", "chapter"]
    beta: NonNegative
    chapter_steps: Count

    @model_validator(mode="after")
    def _chapter_trains_no_noise(self) -> Self:
        if self.objective == "chapter" and self.noise != "fixed":
            raise ValueError(
                f"train_vae.noise = '{self.noise}': the mean squared error of train_vae.objective = 'chapter' "
                "trains no noise; 'fixed' would be right"
            )
        if self.objective == "chapter" and self.beta == 0:
            raise ValueError("train_vae.beta = 0: the chapter's objective needs it above 0, it implies the noise")
        return self


class TrainGAN(_Training):
    loss: Literal["relativistic", "non_saturating", "minimax", "hinge", "wasserstein"]
    gradient_penalty: NonNegative
    spectral_norm: bool
    curvature: NonNegative
    discriminator_hidden: Hidden
    average: Fraction
    chapter_steps: Count


class Sample(Settings):
    count: Annotated[int, Field(ge=20, le=20_000)]
    neighbours: Annotated[int, Field(gt=0, lt=20)]


class _Problem(Settings):
    sigma: Positive


class Denoise(_Problem):
    operator: Literal["identity"]


class Inpaint(_Problem):
    operator: Literal["inpaint"]
    missing: Fraction


class Blur(_Problem):
    operator: Literal["blur"]
    width: Positive


class SuperResolution(_Problem):
    operator: Literal["downsample"]
    factor: Size


class CompressedSensing(_Problem):
    operator: Literal["gaussian"]
    measurements: Size


Problem = Annotated[Denoise | Inpaint | Blur | SuperResolution | CompressedSensing, Field(discriminator="operator")]


class Search(Settings):
    starts: Annotated[int, Field(gt=0, le=1000)]
    iterations: Count


class Evaluate(Settings):
    patches: Count
    latent_weight: NonNegative | None
    range: Search
    relaxed: Search
    mean_samples: Annotated[int, Field(ge=20, le=100_000)]
    solver_patches: Count
    posterior_patches: Count
    posterior_samples: Annotated[int, Field(ge=20, le=100_000)]
    likelihood_patches: Count


class Baselines(Settings):
    validation_patches: Count
    tikhonov_weights: Annotated[list[Positive], Field(min_length=1)]
    lasso_weights: Annotated[list[Positive], Field(min_length=1)]
    tv_weights: Annotated[list[Positive], Field(min_length=1)]
    mixture_components: list[Annotated[int, Field(gt=1, le=1000)]]
    mixture_patches: Count
    mixture_iterations: Count
    mixture_shrinkages: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]


class TrainDiscriminative(Settings):
    steps: Count
    batch_size: Count
    lr: Positive
    hidden: Annotated[list[Size], Field(min_length=1)]


class Crossover(Settings):
    measurements: Annotated[list[Size], Field(min_length=2)]
    sigma: Positive
    patches: Count


class Report(Settings):
    pictures: Annotated[int, Field(gt=0, le=64)]
    posterior: str


class Chapter(Settings):
    image: File


class Params(Settings):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    device: Literal["cpu", "cuda", "mps", "auto"]
    threads: Annotated[int, Field(gt=0, le=1024)]
    collect_images: CollectImages
    extract_patches: ExtractPatches
    network: Network
    residual: Residual
    train_ae: TrainAE
    train_vae: TrainVAE
    train_gan: TrainGAN
    sample: Sample
    problems: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z]\w*$")], Problem], Field(min_length=1)]
    evaluate: Evaluate
    crossover: Crossover
    baselines: Baselines
    train_discriminative: TrainDiscriminative
    report: Report
    chapter: Chapter

    def crossover_problems(self) -> dict[str, CompressedSensing]:
        """Compressed sensing at each number of measurements, under the names m_10, m_25, ..."""
        sigma = self.crossover.sigma
        return {
            f"m_{m}": CompressedSensing(operator="gaussian", measurements=m, sigma=sigma)
            for m in self.crossover.measurements
        }

    @model_validator(mode="after")
    def _problems_fit(self) -> Self:
        for name, problem in self.problems.items():
            sides = self.extract_patches.patch_size
            if problem.operator == "downsample" and any(side % problem.factor for side in sides):
                raise ValueError(
                    f"problems.{name}.factor = {problem.factor} does not divide extract_patches.patch_size = {sides}"
                )
        counts = self.crossover.measurements
        if counts != sorted(set(counts)):
            raise ValueError(f"crossover.measurements = {counts}: the numbers must grow")
        if max(self.baselines.mixture_components, default=0) > self.baselines.mixture_patches:
            raise ValueError(
                f"baselines.mixture_patches = {self.baselines.mixture_patches}: fewer than a mixture has components"
            )
        if clash := sorted(self.problems.keys() & self.crossover_problems().keys()):
            raise ValueError(f"problems.{clash[0]}: the name is taken by a problem of crossover; choose another")
        if self.report.posterior not in self.problems:
            raise ValueError(
                f"report.posterior = '{self.report.posterior}' is none of problems: {', '.join(self.problems)}"
            )
        return self


def load_params(path: str | Path) -> Params:
    """Read and check a parameter file; InputError names the first wrong key, its value and what would be right."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds {type(values).__name__}, not blocks of parameters")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_line(error, values)}") from None


def _first_line(error: ValidationError, values: dict) -> str:
    """The first wrong key with all that is wrong about it, and how many more keys are wrong."""
    found = {}
    for detail in error.errors(include_url=False):
        key, place = _locate(detail["loc"], values)
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "missing":
            message = ".".join(filter(None, [key, str(detail["loc"][-1])])) + " is missing"
        elif detail["type"] == "extra_forbidden":
            message = f"{key} is not a parameter"
        elif detail["type"] != "value_error":
            value = repr(place) if len(repr(place)) <= 80 else repr(place)[:77] + "..."
            message = f"{key} = {value}: {message[0].lower()}{message[1:]}"
            if key in found:  # one member of a union each
                message = f"{found[key]}, or {message.split(': ', 1)[1]}"
        found[key] = message
    first, *rest = found.values()
    return first + (f" (and {len(rest)} more)" if rest else "")


def _locate(location: tuple, values: dict) -> tuple[str, object]:
    """The dotted key of an error and the value there; a union's tags, which no file has, are left out of the key."""
    keys, place = [], values
    for step in location:
        if (isinstance(place, dict) and step in place) or (isinstance(place, list) and isinstance(step, int)):
            keys.append(str(step))
            place = place[step]
    return ".".join(keys), place
