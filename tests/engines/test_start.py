"""What an engine cannot serve is refused on the user's path, before a weight is read."""

from pathlib import Path

import pytest
from families import FAMILIES, write_model
from multimodal import write_multimodal

from trapo_lite import cli

SERVERS = ["rollout.engine=server", "rollout.servers=[http://127.0.0.1:9]", "run.deterministic=false"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--dry-run"], []], ids=["dry run", "run"])
@pytest.mark.parametrize(
    ("engine", "refusal"),
    [
        (["rollout.engine=transformers"], "RwkvForCausalLM: 4 of its layers keep nothing in the cache"),
        (SERVERS, "rollout.engine: {model} is multimodal (gemma3)"),
    ],
    ids=["transformers", "servers"],
)
def test_a_model_that_the_engine_cannot_serve(
    engine: list[str], refusal: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = tmp_path / "model"
    if engine == SERVERS:
        write_multimodal("gemma3", model, tied=True)
    else:
        write_model(FAMILIES["rwkv, a recurrence of its own"], model)
    (model / "model.safetensors").unlink()
    command = ["--config", "configs/tiny_cpu.yaml", f"model.name={model}", f"run.dir={tmp_path}", *engine, *options]
    with pytest.raises(SystemExit) as end:
        cli.train(command)
    assert end.value.code == 2
    assert refusal.format(model=model) in capsys.readouterr().err.replace("\n", " ")
