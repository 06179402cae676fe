"""Uploads an exported adapter to the Hugging Face hub: only on request, and private by default."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from dsd_lightning.files.atomic import PARTIAL


def push(folder: Path, repository: str, private: bool = True, api: HfApi | None = None) -> str:
    """Upload a folder as a model repository, created if it does not exist, and return its address.

    Files that are not complete are left out.

    Args:
        folder: an exported adapter.
        repository: owner/name.
        private: of a repository that is created; one that exists stays as it is.
        api: the hub's client; None is the hub itself, under the user's own login (`hf auth login`).

    Raises:
        HfHubHTTPError: as the hub refuses: no login, no right to the name.
    """
    api = api or HfApi()
    address = api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
    api.upload_folder(
        folder_path=folder,
        repo_id=repository,
        commit_message="Upload a trained adapter",
        ignore_patterns=[f"*{PARTIAL}", f"*{PARTIAL}/*"],
    )
    return str(address)
