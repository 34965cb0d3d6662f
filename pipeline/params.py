"""params.yaml as a typed schema: what every knob is, and one clear line when it is wrong."""

import math
import reprlib
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from genprior.files import InputError

RESERVED = ("representation", "likelihood", "samples", "training", "patches", "chapter")  # by tables of measures
PRIORS = {"ae": "autoencoder", "vae": "VAE", "gan": "GAN", "svae": "structured VAE"}  # a model in data/models each
SPLITS = ("train", "validation", "test")  # of photographs
MOST_PIXELS = 4096  # of a patch: what knows all of its pixels has n² numbers

Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Noise = Annotated[float, Field(ge=1e-3, le=1e3)]  # a standard deviation, of images in [0, 1]; with less, float32 fails
Sigma = Annotated[float, Field(ge=1e-4, le=1e3)]  # a decoder's
Weight = Annotated[float, Field(ge=1e-12, le=1e6)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0, le=10_000_000)]
Size = Annotated[int, Field(gt=0, le=16_384)]
Hidden = Annotated[list[Size], Field(min_length=1, max_length=16)]
File = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$", max_length=4000)]
Name = Annotated[str, Field(pattern=r"^[a-z]\w*$", max_length=40)]
Activation = Literal["relu", "leaky_relu", "elu", "silu", "gelu", "tanh"]


class Settings(BaseModel):
    """A block of params.yaml: no unknown key, no silent conversion, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class CollectImages(Settings):
    names: Annotated[list[Annotated[str, Field(pattern=r"^\w+$")]], Field(min_length=1)]


Files = Annotated[list[File], Field(min_length=1)]  # or patterns, as imgs/mine/**/*.jpg
Held = Annotated[float, Field(gt=0, lt=1)]  # the share of `train` that is held out


class ExtractPatches(Settings):
    train: Files
    validation: Files | Held
    test: Files | Held
    scenes: list[Annotated[list[File], Field(min_length=2)]] | Literal["folders"]
    white_level: Positive | None
    image_size: Size | Annotated[list[Size], Field(min_length=2, max_length=2)] | None
    crop: Annotated[list[Annotated[int, Field(ge=0, le=16_384)]], Field(min_length=4, max_length=4)] | None
    patch_size: Annotated[list[Annotated[int, Field(ge=2, le=MOST_PIXELS)]], Field(min_length=2, max_length=2)]
    stride: Size
    symmetries: bool
    max_patches: Annotated[int, Field(ge=2, le=10_000_000)]


class Network(Settings):
    latent_size: Size
    hidden: Hidden
    activation: Activation


class Training(Settings):
    steps: Count
    batch_size: Count | None
    lr: Positive


class Residual(Training):
    noise: Literal["dct", "modulated"]
    code_weight: NonNegative | None
    warm_up: Share


class Collapse(Settings):
    steps: Count
    batch_size: Count | None
    sigmas: Annotated[list[Sigma], Field(min_length=1)]


class TrainVAE(Training):
    noise: Literal["fixed", "learned"]
    sigma: Sigma
    objective: Literal["elbo", "chapter"]
    beta: NonNegative
    collapse: Collapse


class TrainSVAE(Training):
    noise: Literal["dct", "modulated"]


class TrainGAN(Training):
    loss: Literal["relativistic", "non_saturating", "minimax", "hinge", "wasserstein"]
    gradient_penalty: NonNegative
    spectral_norm: bool
    curvature: NonNegative
    discriminator_hidden: Hidden
    average: Fraction
    chapter_steps: Count


class Sample(Settings):
    count: Annotated[int, Field(ge=20, le=10_000)]
    neighbours: Annotated[int, Field(gt=0, lt=20)]


class _Problem(Settings):
    sigma: Noise


class Denoise(_Problem):
    operator: Literal["identity"]


class Inpaint(_Problem):
    operator: Literal["inpaint"]
    missing: Fraction


class Blur(_Problem):
    operator: Literal["blur"]
    width: Annotated[float, Field(ge=0.01, le=100)]  # in pixels


class SuperResolution(_Problem):
    operator: Literal["downsample"]
    factor: Size


class CompressedSensing(_Problem):
    operator: Literal["gaussian"]
    measurements: Size


class Motion(_Problem):
    operator: Literal["motion"]
    length: Annotated[float, Field(ge=1, le=1000)]  # in pixels
    angle: Annotated[float, Field(ge=-360, le=360)]  # in degrees


class Fourier(_Problem):
    operator: Literal["fourier"]
    share: Annotated[float, Field(gt=0, le=1)]  # of the frequencies


_Any = Denoise | Inpaint | Blur | SuperResolution | Motion
Problem = Annotated[_Any | CompressedSensing, Field(discriminator="operator")]  # of patches
OfPhotograph = Annotated[_Any | Fourier, Field(discriminator="operator")]


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
    likelihood_patches: Annotated[int, Field(ge=2, le=10_000_000)]  # one has no standard error


class LatentWeights(Settings):
    problem: str
    factors: Annotated[list[Count], Field(min_length=2)]


class Baselines(Settings):
    validation_patches: Count
    tikhonov_weights: Annotated[list[Weight], Field(min_length=1)]
    lasso_weights: Annotated[list[Weight], Field(min_length=1)]
    tv_weights: Annotated[list[Weight], Field(min_length=1)]
    mixture_components: list[Annotated[int, Field(gt=1, le=1000)]]
    mixture_patches: Count | None
    mixture_iterations: Count
    mixture_strength: NonNegative
    mixture_shrinkages: Annotated[list[Share], Field(min_length=1)]


class TrainDiscriminative(Settings):
    steps: Count
    patience: Count
    batch_size: Count
    lr: Positive
    hidden: Hidden


class Crossover(Settings):
    measurements: Annotated[list[Size], Field(min_length=2)]
    sigma: Noise
    patches: Count


class Restore(Settings):
    priors: Annotated[list[Literal["ae", "vae", "gan", "svae", "mixture"]], Field(min_length=1)]
    photographs: Count
    stride: Size
    tv_weights: Annotated[list[Weight], Field(min_length=1)]
    problems: Annotated[dict[Name, OfPhotograph], Field(min_length=1, max_length=20)]


class Report(Settings):
    pictures: Annotated[int, Field(gt=0, le=64)]
    posterior: str


class Chapter(Settings):
    image: File


class Params(Settings):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    device: Literal["cpu", "cuda", "auto"]
    threads: Annotated[int, Field(gt=0, le=1024)]
    shards: Annotated[int, Field(gt=0, le=1024)]
    collect_images: CollectImages
    extract_patches: ExtractPatches
    network: Network
    residual: Residual
    train_ae: Training
    train_vae: TrainVAE
    train_svae: TrainSVAE
    train_gan: TrainGAN
    sample: Sample
    problems: Annotated[dict[Name, Problem], Field(min_length=1, max_length=100)]
    evaluate: Evaluate
    crossover: Crossover
    latent_weights: LatentWeights
    baselines: Baselines
    train_discriminative: TrainDiscriminative
    restore: Restore
    report: Report
    chapter: Chapter

    def crossover_problems(self) -> dict[str, CompressedSensing]:
        """Compressed sensing at each number of measurements, under the names m_10, m_25, ..."""
        few, sigma = self.crossover.measurements, self.crossover.sigma
        return {f"m_{m}": CompressedSensing(operator="gaussian", measurements=m, sigma=sigma) for m in few}

    def weighed(self) -> dict[str, int]:
        """The factors of λ = factor · σ² that are swept, under the names weight_1, weight_10, ..."""
        return {f"weight_{factor}": factor for factor in self.latent_weights.factors}

    def clashes(self) -> Iterator[str]:
        """What the keys allow one by one, and not together."""
        patches, vae = self.extract_patches, self.train_vae
        sides, n = patches.patch_size, math.prod(patches.patch_size)
        counts, fitted = self.crossover.measurements, self.baselines.mixture_patches
        if n > MOST_PIXELS:
            yield f"extract_patches.patch_size = {sides} has {n} pixels, not {MOST_PIXELS} at most"
        lists = {split: files for split in SPLITS if isinstance(files := getattr(patches, split), list)}
        if patches.scenes != "folders":
            yield from torn_scenes(lists, patches.scenes)
        if vae.objective == "chapter" and vae.noise != "fixed":
            yield f"train_vae.noise = '{vae.noise}': train_vae.objective = 'chapter' trains no noise; 'fixed' is right"
        if vae.objective == "chapter" and vae.beta < 1e-6:
            yield f"train_vae.beta = {vae.beta}: the chapter takes its noise from it; at least 1e-6 would be right"
        for name, problem in self.problems.items():
            if problem.operator == "downsample" and any(side % problem.factor for side in sides):
                yield f"problems.{name}.factor = {problem.factor} does not divide extract_patches.patch_size = {sides}"
            if problem.operator == "gaussian" and problem.measurements > n:
                yield f"problems.{name}.measurements = {problem.measurements}: a patch has {n} pixels"
            if name in RESERVED or name in self.crossover_problems() or name in self.weighed():
                yield f"problems.{name}: the pipeline has another use for the name; choose another"
        for name in self.restore.problems:
            if name in self.problems or name in RESERVED:
                yield f"restore.problems.{name}: the pipeline has another use for the name; choose another"
        if self.restore.stride > min(sides):
            yield f"restore.stride = {self.restore.stride}: patches of extract_patches.patch_size = {sides} leave gaps"
        if counts != sorted(set(counts)) or counts[-1] > n:
            yield f"crossover.measurements = {counts}: they must grow, up to the {n} pixels of a patch"
        if self.network.latent_size > n:
            yield f"network.latent_size = {self.network.latent_size}: a patch has {n} pixels"
        if fitted is not None and max(self.baselines.mixture_components, default=0) > fitted:
            yield f"baselines.mixture_patches = {fitted}: fewer than a mixture has components"
        chosen = {"report.posterior": self.report.posterior, "latent_weights.problem": self.latent_weights.problem}
        for key, name in chosen.items():
            if name not in self.problems:
                yield f"{key} = {name!r} is none of problems: {', '.join(self.problems)}"


def torn_scenes(splits: dict[str, list[str]], scenes: list[list[str]] | str) -> Iterator[str]:
    """What is wrong about photographs of one scene that lie in two splits."""
    split_of = {_path(file): split for split, files in splits.items() for file in files}
    for scene in scenes_of([str(file) for file in split_of], scenes) if scenes == "folders" else scenes:
        found = {file: split_of[_path(file)] for file in scene if _path(file) in split_of}
        if len(set(found.values())) > 1:
            where = ", ".join(f"{file} in {split}" for file, split in found.items())
            yield f"extract_patches.scenes: one scene in two splits ({where}); keep it in one"


def scenes_of(files: list[str], scenes: list[list[str]] | str) -> list[list[str]]:
    """Files by scene, those of a folder or of a list together, each of the others alone."""
    together = {_path(file): tuple(scene) for scene in scenes if scenes != "folders" for file in scene}
    found = {}
    for file in files:
        path = _path(file)
        found.setdefault(path.parent if scenes == "folders" else together.get(path, path), []).append(file)
    return list(found.values())


def _path(file: str) -> PurePosixPath:
    """A file's path, the same for each way of writing it."""
    return PurePosixPath(unicodedata.normalize("NFC", file))


def load_params(path: str | Path) -> Params:
    """Read and check a parameter file; InputError names the first wrong key, its value and what would be right.

    It is YAML 1.2, read by the library that DVC reads it with.
    """
    data = Path(path).read_bytes()
    try:
        values = YAML(typ="safe", pure=True).load(data.decode())
    except Exception as error:  # on a wrong tag the parser raises nearly anything
        raise InputError(f"{path}: not valid YAML: {_cut(' '.join(str(error).split()))}") from None
    return check(values, str(path))


def check(values: object, where: str) -> Params:
    """Plain values as parameters; InputError as of `load_params`, `where` first."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: holds {type(values).__name__}, not blocks of parameters")
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_cut(_first_wrong(error, values))}") from None
    for line in params.clashes():
        raise InputError(f"{where}: {_cut(line)}")
    return params


def _first_wrong(error: ValidationError, values: dict) -> str:
    """The first wrong key with its value and all that is wrong about it."""
    first, *others = error.errors(include_url=False)
    key, value = _locate(first["loc"], values)
    if first["type"] == "missing":
        return f"{key}.{first['loc'][-1]} is missing".removeprefix(".")
    if first["type"] in ("extra_forbidden", "invalid_key") or not key:
        return f"{'.'.join(map(str, first['loc'])) or 'a key that is no text'} is not a parameter"
    members = [first, *(other for other in others if _locate(other["loc"], values)[0] == key)]  # of a union, each one
    shown = hex(value) if isinstance(value, int) and value.bit_length() > 64 else reprlib.repr(value)
    return f"{key} = {shown}: {', or '.join(member['msg'][0].lower() + member['msg'][1:] for member in members)}"


def _locate(location: tuple, values: dict) -> tuple[str, object]:
    """The dotted key of an error and the value there; a union's tags, which no file has, are left out of the key."""
    keys, place = [], values
    for step in location:
        if (isinstance(place, dict) and step in place) or (isinstance(place, list) and isinstance(step, int)):
            keys.append(str(step))
            place = place[step]
    return ".".join(keys), place


def _cut(text: str) -> str:
    return text if len(text) <= 500 else f"{text[:240]} ... {text[-240:]}"
