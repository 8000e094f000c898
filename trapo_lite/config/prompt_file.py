"""Keep how a checkpoint's prompts and answers were made in a file of its folder: a configuration for evaluation."""

from collections.abc import Sequence
from pathlib import Path

from trapo_lite.config import plain_yaml
from trapo_lite.config.data import DataSection
from trapo_lite.config.loading import load_config, read_yaml
from trapo_lite.config.overrides import sets
from trapo_lite.core.errors import ConfigError

PROMPT_FILE = "trapo_lite.yaml"
PROMPTS = {"prompt_template", "system_text", "instruction", "template_options", "system"}
ENDS = {"eos_token", "stop_tokens"}
LENGTH = "max_response_tokens"


def prompt_yaml(data: DataSection, *, max_response_tokens: int) -> str:
    """Return what says how prompts are made, and what ends answers and how long they may be, as a configuration."""
    options = data.model_dump(mode="json", include=PROMPTS | ENDS, exclude=set(data.idle_keys()), exclude_none=True)
    return plain_yaml.dump({"data": options, "rollout": {LENGTH: max_response_tokens}})


def prompt_file_of(model: str) -> Path | None:
    """Return the prompt file in a model's folder, or None if it has none.

    Raises ConfigError if it sets anything but prompts, ends and length of answers: a folder may come from anyone.
    """
    file = Path(model) / PROMPT_FILE
    if not file.is_file():
        return None
    content = read_yaml(file)
    allowed = {"data": PROMPTS | ENDS, "rollout": {LENGTH}}
    for section, options in content.items():
        if not isinstance(options, dict) or not options.keys() <= allowed.get(section, set()):
            raise ConfigError(
                f"model.name: {file} may set {', '.join(sorted(PROMPTS | ENDS))} of data, and {LENGTH} of rollout, "
                "only; export the checkpoint again, or delete the file"
            )
    return file


def sets_template(files: Sequence[str | Path], overrides: Sequence[str]) -> bool:
    """Return whether a configuration file or an override sets data.prompt_template."""
    sections = [read_yaml(file).get("data") for file in files]
    return sets("data.prompt_template", overrides) or any(
        isinstance(section, dict) and "prompt_template" in section for section in sections
    )


def origin_line(model: str, file: Path | None, data: DataSection, *, is_given: bool) -> str:
    """Return a line for the user on where the prompts of an evaluated model come from; empty if the user chose them.

    file: the model's own prompt file.   data: what the evaluation takes.   is_given: the user set data.prompt_template
    """
    if file is None and is_given:
        return ""
    if file is None:
        return (
            f"prompt: the default of data.prompt_template, Qwen2.5's chat form, because {model} holds no "
            f"{PROMPT_FILE}; give data.prompt_template=chat for the tokenizer's own, "
            "or --config with the configuration of the training"
        )
    if load_config([file]).data.model_dump(include=PROMPTS) == data.model_dump(include=PROMPTS):
        return f"prompt: as in training, by {file}"
    return (
        f"warning: data: the prompts differ from those that the model was trained with, by {file}; leave out "
        "data.prompt_template and the options of the chat template to take those"
    )
