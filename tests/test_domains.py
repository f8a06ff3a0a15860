"""Worlds: the built-in ones, one from a TOML file, and flags that contradict the weights."""

from pathlib import Path

import pytest
import torch

from attention import clustering_feature, run_attention
from attention.config import ClusterConfig, TrainConfig
from attention.errors import UserError
from attention.files.published import ROOT, SHIPPED
from attention.generator import StyleGAN2
from attention.inversion import perceptual
from attention.training.captions import PhraseSampler
from attention.worlds.registry import configured, load_world, world_entry, world_of

TINY = {4: 16, 8: 16, 16: 16, 32: 8}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A rosinality checkpoint of 32 px with channels of its own and a mean latent."""
    torch.manual_seed(0)
    generator = StyleGAN2(32, style_dim=16, mapping_layers=2, channels=TINY)
    path = tmp_path / "cars.pt"
    torch.save({"g_ema": generator.state_dict(), "latent_avg": torch.full((16,), 0.25)}, path)
    return path


def write_toml(folder: Path, *lines: str) -> str:
    path = folder / "my_cars.toml"
    path.write_text("\n".join(lines))
    return str(path)


def test_the_example_describes_a_world_whose_settings_are_flags():
    entry = world_entry(str(ROOT / "pretrained_models/example.toml"))
    assert entry.generator == ROOT / "pretrained_models/stylegan2-car.pt"
    assert len(entry.prompts) == 4 and "wheels" in entry.places and entry.words == "itself"


def test_a_toml_world_loads_its_own_generator_with_its_settings(tmp_path, checkpoint):
    (tmp_path / "words").mkdir()
    name = write_toml(tmp_path, 'generator = "cars.pt"', 'prompts = ["red", "blue"]', "truncation = 0.5", "refine = 40",
                      'captions = "words"', "[settings]", "attention_layer = 7", "step = 3", "lambda_id = 0.0")
    config = configured(TrainConfig, domain=name)
    assert (config.attention_layer, config.step, config.lambda_id) == (7, 3, 0.0)
    assert config.captions == tmp_path / "words" and config.run == Path("runs/my_cars")
    with pytest.warns(UserWarning, match="no encoder"):
        world = world_of(config)
    assert world.name == "my_cars" and world.entry.refine == 40 and world.generator.channels == TINY
    w = world.sample_w(4096, seed=0)
    z = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(w, 0.25 + 0.5 * (world.generator.mapping(z) - 0.25))    # toward the file's mean latent
    assert world.where_texts("red") == ("red",)


def test_a_toml_world_trains_with_the_small_clip_and_pixels_alone_and_says_what_it_cannot_do(tmp_path, checkpoint, capsys,
                                                                                             monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(perceptual, "VGG_WEIGHTS", tmp_path / "nowhere.pth")
    for clip in (f'"{SHIPPED / "clip.safetensors"}"', f'{{ kind = "tiny", source = "{SHIPPED / "clip.safetensors"}" }}'):
        name = write_toml(tmp_path, 'generator = "cars.pt"', 'prompts = ["red hair", "blue eyes"]', f"clip = {clip}",
                          'perceptual = "pixels"', "[settings]", "attention_layer = 7", "cluster_num = 4", "batch_size = 2")
        assert world_entry(name).clip.kind == "tiny"
    flags = ["--domain", name, "--step", "2", "--device", "cpu"]
    for main in (clustering_feature.main, run_attention.main):
        with pytest.warns(UserWarning, match="my_cars has no encoder: .* no photos.*real cannot.*evaluate cannot either"):
            main(flags)
    assert (tmp_path / "runs/my_cars/editor.safetensors").is_file()
    assert "prompts are drawn from 2 phrases of the world my_cars" in capsys.readouterr().out
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"layer 99 .*does not exist; choose one of"):
        run_attention.main([*flags, "--overwrite", "--cluster_layer", "99"])
    small = load_world("ffhq", checkpoint, "cpu", clip_model=str(SHIPPED / "clip.safetensors"))
    assert small.clip.dim == load_world("drawn", device="cpu").clip.dim


@pytest.mark.parametrize(("lines", "words"), [
    (['prompts = ["a"]'], "lacks generator"),
    (['generator = "cars.pt"'], "lacks prompts"),
    (['generator = "cars.pt"', "prompts = [1]"], r"has \[1\] for prompts, expected a list of texts"),
    (['generator = "cars.pt"', 'prompts = ["a"]', "truncation = true"], "has True for truncation, expected a number"),
    (['generator = "cars.pt"', 'prompts = ["a"]', "truncation = -5.0"], "has -5.0 for truncation, expected a number from"),
    (['generator = "cars.pt"', 'prompts = ["a", "a"]'], r"has \['a', 'a'\] for prompts, expected .* texts, each once"),
    (['generator = "cars.pt"', 'prompts = ["a", " "]'], r"has \[' '\] for prompts, expected a list of texts"),
    (['generator = "cars.pt"', 'prompts = ["a"]', 'early = ""'], "has '' for early, expected a text"),
    (['generator = "cars.pt"', 'prompts = ["a"]', 'colour = "red"'], "has the key 'colour'"),
    (['generator = "cars.pt"', 'prompts = ["a"]', "[settings]", "steps = 3"], "has the setting 'steps'"),
    (['generator = "cars.pt"', 'prompts = ["a"]', "[settings]", 'step = "abc"'], "has 'abc' for the setting step"),
    (['generator = "cars.pt"', 'prompts = ["a"]', "[settings]", "seed = 3"], "has the setting 'seed'"),
    (["generator ="], "cannot be read as TOML"),
])
def test_a_wrong_toml_is_named_with_what_was_found(lines, words, tmp_path):
    with pytest.raises(UserError, match=f"my_cars.toml {words}") as error:
        world_entry(write_toml(tmp_path, *lines))
    assert "\n" not in str(error.value)


def test_a_missing_toml_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent.toml is missing.*example.toml"):
        world_entry(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(("flags", "words"), [
    ({"stylegan_size": 1024}, r"--stylegan_size is 1024, but .*cars.pt holds a generator of 32 px"),
    ({"channel_multiplier": 2}, r"--channel_multiplier is 2, but the maps in .*cars.pt have other widths"),
])
def test_a_flag_that_contradicts_the_weights_is_refused_with_both(flags, words, checkpoint):
    config = configured(ClusterConfig, ckpt=checkpoint)
    assert config.domain == "ffhq"          # a checkpoint of one's own is taken for one of photographs
    assert world_of(config.replaced(stylegan_size=32)).generator.resolution == 32
    with pytest.raises(UserError, match=words):
        world_of(config.replaced(**flags))


def test_clip_is_loaded_only_when_it_is_used(checkpoint):
    world = load_world("ffhq", checkpoint, "cpu", clip_model="no-such-clip")
    with pytest.raises(UserError, match="no-such-clip"):
        _ = world.clip


def test_the_released_recipe_goes_before_the_domain_and_a_flag_before_both():
    config = configured(TrainConfig, domain="drawn", recipe="released", batch_size=3)
    assert (config.target, config.attention_start, config.lambda_clip) == ("image", 1.15, 1.0)
    assert (config.batch_size, config.temperature) == (3, 0.03)
    assert configured(ClusterConfig, domain="ffhq", recipe="released").enlarge == 2
    assert configured(ClusterConfig, domain="ffhq").enlarge == 1


def test_a_world_decides_what_is_trained_but_not_how_faces_are_sampled_for_regions():
    training, regions = configured(TrainConfig), configured(ClusterConfig)
    assert (training.step, training.batch_size) == (1000, 16) and (regions.step, regions.batch_size) == (20, 5)
    assert (regions.cluster_num, regions.position_weight) == (64, 0.5)


def test_the_released_recipe_weighs_the_contrastive_term_by_the_number_of_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert configured(TrainConfig, recipe="released").lambda_clip == 1 / 8
    assert configured(TrainConfig).lambda_clip == 1


@pytest.mark.parametrize(("name", "processes"), [("ffhq", 1), ("ffhq", 2), ("drawn", 1)])
def test_a_domain_has_prompts_enough_for_the_steps_of_its_presets(name, processes):
    config, entry = configured(TrainConfig, domain=name), world_entry(name)
    assert len(PhraseSampler(entry.prompts, 0).sample(config.batch_size * processes)) == config.batch_size * processes


def test_a_world_in_a_file_named_drawn_is_not_the_drawn_world(tmp_path, checkpoint):
    (tmp_path / "drawn.toml").write_text('generator = "cars.pt"\nprompts = ["a", "b"]')
    assert not load_world(str(tmp_path / "drawn.toml")).has_truth
