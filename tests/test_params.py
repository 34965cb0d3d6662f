import pytest
import yaml
from conftest import ROOT

from genprior.files import InputError
from pipeline.params import load_params


def test_committed_file_is_valid():
    assert load_params(ROOT / "params.yaml").extract_patches.patch_size == [16, 16]


@pytest.mark.parametrize(("text", "number"), [("1e-05", 1e-5), ("0.00001", 1e-5), ("1.5E+1", 15.0), ("1", 1.0)])
def test_number_as_yaml_and_dvc_write_it(values, tmp_path, text, number):
    values["train_gan"]["lr"] = "HERE"
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values).replace("HERE", text))
    assert load_params(file).train_gan.lr == number


BAD = [
    ("train_gan.lr", "fast", "train_gan.lr = 'fast'"),
    ("train_gan.lr", -1.0, "train_gan.lr = -1.0"),
    ("train_vae.beta", float("nan"), "train_vae.beta = nan"),
    ("train_vae.beta", float("inf"), "train_vae.beta = inf"),
    ("train_ae.steps", 1.5, "train_ae.steps = 1.5"),
    ("train_ae.steps", True, "train_ae.steps = True"),
    ("train_ae.batch_size", "none", "train_ae.batch_size = 'none'"),
    ("train_ae.learning_rate", 0.1, "train_ae.learning_rate is not a parameter"),
    ("nonsense", {}, "nonsense is not a parameter"),
    ("train_vae.noise", "pink", "train_vae.noise = 'pink'"),
    ("train_vae.objective", "chapter", "train_vae.noise = 'modulated'"),
    ("device", "tpu", "device = 'tpu'"),
    ("seed", -1, "seed = -1"),
    ("network.hidden", [], "network.hidden = []"),
    ("network.hidden", [64, 0], "network.hidden.1 = 0"),
    ("extract_patches.test", [], "extract_patches.test = []"),
    ("extract_patches.patch_size", [300, 16], "extract_patches.patch_size = [300, 16]"),
    ("extract_patches.crop", [0, 0, 8, 8], "extract_patches.patch_size = [16, 16]"),
    ("extract_patches.image_size", "big", "extract_patches.image_size"),
    ("extract_patches.validation", ["imgs/standard/camera.png"], "imgs/standard/camera.png"),
    ("extract_patches.validation", ["imgs//standard/./camera.png"], "imgs/standard/camera.png"),
    ("extract_patches.validation", ["imgs/standard/motorcycle_left.png"], "imgs/standard/motorcycle_left.png"),
    ("problems.denoise.operator", "sharpen", "problems.denoise"),
    ("problems.denoise.sigma", 0, "problems.denoise.sigma = 0"),
    ("problems.inpaint.missing", 1.0, "problems.inpaint.missing = 1.0"),
    ("problems.super_resolution.factor", 5, "problems.super_resolution.factor = 5"),
    ("crossover.measurements", [10, 5], "crossover.measurements = [10, 5]"),
    ("baselines.mixture_patches", 20, "baselines.mixture_patches = 20"),
    ("baselines.mixture_shrinkages", [1.5], "baselines.mixture_shrinkages.0 = 1.5"),
    ("evaluate.latent_weight", -0.1, "evaluate.latent_weight = -0.1"),
    ("problems", {}, "problems"),
    ("sample", None, "sample"),
    ("sample.count", 5000, "sample.count = 5000"),  # distances between all of them, several times: over 1 GB
]


@pytest.mark.parametrize(("key", "value", "said"), BAD)
def test_bad_value_is_refused_in_one_line_that_names_the_key(values, tmp_path, key, value, said):
    *blocks, name = key.split(".")
    block = values
    for step in blocks:
        block = block[step]
    block[name] = value
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError) as caught:
        load_params(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gains_over_patches_too_large_for_memory_are_refused(values, tmp_path):
    values["extract_patches"]["patch_size"] = [64, 64]  # S has 16 million numbers, in each of 16 scales
    values["baselines"] |= {"mixture_components": [], "mixture_patches": 2000}  # which have as many, or nearly
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"train_vae\.noise = 'modulated'"):
        load_params(file)
    values["train_vae"]["noise"] = "dct"
    file.write_text(yaml.safe_dump(values))
    assert load_params(file).train_vae.noise == "dct"


def test_problem_of_a_reserved_name_is_refused(values, tmp_path):
    values["problems"]["m_10"] = values["problems"]["cs_10"]
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"problems\.m_10"):
        load_params(file)


def test_missing_key_is_named(values, tmp_path):
    del values["train_vae"]["beta"]
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"train_vae\.beta is missing"):
        load_params(file)


def test_scene_in_two_splits_is_refused(values, tmp_path):
    values["extract_patches"]["train"].remove("imgs/standard/motorcycle_right.png")
    values["extract_patches"]["test"].append("imgs/standard/motorcycle_right.png")
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="one scene in two splits"):
        load_params(file)


@pytest.mark.parametrize("text", ["", "[1, 2", "- a\n- b", "\x00", "a: !!python/object:os.system {}"])
def test_what_is_no_parameter_file_is_refused(tmp_path, text):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml"):
        load_params(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_params(tmp_path / "nowhere.yaml")
