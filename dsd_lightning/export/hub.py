"""How does an exported adapter get to the Hugging Face hub? Only when asked to, and private unless told otherwise."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from dsd_lightning.files import folders as whole


def push(folder: Path, repository: str, private: bool = True, api: HfApi | None = None) -> str:
    """Upload a folder as a model repository, made if it does not exist, and return its address.

    What is half written is left behind.

    Args:
        folder: an exported adapter.
        repository: owner/name.
        private: of a repository that is made; one that exists stays as it is.
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
        ignore_patterns=[f"*{whole.PARTIAL}", f"*{whole.PARTIAL}/*"],
    )
    return str(address)
