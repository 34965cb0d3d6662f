"""params.yaml as a typed schema: what every knob is, and one clear line when it is wrong."""

import math
import reprlib
import warnings
from itertools import pairwise
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.nodes import MappingNode

from genprior.files import InputError

MOST_BYTES = 1_000_000  # of a parameter file
MOST_PIXELS = 4096  # of a patch: what knows all of its pixels has n² numbers
MOST_NUMBERS = 2**28  # at a time in one place: 1 GB in float32


Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Noise = Annotated[float, Field(ge=1e-3, le=1e3)]  # a standard deviation, of images in [0, 1]; with less, float32 fails
Weight = Annotated[float, Field(ge=1e-12, le=1e6)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0, le=10_000_000)]
Size = Annotated[int, Field(gt=0, le=16_384)]
Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]
Hidden = Annotated[list[Size], Field(min_length=1, max_length=16)]
File = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$", max_length=4000)]
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
    patch_size: Annotated[list[Annotated[int, Field(ge=2, le=MOST_PIXELS)]], Field(min_length=2, max_length=2)]
    stride: Size
    symmetries: bool
    max_patches: Annotated[int, Field(ge=2, le=10_000_000)]

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
        if math.prod(self.patch_size) > MOST_PIXELS:
            raise ValueError(
                f"extract_patches.patch_size = {self.patch_size} has {math.prod(self.patch_size)} pixels; "
                f"at most {MOST_PIXELS} would be right"
            )
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
    noise: Literal["dct", "modulated"]
    code_weight: NonNegative | None
    warm_up: Share


class TrainAE(_Training):
    pass


class TrainVAE(_Training):
    noise: Literal["fixed", "learned", "pixel", "dct", "modulated"]
    sigma: Annotated[float, Field(ge=1e-4, le=1e3)]
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
        if self.objective == "chapter" and self.beta < 1e-6:
            raise ValueError(
                f"train_vae.beta = {self.beta}: the chapter's objective takes its noise from it; "
                "at least 1e-6 would be right"
            )
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
    likelihood_patches: Annotated[int, Field(ge=2, le=10_000_000)]  # one has no standard error


class Baselines(Settings):
    validation_patches: Count
    tikhonov_weights: Annotated[list[Weight], Field(min_length=1)]
    lasso_weights: Annotated[list[Weight], Field(min_length=1)]
    tv_weights: Annotated[list[Weight], Field(min_length=1)]
    mixture_components: list[Annotated[int, Field(gt=1, le=1000)]]
    mixture_patches: Count | None
    mixture_starts: Annotated[int, Field(gt=0, le=100)]
    mixture_iterations: Count
    mixture_shrinkages: Annotated[list[Share], Field(min_length=1)]


class TrainDiscriminative(Settings):
    steps: Count
    batch_size: Count
    lr: Positive
    hidden: Hidden


class Crossover(Settings):
    measurements: Annotated[list[Size], Field(min_length=2)]
    sigma: Noise
    patches: Count


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
    collect_images: CollectImages
    extract_patches: ExtractPatches
    network: Network
    residual: Residual
    train_ae: TrainAE
    train_vae: TrainVAE
    train_gan: TrainGAN
    sample: Sample
    problems: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z]\w*$", max_length=40)], Problem], Field(min_length=1, max_length=100)
    ]
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
        sides, n = self.extract_patches.patch_size, math.prod(self.extract_patches.patch_size)
        for name, problem in self.problems.items():
            if problem.operator == "downsample" and any(side % problem.factor for side in sides):
                raise ValueError(
                    f"problems.{name}.factor = {problem.factor} does not divide extract_patches.patch_size = {sides}"
                )
            if problem.operator == "gaussian" and problem.measurements > n:
                raise ValueError(f"problems.{name}.measurements = {problem.measurements}: a patch has {n} pixels")
            if name in ("representation", "likelihood", "samples", "training", "patches", "chapter"):
                raise ValueError(f"problems.{name}: the report has another use for the name; choose another")
        counts = self.crossover.measurements
        if counts != sorted(set(counts)):
            raise ValueError(f"crossover.measurements = {_shown(counts)}: the numbers must grow")
        if counts[-1] > n:
            raise ValueError(f"crossover.measurements = {_shown(counts)}: a patch has {n} pixels")
        if self.network.latent_size > n:
            raise ValueError(f"network.latent_size = {self.network.latent_size}: a patch has {n} pixels")
        fitted = self.baselines.mixture_patches
        if fitted is not None and max(self.baselines.mixture_components, default=0) > fitted:
            raise ValueError(f"baselines.mixture_patches = {fitted}: fewer than a mixture has components")
        if clash := sorted(self.problems.keys() & self.crossover_problems().keys()):
            raise ValueError(f"problems.{clash[0]}: the name is taken by a problem of crossover; choose another")
        if self.report.posterior not in self.problems:
            raise ValueError(
                f"report.posterior = {_shown(self.report.posterior)} is none of problems: {', '.join(self.problems)}"
            )
        return self

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Self:
        for key, numbers in self._numbers_at_once():
            if numbers > MOST_NUMBERS:
                raise ValueError(
                    f"{key} = {_shown(attrgetter(key)(self))}: with the other parameters as they are it takes about "
                    f"{numbers / 2**28:.2g} GB at a time; at most 1 GB would be right"
                )
        return self

    def _numbers_at_once(self) -> list[tuple[str, int]]:
        """The largest arrays that grow with a parameter, in numbers of 4 bytes: rough, but with the right powers."""

        def weights(widths: list[int]) -> int:
            return 4 * sum(a * b for a, b in pairwise(widths))  # and their gradients, and Adam's two moments

        n, k = math.prod(self.extract_patches.patch_size), self.network.latent_size
        coder = [n, *self.network.hidden, k]
        rival = [n, *self.train_gan.discriminator_hidden, 1]
        single = [n, *self.train_discriminative.hidden, 2 * n]
        flow = [12 * (64 + k)]  # its six networks of width 64
        settings, baselines = self.evaluate, self.baselines
        available = self.extract_patches.max_patches
        restored, fitted = min(settings.patches, available), min(baselines.mixture_patches or available, available)
        posterior = max(min(settings.posterior_patches, restored), settings.likelihood_patches)
        batches = [
            (f"{name}.batch_size", 4 * sum(coder + extra) * (block.batch_size or available))
            for name, extra in (("residual", flow), ("train_ae", []), ("train_vae", []), ("train_gan", rival))
            for block in [getattr(self, name)]
        ]
        modulated = [name for name in ("residual", "train_vae") if getattr(self, name).noise == "modulated"]
        return [
            ("network.hidden", 3 * weights(coder)),  # encoder, decoder, variances
            ("train_gan.discriminator_hidden", weights(rival)),
            ("train_discriminative.hidden", weights(single)),
            ("network.latent_size", 64 * k * max(n, *self.network.hidden)),  # Jacobians
            *batches,
            *((f"{name}.noise", 20 * n**2) for name in modulated),  # S, and what it is with each gain alone
            ("train_discriminative.batch_size", 4 * sum(single) * self.train_discriminative.batch_size),
            ("sample.count", 12 * min(self.sample.count, available // 2) ** 2),  # distances, in twice 4 bytes
            ("evaluate.patches", restored * max(n * len(self.problems), 4096)),
            ("evaluate.range.starts", settings.range.starts * restored * k**2),
            ("evaluate.relaxed.starts", settings.relaxed.starts * restored * k**2),
            ("evaluate.solver_patches", 16 * min(settings.solver_patches, restored) * k**2),
            ("evaluate.mean_samples", 4 * settings.mean_samples * max(n, 8 * restored * k * settings.relaxed.starts)),
            ("evaluate.posterior_patches", 4 * min(settings.posterior_patches, restored) * k**2),
            ("evaluate.likelihood_patches", settings.likelihood_patches * max(4096, 4 * k**2)),
            ("evaluate.posterior_samples", settings.posterior_samples * posterior * max(n, 100 * k)),
            ("baselines.validation_patches", 2 * n * baselines.validation_patches),
            ("baselines.mixture_patches", 2 * n * fitted),
            (
                "baselines.mixture_components",
                (8 * n**2 + 10 * fitted) * max(baselines.mixture_components, default=0),  # covariances and shares
            ),
        ]


class _Constructor(SafeConstructor):
    def flatten_mapping(self, node: MappingNode) -> None:
        # Merges of merges grow without bound, and hide what a block holds.
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "blocks are not merged (<<); write the values out", key.start_mark)
        super().flatten_mapping(node)


def load_params(path: str | Path) -> Params:
    """Read and check a parameter file; InputError names the first wrong key, its value and what would be right.

    It is YAML 1.2, read by the same library as DVC reads it, without merge keys.
    """
    return check(Params, _read_yaml(Path(path)), str(path))


def _read_yaml(path: Path) -> object:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        if not path.is_file():
            raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; at most {MOST_BYTES} would be right")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of YAML 1.1, for whoever asks for it
            values = yaml.load(text)
    except Exception as error:  # on a wrong tag the parser raises nearly anything
        raise InputError(f"{path}: not valid YAML: {_shortened(' '.join(str(error).split()), 400)}") from None
    if _grows_beyond(values, MOST_BYTES):
        raise InputError(f"{path}: grows beyond {MOST_BYTES} values by its aliases (*); write the values out")
    return values


def _grows_beyond(values: object, most: int) -> bool:
    """Whether nested values with their aliases written out are more than `most`: a file of few lines can be endless."""
    count, left = 0, [values]
    while left and count <= most:
        value = left.pop()
        count += 1
        if isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
    return count > most


Schema = TypeVar("Schema", bound=Settings)


def check(schema: type[Schema], values: object, where: str) -> Schema:
    """Values by a schema; InputError names where they come from, the first wrong key and what would be right."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: holds {type(values).__name__}, not blocks of parameters")
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_first_line(error, values)}") from None
    except UnicodeEncodeError:  # half a surrogate pair, in a key
        raise InputError(f"{where}: holds a key that is no text") from None


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
        elif detail["type"] == "invalid_key":
            message = f"{'.'.join(map(str, detail['loc']))} is no name of a parameter"
        elif detail["type"] != "value_error":
            message = f"{key} = {_shown(place)}: {message[0].lower()}{_shortened(message[1:], 300)}"
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
            keys.append(_shortened(str(step), 80))
            place = place[step]
    return ".".join(keys), place


def _shown(value: Any) -> str:
    """A value for a message, long ones shortened."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    short.maxlist = 8
    try:
        return _shortened(short.repr(value), 80)
    except ValueError:  # Python prints no more than 4300 digits
        return "a number of thousands of digits"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
