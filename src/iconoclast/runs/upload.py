"""Upload an export to the hub: only when asked, and privately unless told otherwise."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is public

from iconoclast.errors import RunFolderError, UserError, first_line
from iconoclast.layout import CARD, CHECKSUMS
from iconoclast.runs.documents import TrialInformation
from iconoclast.runs.manifest import sums


class UploadError(UserError):
    """An export that the hub does not take."""


@dataclass(frozen=True)
class Plan:
    """Contents and destination of an upload.

    Attributes:
        repo: name on the hub, as in "you/model".
        files: name → bytes.
        measured: whether the export was measured from its files.
    """

    folder: Path
    repo: str
    private: bool
    files: dict[str, int]
    measured: bool

    def lines(self) -> Iterator[str]:
        """Describe the plan in words."""
        yield f"{self.repo} on the hub, {'private' if self.private else 'PUBLIC'}: {len(self.files)} files"
        for name, size in self.files.items():
            yield f"  {size:>14,}  {name}"
        if not self.measured:
            yield "The export was not measured; its card has the scores of the edit applied live, and says so."


def plan(folder: Path, repo: str, private: bool = True) -> Plan:
    """Plan an upload without touching the network.

    Raises:
        RunFolderError: the folder is not an export, or has changed since it was made.
        UploadError: the hub does not allow such a name.
    """
    measured = TrialInformation.of(folder).export_metrics is not None
    if not (folder / CARD).is_file():
        raise RunFolderError(f"{folder} has no model card (README.md). Export it again.")
    listed = (folder / CHECKSUMS).read_text(encoding="utf-8") if (folder / CHECKSUMS).is_file() else ""
    if sorted(listed.splitlines()) != sorted(sums(folder).splitlines()):
        raise RunFolderError(
            f"The files of {folder} are not those that were exported: see `iconoclast verify {folder} --no-measure`. Export again, "
            f"or, if the changes are yours, write new sums into {CHECKSUMS} with sha256sum."
        )
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("there must be one slash in it")
    except HFValidationError as error:
        raise UploadError(
            f"{repo} is not a valid name for a model on the hub ({error}). Give it as in you/model."
        ) from None
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    return Plan(folder, repo, private, files, measured)


def upload(plan: Plan) -> str:
    """Send an export to the hub and return the commit's address; an earlier attempt's files are not sent again.

    Raises:
        UploadError: nobody is logged in, the hub refuses, or it cannot be reached.
    """
    api = HfApi(library_name="iconoclast")
    try:
        api.create_repo(plan.repo, private=plan.private, exist_ok=True)
        if plan.private and not api.model_info(plan.repo).private:
            raise UploadError(f"{plan.repo} is there already and is public. Say --public, or give another name.")
        commit = api.upload_folder(
            repo_id=plan.repo,
            folder_path=plan.folder,
            commit_message="An edited model, with its card",
            ignore_patterns=[".*"],
        )
    except LocalTokenNotFoundError:
        raise UploadError("Nobody is logged in to the hub. Use `hf auth login`, or set HF_TOKEN.") from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise UploadError(
            f"The upload to {plan.repo} failed: {first_line(error)}. Run the same command again: what has arrived is not sent "
            "again."
        ) from None
    return str(commit.commit_url)
