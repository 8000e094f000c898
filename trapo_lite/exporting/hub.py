"""Upload a run's adapter, or its merged checkpoint, to the Hugging Face hub, with a card."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from trapo_lite.config import Config
from trapo_lite.config.hub import hub_problem
from trapo_lite.config.paths import read_object
from trapo_lite.config.prompt_file import PROMPT_FILE
from trapo_lite.core.errors import ConfigError, ExportError
from trapo_lite.exporting.hub_card import CardScore, hub_card, is_local
from trapo_lite.model.base import weights_fingerprint
from trapo_lite.run.folder import RunFolder, final_adapter, step_folders, step_of_folder

ADAPTER_FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors")
"""The files of an adapter that are uploaded; a checkpoint holds the optimizer's state too."""


@dataclass(frozen=True)
class Target:
    """A Target is the repository of the hub that is written to."""

    repo_id: str
    private: bool

    def check_name(self) -> None:
        """Raise ConfigError if the name is not of the form OWNER/NAME."""
        try:
            validate_repo_id(self.repo_id)
            is_valid = self.repo_id.count("/") == 1
        except HFValidationError:
            is_valid = False
        if not is_valid:
            raise ConfigError(
                f"--push-to-hub {self.repo_id}: is no OWNER/NAME; give your name or an organisation's, a slash, and "
                "the model's name of letters, digits, '-', '_' and '.'"
            )

    def create(self) -> None:
        """Make the repository, unless it exists. This shows, before any long work, whether it can be written to."""
        if constants.HF_HUB_OFFLINE:
            raise ConfigError("--push-to-hub: HF_HUB_OFFLINE is set; unset it, or add --dry-run")
        if problem := hub_problem():
            where = f"--push-to-hub: {constants.ENDPOINT}"
            raise ConfigError(f"{where} cannot be reached ({problem}); check the network, or add --dry-run")
        with self._errors():
            api = HfApi()
            api.whoami()
            api.create_repo(self.repo_id, private=self.private, exist_ok=True)

    def upload(self, folder: Path, files: Sequence[Path], card: str) -> str:
        """Upload the files, with `card` as README.md. Return the address of the model's page."""
        with self._errors():
            ModelCard(card).validate()
            api = HfApi()
            others = [str(file.relative_to(folder)) for file in files if file.name != "README.md"]
            message = "Upload by trapo_lite"
            api.upload_folder(repo_id=self.repo_id, folder_path=folder, allow_patterns=others, commit_message=message)
            api.upload_file(
                path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=self.repo_id, commit_message=message
            )
        return f"{constants.ENDPOINT}/{self.repo_id}"

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the hub's refusals inside into one ExportError."""
        where = f"--push-to-hub {self.repo_id}"
        try:
            yield
        except LocalTokenNotFoundError:
            raise ExportError(
                f"{where}: no token of the hub is stored here; run `hf auth login`, or set HF_TOKEN"
            ) from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            reason = " ".join((error.server_message or str(error)).split())
            if status in (401, 403, 404):
                cure = "use a token that may write there (`hf auth login`), or another OWNER/NAME"
            else:
                cure = "give the same command again"
            raise ExportError(f"{where}: the hub refused it (status {status}: {reason}); {cure}") from None
        except (httpx.HTTPError, ConnectionError) as error:
            reason = str(error) or type(error).__name__
            raise ExportError(f"{where}: the hub was lost ({reason}); give the same command again") from None
        except ValueError as error:
            raise ExportError(f"{where}: the hub rejects the card ({error}); report this") from None


def adapter_folder(run: Path, adapter: Path | None) -> Path:
    """Return the folder of the adapter to upload alone. Raise ExportError if it lacks a file."""
    folder = adapter or final_adapter(run)
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise ExportError(
            f"--adapter-only: {folder} holds no {missing[0]}; give a finished run's adapter, or leave out "
            "--adapter-only to upload base and adapter merged"
        )
    return folder


def is_exported(run: Path, adapter: Path | None, out: Path) -> bool:
    """Return whether `out` is this program's checkpoint. Raise ExportError if it is one of another adapter."""
    if not (out / PROMPT_FILE).is_file() or not (out / "config.json").is_file():
        return False
    folder = adapter or final_adapter(run)
    try:
        made_of = read_object(out / "environment.json").get("adapter")
    except (OSError, ValueError):
        made_of = None
    if made_of != weights_fingerprint(str(folder)):
        raise ExportError(f"--out {out}: was not made of {folder}; merge again by --overwrite, or name another --out")
    return True


def steps_of(run: Path, adapter: Path | None) -> int | None:
    """Return after how many steps the adapter was saved, by the run's checkpoint with the same weights, if there is."""
    weights = weights_fingerprint(str(adapter or final_adapter(run)))
    folders = reversed(step_folders(RunFolder(run).checkpoints))
    return next((step_of_folder(folder) for folder in folders if weights_fingerprint(str(folder)) == weights), None)


def push(
    folder: Path,
    target: Target,
    config: Config,
    *,
    steps: int | None,
    names: Sequence[str] | None = None,
    scores: Sequence[CardScore] = (),
    dry_run: bool,
) -> list[str]:
    """Upload a folder's files, or those that are named, and return lines about it.

    config, steps: what the adapter was trained with, and for how long; None: that is not known
    dry_run:       only return the lines
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and (names is None or str(path.relative_to(folder)) in names)
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    card = hub_card(text, config=config, steps=steps, scores=scores, may_download=not dry_run)
    visibility = "private" if target.private else "public"
    notes = []
    if is_local(config.model.name):
        notes = [
            f"note: the base is the folder {config.model.name}, so the card cannot link it; name it in README.md if "
            "others should find it"
        ]
    if not dry_run:
        return [*notes, f"uploaded {len(files)} files of {folder} to {target.upload(folder, files, card)}"]
    listed = [
        f"  {len(card.encode()) if path.name == 'README.md' else path.stat().st_size:>15,} bytes  "
        f"{path.relative_to(folder)}"
        for path in files
    ]
    return [
        *notes,
        f"would upload {len(files)} files of {folder} to {target.repo_id}, {visibility} if it is new:",
        *listed,
        "README.md:",
        *(f"  {line}".rstrip() for line in card.splitlines()),
    ]
