"""A folder pushed to the Hugging Face hub, or to the server that HF_ENDPOINT names."""

from __future__ import annotations

from pathlib import Path

from choreo.errors import BadInput, first_line
from choreo.models.hub import is_name, is_offline


def check_name(name: str) -> None:
    """Raises BadInput where nothing can be pushed to `name`."""
    if not is_name(name):
        raise BadInput(f"--push {name}: expected OWNER/NAME")
    if is_offline():
        raise BadInput(f"--push {name}: the hub is not asked (HF_HUB_OFFLINE)")


def push(folder: Path, name: str) -> str:
    """Pushes all of `folder` to the repository `name`, OWNER/NAME, in one commit; returns the commit's address.

    A repository that is not there yet is made, for its owner's eyes alone. Raises BadInput where the hub refuses, or
    cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by choreo").commit_url)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        why = "this account may not write there (`hf auth login`, or HF_TOKEN)" if status in (401, 403) else status
        raise BadInput(f"--push {name}: {folder} is written, but the hub says: {why}") from None
    except Exception as error:  # a network can raise anything
        raise BadInput(f"--push {name}: {folder} is written, but not pushed: {first_line(error)}") from None
