"""Shipped configurations are found by name from any folder; a user's own file of that name comes first."""

from pathlib import Path

import pytest

from trapo_lite.config import load_config
from trapo_lite.config.paths import check_paths
from trapo_lite.config.shipped import CONFIGS, PACKAGE, config_file, config_names, shipped_path
from trapo_lite.core.errors import ConfigError

TINY_BASE = "trapo_lite/tiny_world/base"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "configs/", "./configs/"])
def test_every_shipped_configuration_loads_by_name_and_has_what_it_names(prefix: str) -> None:
    names = [name for name in config_names() if not name.startswith("accelerate/")]
    assert {"tiny_cpu.yaml", "8xA100_lora.yaml", "algorithm/sft.yaml"} <= set(names)
    for name in names:
        check_paths(load_config([prefix + name], ["data.expert_text=full"] if "luffy" in name else []))


def test_the_tiny_world_is_found_in_the_package() -> None:
    config = load_config(["tiny_cpu.yaml"])
    assert config.model.name == str(PACKAGE / "tiny_world/base")
    assert config.data.train == str(PACKAGE / "tiny_world/data/train.jsonl")
    assert config.eval.data == str(PACKAGE / "tiny_world/data/dev.jsonl")


def test_a_users_file_and_folder_come_first(empty_folder: Path) -> None:
    (empty_folder / TINY_BASE).mkdir(parents=True)
    (empty_folder / "tiny_cpu.yaml").write_text(f"model: {{name: {TINY_BASE}}}\nrun: {{name: mine}}\n")
    config = load_config(["tiny_cpu.yaml"])
    assert (config.run.name, config.model.name) == ("mine", TINY_BASE)
    assert load_config(["configs/tiny_cpu.yaml"]).run.name == "tiny_cpu"


@pytest.mark.parametrize(
    "text", ["trapo_lite/tiny_world/nothing", "trapo_lite/evaluation/benchmarks.yaml", "owner/name", "", "/", "x" * 300]
)
def test_other_paths_stay_as_they_are(text: str) -> None:
    assert shipped_path(text) == text


@pytest.mark.parametrize(
    "name", ["../tiny_cpu.yaml", "configs", "", "nested/tiny_cpu.yaml", str(Path("/tiny_cpu.yaml"))]
)
def test_other_names_are_no_shipped_configuration(name: str) -> None:
    assert config_file(name) is None


def test_a_name_that_is_nowhere_gets_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"--config qwen3_8b.yaml: no such file; did you mean .*'qwen3_4b.yaml'"):
        load_config(["qwen3_8b.yaml"])
    with pytest.raises(ConfigError, match=r"no such file; did you mean 'algorithm/sft.yaml' or 'algorithm/"):
        load_config(["sft.yml"])
    with pytest.raises(ConfigError, match="give the path of a YAML file, or a name that `trapo-lite configs` lists"):
        load_config(["nothing_like_it.json"])


@pytest.mark.parametrize("name", config_names())
def test_the_first_line_of_a_configuration_describes_it(name: str) -> None:
    first = (CONFIGS / name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and first.endswith(".") and len(first) < 118
